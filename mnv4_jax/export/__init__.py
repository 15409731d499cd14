"""Exports a detector for other software: timm's names, PyTorch, ONNX, StableHLO, a web page.

May import detectors and models. Must not import training or reports.
"""
