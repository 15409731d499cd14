"""A run: its loop, step, optimizer, augmentation, checkpoints and logs.

May import detectors and models. No other subpackage may import this one.
"""
