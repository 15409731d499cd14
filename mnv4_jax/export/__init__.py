"""A detector for other software: timm's names, PyTorch, ONNX, StableHLO.

Knows detectors and models. Must not know training or reports.
"""
