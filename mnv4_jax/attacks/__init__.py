"""Attacks: small changes of a picture that make a detector give the wrong answer.

Knows functions from pictures to logits, and pixels. Knows nothing of files, checkpoints or reports.
"""
