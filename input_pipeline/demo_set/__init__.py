"""The demo set's people and portraits.

Only draws. Must not use files, batches or models.
"""
