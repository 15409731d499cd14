"""The budget of an attack, and the rounding of its result to a picture file."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# Pictures [B, H, W, 3] float in [0, 1] -> logits [B, 2] (fake, real), differentiable, in evaluation
# mode: pictures do not influence each other.
Logits = Callable[[jax.Array], jax.Array]


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """[B, 2], [B] -> [B]: the wrong class's logit minus the true one's. Positive: a wrong answer.

    With two classes the difference of logits ratio (Croce and Hein, ICML 2020, eq. 6) has no scale
    to divide by, and only this difference remains.
    """
    wrong = jnp.take_along_axis(logits, 1 - labels[:, None], axis=1)[:, 0]
    true = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return wrong - true


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """[B, 2], [B] -> [B]: minus the log-probability of the true class."""
    return jax.nn.softplus(margin(logits, labels))


LOSSES = {"ce": cross_entropy, "margin": margin}


def project(x: jax.Array, original: jax.Array, budget: jax.Array, norm: str) -> jax.Array:
    """The nearest picture to `x` in [0, 1] within `budget` (a share of full scale) of `original`.

    Args:
      norm: "linf": every value within the budget; "l2": the picture's Euclidean distance.
    """
    change = x - original
    if norm == "linf":
        change = jnp.clip(change, -budget, budget)
    else:
        length = jnp.sqrt(jnp.sum(change**2, axis=(1, 2, 3), keepdims=True))
        change = change * jnp.minimum(1, budget / jnp.maximum(length, 1e-12))
    return jnp.clip(original + change, 0, 1)


def as_file(x: jax.Array, original: jax.Array, budget: jax.Array, norm: str) -> jax.Array:
    """`x` rounded to whole pixel values, as a file holds them, still within an L∞ `budget`.

    Under "l2" each value is rounded to the nearest one, which may exceed the budget slightly.
    """
    pixels, base = jnp.round(x * 255), jnp.round(original * 255)
    if norm == "linf":
        whole = jnp.floor(budget * 255 + 1e-3)
        pixels = jnp.clip(pixels, base - whole, base + whole)
    return jnp.clip(pixels, 0, 255) / 255
