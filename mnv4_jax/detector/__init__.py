"""Loads a saved detector and runs it: weights, scores, explanation maps.

May import models, measures and the pipeline. Must not import training, reports or exports.
"""
