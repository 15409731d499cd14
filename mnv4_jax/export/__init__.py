"""Exports a detector for other software: timm's names, PyTorch, ONNX, StableHLO.

May import detectors and models. Must not import training or reports.
"""
