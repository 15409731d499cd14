"""What `evaluate` measures of a detector, and the page it writes.

Knows detectors and measures. Must not know training or exports.
"""
