"""Objectives on a detector whose worst case is known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mnv4_jax.models.weights import fresh_weights
from mnv4_jax.ops import conv, kernels
from mnv4_jax.runtime.mesh import make_mesh, put_batch
from mnv4_jax.training import objectives
from mnv4_jax.training.augment import vary
from mnv4_jax.training.step import Program
from tests.tiny import four_block_config, random_batch

N, SIDE, BUDGET = 8, 4, 3 / 255
RNG = np.random.default_rng(0)
WEIGHTS = jnp.asarray(RNG.normal(size=(SIDE, SIDE, 3)), jnp.float32)
BATCH = {
    "image": jnp.asarray(RNG.uniform(0.2, 0.8, (N, SIDE, SIDE, 3)), jnp.float32),
    "label": jnp.asarray([0, 1] * (N // 2)),
    "position": jnp.arange(1000, 1000 + N, dtype=jnp.uint32),
}
TOWARDS_WRONG = np.where(np.asarray(BATCH["label"]) == 0, -1.0, 1.0)
REACH = float(BUDGET * jnp.abs(WEIGHTS).sum())  # how far the score moves within the budget


class Linear(nnx.Module):
    """Logits (score, -score), the score linear in the pixels."""

    def __init__(self):
        self.weights = nnx.Param(WEIGHTS)

    def __call__(self, images, *, train=False, key=None):
        score = jnp.sum(images * self.weights[...], axis=(1, 2, 3))
        return jnp.stack([score, -score], axis=1)


SCORES = np.asarray(Linear()(BATCH["image"])[:, 0])


def attack(**fields):
    plain = {
        "method": "pgd", "budget": BUDGET, "steps": 3, "step_size": 1.0, "share": 1.0,
        "weight": 1.0, "warmup_pictures": 1.0,
    }  # fmt: skip
    return objectives.Attack(**(plain | fields))


def value(objective, batch=BATCH, **fields):
    run = functools.partial(objective, label_smoothing=0.0, attack=attack(**fields))
    loss, logits = jax.jit(lambda batch: run(Linear(), batch, jax.random.key(0)))(batch)
    assert logits.shape == (N, 2)
    return float(loss)


def losses(scores):
    logits = jnp.stack([jnp.asarray(scores), -jnp.asarray(scores)], axis=1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, BATCH["label"])


def test_consistency_counts_both_views_and_what_damage_changes():
    config = four_block_config()
    config.train.consistency, config.train.label_smoothing = 0.7, 0.0
    objective = objectives.from_config(config)
    clean = jnp.clip(BATCH["image"] + 0.1 * jnp.sign(WEIGHTS), 0, 1)
    loss, logits = objective(Linear(), BATCH | {"clean": clean}, jax.random.key(0))
    clean_scores = np.asarray(Linear()(clean)[:, 0])
    p, q = (jax.nn.sigmoid(2 * jnp.asarray(s)) for s in (clean_scores, SCORES))
    divergence = p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q))
    expected = (losses(SCORES).mean() + losses(clean_scores).mean()) / 2
    assert float(divergence.mean()) > 0.01
    assert float(loss) == pytest.approx(float(expected + 0.7 * divergence.mean()), rel=1e-3)
    np.testing.assert_allclose(logits[:, 0], SCORES, rtol=1e-5)


def test_consistency_pulls_the_damaged_view_and_not_the_clean_one():
    def apart(image, clean):
        run = functools.partial(objectives.consistent, label_smoothing=0.0)
        batch = BATCH | {"image": image, "clean": clean}
        return run(Linear(), batch, None, weight=1.0)[0] - run(Linear(), batch, None, weight=0.0)[0]

    images = BATCH["image"]
    of_damaged, of_clean = jax.grad(apart, (0, 1))(images, images + 0.05)
    assert np.abs(of_clean).max() < 1e-6 < np.abs(of_damaged).max()


def test_the_step_gives_consistency_both_views():
    config = four_block_config()
    config.train.consistency, config.data.jpeg_prob, config.data.jpeg_quality = 1.0, 1.0, (2, 3)
    batch = random_batch()
    ramp = jnp.linspace(0, 1, batch["image"].size).reshape(batch["image"].shape)
    for view, damaged in (("image", True), ("clean", False)):

        def told(model, batch, key, view=view):
            return jnp.sum(ramp * batch[view]), model(batch["image"][:, :8, :8], train=True)

        mesh = make_mesh(jax.devices()[:1])
        program = Program(config, mesh, 1e-3, told)
        state = program.init(fresh_weights(config))
        loss = jax.jit(program.step)(state, put_batch(batch, mesh))[1]["loss"]
        images = jnp.asarray(batch["image"], jnp.float32) / 255
        expected = vary(images, batch["position"], config, damaged=damaged)
        assert float(loss) == pytest.approx(float(jnp.sum(ramp * expected)), rel=1e-5)
    assert np.abs(vary(images, batch["position"], config) - expected).max() > 0.1


def test_the_default_is_the_plain_cross_entropy():
    objective = objectives.from_config(four_block_config())
    loss, _ = objective(Linear(), BATCH, jax.random.key(0))
    smoothed = 0.975 * losses(SCORES) + 0.025 * losses(-SCORES)
    assert objective.func is objectives.cross_entropy
    assert float(loss) == pytest.approx(float(smoothed.mean()), rel=1e-5)


def test_pgd_trains_on_the_worst_case():
    worst = losses(SCORES + TOWARDS_WRONG * REACH)
    assert value(objectives.adversarial) == pytest.approx(float(worst.mean()), rel=1e-4)
    assert float(worst.mean()) > float(losses(SCORES).mean()) + 0.1


@pytest.mark.parametrize(("share", "weight"), [(0.5, 1.0), (0.25, 3.0)])
def test_a_share_of_the_batch_is_attacked_and_weighs_what_it_should(share, weight):
    n = int(share * N)
    moved = SCORES + np.where(np.arange(N) < n, TOWARDS_WRONG * REACH, 0)
    weights = np.where(np.arange(N) < n, weight, 1.0)
    expected = float((weights * losses(moved)).sum() / weights.sum())
    got = value(objectives.adversarial, share=share, weight=weight)
    assert got == pytest.approx(expected, rel=1e-4)


def test_the_budget_grows_from_nothing():
    at = lambda p: BATCH | {"position": jnp.full(N, p, jnp.uint32)}  # noqa: E731
    found = [value(objectives.adversarial, at(p), warmup_pictures=1e4) for p in (0, 4999, 9999)]
    expected = [losses(SCORES + TOWARDS_WRONG * REACH * s).mean() for s in (1e-4, 0.5, 1.0)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_fgsm_goes_one_step_from_noise_of_twice_the_budget():
    # The noise moves a score by at most twice the reach, in both directions; the step by one.
    single = value(objectives.adversarial, method="fgsm")
    lowest, highest = (losses(SCORES + TOWARDS_WRONG * REACH * s).mean() for s in (-1, 3))
    assert float(lowest) < single < float(highest)
    assert single > float(losses(SCORES).mean())
    many = BATCH | {"position": jnp.full(N, 0, jnp.uint32)}
    none = value(objectives.adversarial, many, method="fgsm", warmup_pictures=1e7)
    assert none == pytest.approx(float(losses(SCORES).mean()), rel=1e-3)


def test_trades_adds_the_largest_divergence():
    def divergence(moved):
        p = jax.nn.log_softmax(jnp.stack([SCORES, -SCORES], axis=1))
        q = jax.nn.log_softmax(jnp.stack([moved, -moved], axis=1))
        return np.asarray(jnp.sum(jnp.exp(p) * (p - q), axis=1))

    up, down = divergence(SCORES + REACH), divergence(SCORES - REACH)
    clean = float(losses(SCORES).mean())
    got = value(objectives.trades, method="trades", weight=2.0, steps=8)
    # From a random start each picture climbs one of the two sides.
    assert clean + 2 * np.minimum(up, down).mean() - 1e-4 <= got
    assert got <= clean + 2 * np.maximum(up, down).mean() + 1e-4


@pytest.mark.parametrize("method", ["pgd", pytest.param("trades", marks=pytest.mark.slow)])
def test_a_step_on_attacked_pictures_moves_the_weights_another_way(method):
    config = four_block_config(
        **{
            "train.adversary.method": method,
            "train.adversary.budget": 8.0,
            "train.adversary.warmup_epochs": 0.0,
            "model.zero_init_head": False,
        }
    )
    mesh = make_mesh(jax.devices()[:1])
    batch = random_batch()
    results = []
    for objective in (None, objectives.cross_entropy, None):
        program = Program(config, mesh, 1e-3, objective)
        state = jax.jit(program.init)(fresh_weights(config))
        # As on a CPU with one device: the C++ convolutions have no second derivative.
        with conv.use(conv.KERNEL_CPU if kernels.available("kernels.cc") else conv.PURE_CPU):
            state, metrics = jax.jit(program.step)(state, put_batch(batch, mesh))
        assert np.isfinite(metrics["loss"])
        results.append(jax.device_get(state.weights["decayed"]))
    np.testing.assert_array_equal(results[0], results[2])  # the same keys, the same attack
    assert np.abs(results[0] - results[1]).max() > 1e-4
