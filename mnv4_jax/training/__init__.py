"""A run: its loop, step, optimizer, augmentation, checkpoints and logs.

Knows detectors and models. No other room may know it.
"""
