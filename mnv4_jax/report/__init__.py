"""The measurements of `evaluate`, and the page it writes.

May import detectors and measures. Must not import training or exports.
"""
