"""A page and an HTTP interface for one detector.

May import detectors. Must not import training, reports or exports; writes nothing to disk.
"""
