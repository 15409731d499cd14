"""Runs a detector on many pictures and machines: cuts lists into shards, which Ray Data decodes and
scores, and writes them shard by shard.
"""
