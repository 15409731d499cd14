"""Sets prepared as ArrayRecord shards, and pictures that their splits share.

May import TFDS and sources. Must not import batches or models.
"""
