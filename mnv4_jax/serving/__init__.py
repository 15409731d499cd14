"""A page and an HTTP interface for one detector.

Knows detectors. Must not know training, reports or exports; writes nothing to disk.
"""
