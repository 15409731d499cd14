"""A saved detector, loaded and asked: weights, scores, explanation maps.

Knows models, measures and the pipeline. Must not know training, reports or exports.
"""
