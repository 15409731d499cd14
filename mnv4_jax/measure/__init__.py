"""Numbers about scores and pictures: metrics, calibration, corruptions, shortcuts.

Knows arrays and sources. Must not know networks or checkpoints.
"""
