import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from mnv4_jax import sharding, step
from tests.tiny import four_block_config


def random_batch(config, batch_size=8, size=32, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (batch_size, size, size, 3), np.uint8),
        "label": rng.integers(0, 2, batch_size).astype(np.int32),
        "position": np.arange(batch_size, dtype=np.uint32),
    }


class Trainer:
    """A jitted step and a fresh state of a tiny model."""

    def __init__(self, config, devices=1, schedule=1e-3):
        self.mesh = sharding.make_mesh(jax.devices()[:devices])
        optimizer = step.make_optimizer(config, schedule)
        self.config = config
        everywhere = sharding.replicated(self.mesh)
        init = functools.partial(step.init_state, optimizer=optimizer)
        self.state = jax.jit(init, out_shardings=everywhere)(step.fresh_weights(config))
        self.step = jax.jit(
            functools.partial(
                step.train_step,
                model=step.abstract(config),
                optimizer=optimizer,
                config=config,
                mesh=self.mesh,
            ),
            donate_argnums=0,
        )

    def run(self, batch):
        self.state, metrics = self.step(self.state, sharding.put_batch(batch, self.mesh))
        return metrics


@pytest.fixture(scope="module")
def trainer():
    return Trainer(four_block_config())


def test_training_on_one_batch_lowers_its_loss(trainer):
    batch = random_batch(trainer.config)
    losses = [float(trainer.run(batch)["loss"]) for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_non_finite_loss_changes_nothing_but_the_counters(trainer):
    before = jax.device_get(trainer.state)
    broken = jax.tree.map(jnp.copy, trainer.state)
    # An infinite weight makes the loss NaN, whatever the picture.
    kernels = broken.weights["kernels"].at[0].set(jnp.inf)
    broken = dataclasses.replace(broken, weights=broken.weights | {"kernels": kernels})
    expected = jax.device_get(broken)
    after, metrics = trainer.step(
        broken, sharding.put_batch(random_batch(trainer.config), trainer.mesh)
    )
    assert not np.isfinite(metrics["loss"])
    assert int(after.bad_steps) == int(before.bad_steps) + 1
    assert int(after.bad_in_a_row) == 1
    assert int(after.step) == int(before.step) + 1
    for name in ("weights", "ema", "opt_state"):
        jax.tree.map(
            np.testing.assert_array_equal,
            getattr(expected, name),
            jax.device_get(getattr(after, name)),
        )
    # A good step afterwards is counted as such.
    trainer.run(random_batch(trainer.config))
    assert int(trainer.state.bad_in_a_row) == 0


def test_unpacking_undoes_packing():
    weights = step.fresh_weights(four_block_config(**{"gabor.mode": "concat"}))
    number = itertools.count()
    weights = jax.tree.map(lambda x: np.full_like(x, next(number)), weights)
    vectors = step.pack(weights)
    assert sum(v.size for v in vectors.values()) == sum(x.size for x in jax.tree.leaves(weights))
    jax.tree.map(np.testing.assert_array_equal, step.unpack(vectors, weights), weights)


def test_ema_ramps_up():
    decay = [float(step.ema_decay(jnp.int32(t), 0.99)) for t in (0, 90, 10_000)]
    np.testing.assert_allclose(decay, [0.1, 0.91, 0.99], rtol=1e-6)


def test_schedule_warms_up_to_the_peak_and_ends_at_zero():
    config = four_block_config(**{"train.learning_rate": 0.5, "train.warmup_epochs": 2.0})
    schedule = step.learning_rate(config, total_steps=100, steps_per_epoch=5)
    assert float(schedule(0)) == 0
    np.testing.assert_allclose(schedule(10), 0.5)
    np.testing.assert_allclose(schedule(100), 0, atol=1e-8)


def test_weight_decay_spares_biases_and_batch_norm():
    config = four_block_config(**{"train.weight_decay": 0.5, "train.clip_norm": 1e9})
    optimizer = step.make_optimizer(config, 1e-2)
    weights = jax.tree.map(jnp.ones_like, step.fresh_weights(config))
    vectors = step.pack(weights)
    params = {name: vectors[name] for name in ("kernels", "others")}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    updates = step.unpack(updates | {"stats": vectors["stats"]}, weights)["params"]
    for path, update in jax.tree.leaves_with_path(updates):
        decays = path[-1].key == "kernel"
        assert bool(jnp.any(update != 0)) == decays, path


def test_local_batch_norm_on_one_device_equals_global():
    batch = random_batch(four_block_config())
    results = []
    for kind in ("global", "local"):
        trainer = Trainer(four_block_config(**{"model.batch_norm": kind}))
        results.append((float(trainer.run(batch)["loss"]), jax.device_get(trainer.state.weights)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        results[0][1],
        results[1][1],
    )


def test_local_batch_norm_averages_gradients_rather_than_adding_them():
    """SGD shows a factor that Adam hides: a batch of one device's rows repeated on every device
    must give that device's gradients."""
    config = four_block_config(**{"model.batch_norm": "local"})
    one = random_batch(config, batch_size=4)
    one["position"][:] = 0
    four = {name: np.concatenate([value] * 4) for name, value in one.items()}
    grads = []
    for devices, batch in ((1, one), (4, four)):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        assert mesh.axis_types == (AxisType.Auto,)
        put = sharding.put_batch(batch, mesh)
        weights = jax.device_put(step.fresh_weights(config), sharding.replicated(mesh))
        run = jax.jit(
            functools.partial(
                step.gradients, graphdef=step.abstract(config)[0], config=config, mesh=mesh
            )
        )
        images = step.to_float(put["image"])
        grads.append(jax.device_get(run(weights, images, put["label"], jax.random.key(0))[1]))
    norms = [float(optax.global_norm(g)) for g in grads]
    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
