"""Numbers about scores and pictures: metrics, calibration, corruptions, shortcuts.

May import arrays and sources. Must not import networks or checkpoints.
"""
