"""flax.nnx modules."""
