"""The demo set's people and portraits.

Knows how to draw. Must not know files, batches or models.
"""
