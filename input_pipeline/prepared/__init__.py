"""Sets prepared as ArrayRecord shards, and pictures that their splits share.

Knows TFDS and sources. Must not know batches or models.
"""
