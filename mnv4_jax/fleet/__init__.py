"""A detector over many pictures and machines: lists cut into shards, decoded and scored by Ray
Data, written shard by shard.
"""
