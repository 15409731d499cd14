"""Attacks that follow the detector's own gradient: FGSM, PGD and APGD.

All are pure functions for `jax.jit`. Pictures are [B, H, W, 3] float in [0, 1] whose values are
whole 255ths, before and after; `budget` is a share of full scale, such as 2/255.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mnv4_jax.attacks.budget import LOSSES, Logits, as_file, margin, project


def fgsm(logits: Logits, images, labels, budget, key, *, random_start: bool = False) -> jax.Array:
    """One step of the whole budget along the sign of the gradient (Goodfellow et al., ICLR 2015).

    Args:
      random_start: start at a random point within the budget (Wong et al., ICLR 2020).
    """
    start = _anywhere(images, budget, key, "linf") if random_start else images
    _, gradient = _value_and_gradient(logits, "ce", start, labels=labels)
    x = project(start + budget * jnp.sign(gradient), images, budget, "linf")
    return as_file(x, images, budget, "linf")


def pgd(
    logits: Logits, images, labels, budget, key, *,
    steps: int = 20, step_size: float | None = None, restarts: int = 1, norm: str = "linf",
    loss: str = "ce",
) -> jax.Array:  # fmt: skip
    """Projected gradient ascent from random starts (Madry et al., ICLR 2018).

    Args:
      steps: may be traced: one program works for any number of them.
      step_size: a share of the budget; by default 2.5 / steps, which can reach any point of it.
      restarts: number of attempts; takes the strongest for each picture.
      norm: "linf" or "l2"; the budget is of that norm.
      loss: "ce" or "margin".
    """
    step_size = 2.5 / steps if step_size is None else step_size

    def once(best, key):
        x = ascend(
            lambda x: LOSSES[loss](logits(x), labels), images, budget, key,
            steps=steps, step_size=step_size, norm=norm,
        )  # fmt: skip
        x = as_file(x, images, budget, norm)
        return stronger(logits, labels, best, x), None

    return jax.lax.scan(once, images, jax.random.split(key, restarts))[0]


def ascend(
    loss: Callable[[jax.Array], jax.Array], images, budget, key, *,
    steps: int, step_size: float, norm: str = "linf",
) -> jax.Array:  # fmt: skip
    """[B, H, W, 3] within `budget` of `images` with a large `loss` ([B, H, W, 3] -> [B]): `steps`
    of `step_size` (a share of the budget) from a random start, without rounding to a file."""

    def step(_, x):
        gradient = jax.grad(lambda x: jnp.sum(loss(x)))(x)
        return project(x + step_size * budget * _direction(gradient, norm), images, budget, norm)

    return jax.lax.fori_loop(0, steps, step, _anywhere(images, budget, key, norm))


def apgd(
    logits: Logits, images, labels, budget, key, *,
    steps: int = 20, norm: str = "linf", loss: str = "ce",
) -> jax.Array:  # fmt: skip
    """PGD with momentum; each picture's step size is halved when it stops improving.

    Auto-PGD of Croce and Hein (ICML 2020), Algorithm 1: checkpoints at 22%, 41%, … of the steps,
    each 3 percentage points closer than the one before and at least 6% apart.
    """
    checked = jnp.array([i in _checkpoints(steps) for i in range(steps)])
    shape = (-1, 1, 1, 1)
    value_and_gradient = functools.partial(_value_and_gradient, logits, loss, labels=labels)
    x = _anywhere(images, budget, key, norm)
    value, gradient = value_and_gradient(x)
    zeros = jnp.zeros(len(images))
    state = {
        "x": x, "before": x, "gradient": gradient, "value": value,
        "best": x, "best_value": value, "best_gradient": gradient,
        "size": jnp.full(len(images), 2.0) * budget, "gains": zeros, "since": jnp.zeros(()),
        "value_then": value, "halved": jnp.ones(len(images), bool),
    }  # fmt: skip

    def step(s, at):
        i, check = at
        move = s["size"].reshape(shape) * _direction(s["gradient"], norm)
        z = project(s["x"] + move, images, budget, norm)
        share = jnp.where(i == 0, 1.0, 0.75)
        x = s["x"] + share * (z - s["x"]) + (1 - share) * (s["x"] - s["before"])
        x = project(x, images, budget, norm)
        value, gradient = value_and_gradient(x)
        gains, since = s["gains"] + (value > s["value"]), s["since"] + 1
        better = value > s["best_value"]
        pick = lambda new, old, where=better: jnp.where(  # noqa: E731
            where.reshape(shape) if new.ndim == 4 else where, new, old
        )
        best, best_value = pick(x, s["best"]), pick(value, s["best_value"])
        best_gradient = pick(gradient, s["best_gradient"])
        # Condition 1: too few gains. Condition 2: nothing better since the last check.
        stuck = (gains < 0.75 * since) | (~s["halved"] & (best_value <= s["value_then"]))
        halve = stuck & check
        keep = lambda new, old: jnp.where(check, new, old)  # noqa: E731
        return {
            "x": pick(best, x, halve), "before": pick(best, s["x"], halve),
            "gradient": pick(best_gradient, gradient, halve),
            "value": pick(best_value, value, halve),
            "best": best, "best_value": best_value, "best_gradient": best_gradient,
            "size": jnp.where(halve, s["size"] / 2, s["size"]),
            "gains": keep(zeros, gains), "since": keep(jnp.zeros(()), since),
            "value_then": keep(best_value, s["value_then"]), "halved": keep(halve, s["halved"]),
        }, None  # fmt: skip

    state = jax.lax.scan(step, state, (jnp.arange(steps), checked))[0]
    return stronger(logits, labels, images, as_file(state["best"], images, budget, norm))


def stronger(logits: Logits, labels, one: jax.Array, other: jax.Array) -> jax.Array:
    """Of two [B, H, W, 3], for each picture the one that is nearer to a wrong answer."""
    wins = margin(logits(other), labels) > margin(logits(one), labels)
    return jnp.where(wins[:, None, None, None], other, one)


def _checkpoints(steps: int) -> set[int]:
    shares, found = [0.0, 0.22], set()
    while shares[-1] <= 1:
        found.add(-(-int(1e6 * shares[-1] * steps) // 10**6))
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return found


def _value_and_gradient(logits: Logits, loss: str, x, *, labels) -> tuple[jax.Array, jax.Array]:
    def total(x):
        values = LOSSES[loss](logits(x), labels)
        return jnp.sum(values), values

    (_, values), gradient = jax.value_and_grad(total, has_aux=True)(x)
    return values, gradient


def _direction(gradient: jax.Array, norm: str) -> jax.Array:
    if norm == "linf":
        return jnp.sign(gradient)
    length = jnp.sqrt(jnp.sum(gradient**2, axis=(1, 2, 3), keepdims=True))
    return gradient / jnp.maximum(length, 1e-12)


def _anywhere(images, budget, key, norm: str) -> jax.Array:
    """A random picture within the budget of each."""
    if norm == "linf":
        noise = jax.random.uniform(key, images.shape, images.dtype, -1, 1)
        return project(images + budget * noise, images, budget, norm)
    noise_key, radius_key = jax.random.split(key)
    noise = _direction(jax.random.normal(noise_key, images.shape, images.dtype), norm)
    radius = jax.random.uniform(radius_key, (len(images), 1, 1, 1), images.dtype)
    return project(images + budget * radius * noise, images, budget, norm)
