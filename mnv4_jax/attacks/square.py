"""A black-box attack: needs scores, no gradients. It also works if gradients are hidden."""

import jax
import jax.numpy as jnp

from mnv4_jax.attacks.budget import Logits, as_file, margin


def square(logits: Logits, images, labels, budget, key, *, queries: int = 100) -> jax.Array:
    """Tries random squares of ± the budget and keeps those that help, starting with vertical
    stripes (Square, Andriushchenko et al., ECCV 2020, Algorithm 1 for L∞).

    Args:
      images: [B, H, W, 3] float in [0, 1]; labels [B]; budget: a share of full scale.
      queries: number of queries to the detector for each picture.

    Returns:
      [B, H, W, 3] with whole pixel values.
    """
    batch, height, width, channels = images.shape
    # At these shares of the queries, the square's share of the picture is halved (as in the paper).
    halvings = jnp.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]) / 10_000

    def signs(key, shape):
        return jnp.where(jax.random.bernoulli(key, shape=shape), budget, -budget)

    def candidate(change):
        return as_file(jnp.clip(images + change, 0, 1), images, budget, "linf")

    def step(i, state):
        change, best = state
        row_key, column_key, sign_key = jax.random.split(jax.random.fold_in(key, i), 3)
        share = 0.8 * 0.5 ** jnp.sum(i / queries >= halvings)
        side = jnp.clip(jnp.round(jnp.sqrt(share * height * width)), 1, min(height, width))
        row = jax.random.uniform(row_key, (batch, 1)) * (height - side)
        column = jax.random.uniform(column_key, (batch, 1)) * (width - side)
        in_rows = (jnp.arange(height) >= row) & (jnp.arange(height) < row + side)
        in_columns = (jnp.arange(width) >= column) & (jnp.arange(width) < column + side)
        inside = (in_rows[:, :, None] & in_columns[:, None, :])[..., None]
        tried = jnp.where(inside, signs(sign_key, (batch, 1, 1, channels)), change)
        value = margin(logits(candidate(tried)), labels)
        wins = value > best
        change = jnp.where(wins[:, None, None, None], tried, change)
        return change, jnp.maximum(value, best)

    key, stripes_key = jax.random.split(key)
    change = signs(stripes_key, (batch, 1, width, channels)) * jnp.ones((1, height, 1, 1))
    clean = margin(logits(images), labels)
    value = margin(logits(candidate(change)), labels)
    change = jnp.where((value > clean)[:, None, None, None], change, 0)
    change, _ = jax.lax.fori_loop(0, queries, step, (change, jnp.maximum(value, clean)))
    return candidate(change)
