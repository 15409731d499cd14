"""Attacks: small changes to a picture that make a detector give the wrong answer.

Uses only pixels and functions from pictures to logits; no files, checkpoints or reports.
"""
