"""Attacks against detectors whose worst case is known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv4_jax.attacks.budget import as_file, cross_entropy, margin, project
from mnv4_jax.attacks.gradient import apgd, fgsm, pgd, stronger
from mnv4_jax.attacks.square import square

SIDE, BATCH = 8, 6
RNG = np.random.default_rng(0)
WEIGHTS = jnp.asarray(RNG.normal(size=(SIDE, SIDE, 3)), jnp.float32)
# Away from 0 and 255, so that no attack is cut off there.
PIXELS = RNG.integers(60, 190, (BATCH, SIDE, SIDE, 3))
IMAGES = jnp.asarray(PIXELS, jnp.float32) / 255
LABELS = jnp.asarray([0, 1] * (BATCH // 2))
KEY = jax.random.key(0)


def linear(images):
    """Logits whose margin is linear: the worst case within L∞ is a step along the sign."""
    score = jnp.sum(images * WEIGHTS, axis=(1, 2, 3))
    return jnp.stack([score, -score], axis=1)


def curved(images):
    """A margin with a maximum inside the ball, where a single long step overshoots."""
    score = jnp.sum(jnp.sin(40 * images * WEIGHTS), axis=(1, 2, 3))
    return jnp.stack([score, -score], axis=1)


ATTACKS = {
    "fgsm": fgsm,
    "fgsm, random start": functools.partial(fgsm, random_start=True),
    "pgd": functools.partial(pgd, steps=10),
    "pgd, margin": functools.partial(pgd, steps=10, loss="margin"),
    "apgd": functools.partial(apgd, steps=10),
    "apgd, margin": functools.partial(apgd, steps=10, loss="margin"),
    "square": functools.partial(square, queries=20),
}


@functools.cache
def compiled(attack, logits):
    return jax.jit(functools.partial(attack, logits))


def run(attack, logits=linear, budget=4 / 255):
    return compiled(attack, logits)(IMAGES, LABELS, jnp.float32(budget), KEY)


def test_the_margin_is_positive_where_the_answer_is_wrong():
    logits = jnp.array([[2.0, 1.0], [2.0, 1.0]])
    np.testing.assert_allclose(margin(logits, jnp.array([0, 1])), [-1, 1])
    expected = -jax.nn.log_softmax(logits)[jnp.arange(2), jnp.array([0, 1])]
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([0, 1])), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("budget", [1, 4])
def test_no_value_leaves_its_budget_and_all_are_whole(name, budget):
    pixels = np.asarray(run(ATTACKS[name], budget=budget / 255)) * 255
    np.testing.assert_allclose(pixels, np.round(pixels), atol=1e-3)
    assert np.abs(np.round(pixels) - PIXELS).max() <= budget
    assert pixels.min() >= 0
    assert pixels.max() <= 255


@pytest.mark.parametrize("name", [n for n in ATTACKS if n not in ("square", "fgsm, random start")])
def test_the_worst_case_of_a_linear_detector_is_found(name):
    towards_wrong = jnp.where(LABELS == 0, -1, 1)[:, None, None, None]
    worst = IMAGES + 4 / 255 * towards_wrong * jnp.sign(WEIGHTS)
    attacked = run(ATTACKS[name])
    np.testing.assert_allclose(
        margin(linear(attacked), LABELS), margin(linear(worst), LABELS), rtol=1e-4
    )


def test_an_attack_without_gradients_gets_most_of_the_way():
    gained = margin(linear(run(ATTACKS["square"])), LABELS) - margin(linear(IMAGES), LABELS)
    assert (gained > 0).all()
    most = 2 * 4 / 255 * jnp.abs(WEIGHTS).sum()
    noise = RNG.choice([-4 / 255, 4 / 255], IMAGES.shape)
    random_gain = margin(linear(IMAGES + noise), LABELS) - margin(linear(IMAGES), LABELS)
    assert (gained > random_gain).mean() > 0.8
    assert (gained < most).all()
    more = run(functools.partial(square, queries=400))
    assert (margin(linear(more), LABELS) > margin(linear(run(ATTACKS["square"])), LABELS)).all()


def test_more_steps_and_restarts_find_more_on_a_curved_detector():
    def strength(attack):
        return np.asarray(margin(curved(run(attack, curved, 8 / 255)), LABELS))

    one = strength(fgsm)
    many = strength(functools.partial(pgd, steps=40))
    again = strength(functools.partial(pgd, steps=40, restarts=4))
    auto = strength(functools.partial(apgd, steps=40))
    assert (many > one).all()
    assert again.mean() > one.mean()
    assert (auto > one).all()


def test_l2_moves_along_the_gradient_and_stays_in_its_ball():
    budget = 40.0 / 255
    attacked = np.asarray(run(functools.partial(pgd, steps=10, norm="l2"), linear, budget))
    change = (attacked - np.asarray(IMAGES)).reshape(BATCH, -1) * 255
    lengths = np.linalg.norm(change, axis=1)
    assert (lengths <= 40 + 0.5 * np.sqrt(change.shape[1])).all()
    direction = np.where(np.asarray(LABELS) == 0, -1, 1)[:, None] * np.ravel(WEIGHTS)
    cosine = (change * direction).sum(1) / lengths / np.linalg.norm(np.ravel(WEIGHTS))
    assert (cosine > 0.9).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_projection_is_the_nearest_point(norm):
    x = IMAGES + jnp.asarray(RNG.normal(size=IMAGES.shape), jnp.float32) * 0.02
    inside = project(x, IMAGES, 0.05, norm)
    change = np.asarray(inside - IMAGES).reshape(BATCH, -1)
    length = np.abs(change).max(1) if norm == "linf" else np.linalg.norm(change, axis=1)
    assert (length <= 0.05 + 1e-6).all()
    untouched = project(IMAGES + 1e-4, IMAGES, 0.05, norm)
    np.testing.assert_allclose(untouched, IMAGES + 1e-4, atol=1e-6)
    if norm == "l2":  # the same direction, shorter
        before = np.asarray(x - IMAGES).reshape(BATCH, -1)
        direction = before / np.linalg.norm(before, axis=1, keepdims=True)
        np.testing.assert_allclose(change / length[:, None], direction, atol=1e-4)


def test_half_a_step_of_a_file_is_none():
    nearly = IMAGES + 0.9 / 255
    np.testing.assert_allclose(as_file(nearly, IMAGES, 0.9 / 255, "linf"), IMAGES, atol=1e-7)
    np.testing.assert_allclose(
        as_file(nearly, IMAGES, 1 / 255, "linf"), IMAGES + 1 / 255, atol=1e-6
    )


def test_the_stronger_of_two_is_taken_picture_by_picture():
    one, other = IMAGES.at[0].add(0.1), IMAGES.at[1].add(0.1)
    best = stronger(linear, LABELS, one, other)
    values = [np.asarray(margin(linear(x), LABELS)) for x in (one, other, best)]
    np.testing.assert_allclose(values[2], np.maximum(values[0], values[1]), rtol=1e-5)
