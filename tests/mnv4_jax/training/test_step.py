import concurrent.futures
import dataclasses
import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from mnv4_jax.models import classifier
from mnv4_jax.models import weights as weights_lib
from mnv4_jax.runtime.mesh import make_mesh, put_batch, replicated
from mnv4_jax.training import objectives
from mnv4_jax.training import optimizer as optimizer_lib
from mnv4_jax.training.step import Program, gradients
from tests.tiny import four_block_config, random_batch


class Trainer:
    """A jitted step and a fresh state of a tiny model."""

    def __init__(self, config, devices=1, schedule=1e-3):
        self.mesh = make_mesh(jax.devices()[:devices])
        self.config = config
        self.program = Program(config, self.mesh, schedule)
        everywhere = replicated(self.mesh)
        init = jax.jit(self.program.init, out_shardings=everywhere)
        self.state = init(weights_lib.fresh_weights(config))
        self.step = jax.jit(self.program.step, donate_argnums=0)

    def run(self, batch):
        self.state, metrics = self.step(self.state, put_batch(batch, self.mesh))
        return metrics


@pytest.fixture(scope="module")
def trainer():
    return Trainer(four_block_config())


_HASH_OF_PROGRAM = """
import hashlib
from tests.mnv4_jax.training.test_step import Trainer, four_block_config, random_batch
trainer = Trainer(four_block_config())
text = trainer.step.lower(trainer.state, random_batch()).as_text()
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_every_process_traces_the_same_program():
    """Whatever the order of its sets: hosts must agree, and the cache of programs must find it."""

    def hash_of_program(seed):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", _HASH_OF_PROGRAM]
        return subprocess.check_output(command, env=environment, timeout=120)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert len(set(pool.map(hash_of_program, "123"))) == 1


def test_training_on_one_batch_lowers_its_loss(trainer):
    batch = random_batch()
    losses = [float(trainer.run(batch)["loss"]) for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_non_finite_loss_changes_nothing_but_the_counters(trainer):
    before = jax.device_get(trainer.state)
    broken = jax.tree.map(jnp.copy, trainer.state)
    # An infinite weight makes the loss NaN, whatever the picture.
    kernels = broken.weights["decayed"].at[0].set(jnp.inf)
    broken = dataclasses.replace(broken, weights=broken.weights | {"decayed": kernels})
    expected = jax.device_get(broken)
    after, metrics = trainer.step(broken, put_batch(random_batch(), trainer.mesh))
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
    two = jax.device_put(jnp.int32(2), replicated(trainer.mesh))
    trainer.state = dataclasses.replace(trainer.state, bad_in_a_row=two)
    trainer.run(random_batch())
    assert int(trainer.state.bad_in_a_row) == 0


@pytest.fixture(scope="module")
def regularised():
    """A trainer with everything on that a step may do to the loss and the gradient."""
    return Trainer(
        four_block_config(
            **{
                "model.zero_init_head": False,
                "model.drop_rate": 0.5,
                "train.label_smoothing": 0.2,
                "train.clip_norm": 1e-3,
                "augment.brightness": 0.4,
            }
        )
    )


def step_once(trainer, batch, **fields):
    """(state before, after, metrics) of one step that leaves the trainer's state as it is."""
    state = dataclasses.replace(jax.tree.map(jnp.copy, trainer.state), **fields)
    before = jax.device_get(state)
    after, metrics = trainer.step(state, put_batch(batch, trainer.mesh))
    return before, jax.device_get(after), jax.device_get(metrics)


def test_the_same_pictures_at_other_positions_are_varied_otherwise(regularised):
    batch = random_batch()
    moved = batch | {"position": batch["position"] + 1000}
    logits = [step_once(regularised, b)[2]["logits"] for b in (batch, batch, moved)]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.abs(logits[0] - logits[2]).max() > 1e-3


def test_every_step_drops_other_features(regularised):
    batch = random_batch()
    logits = [step_once(regularised, batch, step=jnp.int32(at))[2]["logits"] for at in (5, 5, 6)]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.abs(logits[0] - logits[2]).max() > 1e-3


def test_the_loss_is_the_cross_entropy_with_smoothed_labels(regularised):
    batch = random_batch()
    _, _, metrics = step_once(regularised, batch)
    logits = metrics["logits"].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = np.where(np.arange(2) == batch["label"][:, None], 0.9, 0.1)
    assert metrics["loss"] == pytest.approx(-(targets * log_p).sum(1).mean(), rel=1e-5)


def test_the_average_moves_towards_the_new_weights_by_its_decay(regularised):
    # At step 0 the decay is 1 / 10, whatever the config says.
    before, after, _ = step_once(regularised, random_batch())
    for name, new in after.weights.items():
        assert np.abs(after.ema[name] - before.ema[name]).max() > 1e-5, name
        expected = 0.1 * before.ema[name] + 0.9 * new
        np.testing.assert_allclose(after.ema[name], expected, rtol=1e-4, atol=1e-6)


def test_adam_sees_the_gradient_clipped(regularised):
    _, after, metrics = step_once(regularised, random_batch())
    assert metrics["grad_norm"] > 1e-2  # ten times what is allowed
    (adam,) = [s for s in after.opt_state if isinstance(s, optax.ScaleByAdamState)]
    # Adam's first mean is a tenth of the gradient it got.
    assert float(optax.global_norm(adam.mu)) == pytest.approx(1e-4, rel=1e-3)


def test_a_clipped_step_moves_the_weights_by_what_optax_says():
    config = four_block_config(**{"train.weight_decay": 0.0, "train.clip_norm": 1.0})
    ours, theirs = optimizer_lib.make_optimizer(config, 1e-2), optax.adam(1e-2)
    rng = np.random.default_rng(0)
    params = {"decayed": jnp.zeros(30), "plain": jnp.zeros(10)}
    states = ours.init(params), theirs.init(params)
    for norm in (0.1, 50.0, 0.5, 2.0):  # Adam forgets a factor that never changes
        vector = rng.normal(size=40).astype(np.float32)
        vector /= np.linalg.norm(vector)
        cut = lambda v: {"decayed": jnp.asarray(v[:30]), "plain": jnp.asarray(v[30:])}  # noqa: E731
        moved, state = ours.update(cut(norm * vector), states[0], params)
        expected, other = theirs.update(cut(min(norm, 1.0) * vector), states[1], params)
        states = state, other
        for name in params:
            np.testing.assert_allclose(moved[name], expected[name], rtol=1e-4, atol=1e-8)


def test_a_non_finite_gradient_under_a_finite_loss_changes_nothing(regularised):
    packing = regularised.program.packing
    weights = packing.unpack(regularised.state.weights)
    # A head this large gives a loss that float32 holds and a gradient whose norm it does not.
    head = lambda x: x * 1e25 if x.shape == (32, 2) else x  # noqa: E731
    params = jax.tree.map(head, weights["params"])
    broken = packing.pack({"params": params, "stats": weights["stats"]})
    before, after, metrics = step_once(regularised, random_batch(), weights=broken)
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
    for name in ("weights", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    assert (int(after.bad_in_a_row), int(after.bad_steps)) == (1, 1)


def test_ema_ramps_up():
    decay = [float(optimizer_lib.ema_decay(jnp.int32(t), 0.99)) for t in (0, 90, 10_000)]
    np.testing.assert_allclose(decay, [0.1, 0.91, 0.99], rtol=1e-6)


def test_schedule_warms_up_to_the_peak_and_ends_at_zero():
    config = four_block_config(**{"train.learning_rate": 0.5, "train.warmup_epochs": 2.0})
    schedule = optimizer_lib.learning_rate(config, total_steps=100, steps_per_epoch=5)
    assert float(schedule(0)) == 0
    np.testing.assert_allclose(schedule(10), 0.5)
    np.testing.assert_allclose(schedule(100), 0, atol=1e-8)


def test_weight_decay_spares_biases_and_batch_norm():
    config = four_block_config(**{"train.weight_decay": 0.5, "train.clip_norm": 1e9})
    program = Program(config, make_mesh(jax.devices()[:1]), 1e-2)
    weights = jax.tree.map(jnp.ones_like, weights_lib.fresh_weights(config))
    params = program.packing.pack({"params": weights["params"]})
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = program.optimizer.update(zero, program.optimizer.init(params), params)
    vectors = program.packing.pack(weights) | updates
    updates = program.packing.unpack(vectors)["params"]
    for path, update in jax.tree.leaves_with_path(updates):
        decays = path[-1].key == "kernel"
        assert bool(jnp.any(update != 0)) == decays, path


def test_local_batch_norm_on_one_device_equals_global():
    batch = random_batch()
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


def _gradients(config, mesh):
    return functools.partial(
        gradients,
        objective=objectives.cross_entropy,
        graphdef=weights_lib.abstract(config)[0],
        batch_norm=config.model.batch_norm,
        mesh=mesh,
    )


def test_local_batch_norm_averages_gradients_rather_than_adding_them():
    """SGD shows a factor that Adam hides: a batch of one device's rows repeated on every device
    must give that device's gradients."""
    config = four_block_config(**{"model.batch_norm": "local"})
    one = random_batch(batch_size=4)
    one["position"][:] = 0
    four = {name: np.concatenate([value] * 4) for name, value in one.items()}
    grads = []
    for devices, batch in ((1, one), (4, four)):
        mesh = make_mesh(jax.devices()[:devices])
        assert mesh.axis_types == (AxisType.Auto,)
        put = put_batch(batch, mesh)
        weights = jax.device_put(weights_lib.fresh_weights(config), replicated(mesh))
        run = jax.jit(_gradients(config, mesh))
        put["image"] = classifier.to_float(put["image"])
        grads.append(jax.device_get(run(weights, put, jax.random.key(0))[1]))
    norms = [float(optax.global_norm(g)) for g in grads]
    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_local_batch_norm_averages_the_statistics_of_all_devices():
    config = four_block_config(**{"model.batch_norm": "local"})
    batch = random_batch(batch_size=16)
    weights = weights_lib.fresh_weights(config)

    def statistics(devices):
        mesh = make_mesh(jax.devices()[:devices])
        run = jax.jit(_gradients(config, mesh))
        everywhere = jax.device_put(weights, replicated(mesh))

        def of(rows):
            put = put_batch({name: value[rows] for name, value in batch.items()}, mesh)
            put["image"] = classifier.to_float(put["image"])
            stats = run(everywhere, put, jax.random.key(0))[2]
            return [np.asarray(x) for x in jax.tree.leaves(jax.device_get(stats))]

        return of

    alone, together = statistics(1), statistics(4)
    each = [alone(slice(start, start + 4)) for start in (0, 4, 8, 12)]
    averaged = [np.mean(arrays, axis=0) for arrays in zip(*each, strict=True)]
    assert max(np.abs(a - b).max() for a, b in zip(averaged, each[0], strict=True)) > 1e-3
    for ours, expected in zip(together(slice(0, 16)), averaged, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", ["global", "local"])
def test_a_state_split_over_devices_trains_as_a_replicated_one(batch_norm):
    """In float64, over 20 steps, weights, moments and average."""
    with jax.enable_x64(True):
        ends, held = {}, {}
        for split in (False, True):
            config = four_block_config(
                **{"model.dtype": "float64", "model.batch_norm": batch_norm, "gabor.mode": "concat"}
            )
            config.train.shard_state = split
            mesh = make_mesh()
            # Adam magnifies the rounding of another order of sums, the more the larger its steps
            # are: at a rate of 1e-2, 2e-11 after 4 steps and 5e-9 after 19.
            program = Program(config, mesh, 1e-3)
            places = program.shardings()
            state = jax.jit(program.init, out_shardings=places)(weights_lib.fresh_weights(config))
            held[split] = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
            step = jax.jit(program.step, donate_argnums=0, out_shardings=(places, None))
            for k in range(20):
                batch = {**random_batch(), "position": np.arange(8, dtype=np.uint32) + 8 * k}
                state, metrics = step(state, put_batch(batch, mesh))
            assert np.isfinite(metrics["loss"])
            ends[split] = jax.device_get(jax.jit(program.packing.unpack_state)(state))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
            ends[True],
            ends[False],
        )
        assert held[True] < 0.26 * held[False]  # of four devices


def test_a_split_state_is_gathered_once_and_its_gradients_are_summed_as_ever():
    config = four_block_config(**{"model.batch_norm": "local"})
    counted = {}
    for split in (False, True):
        config.train.shard_state = split
        mesh = make_mesh()
        program = Program(config, mesh, 1e-3)
        places = program.shardings()
        state = jax.eval_shape(program.init, program.like)
        state = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, places
        )
        step = jax.jit(program.step, donate_argnums=0, out_shardings=(places, None))
        text = step.lower(state, put_batch(random_batch(), mesh)).compile().as_text()
        counted[split] = {
            kind: len(re.findall(rf"= .* {kind}(?:-start)?\(", text))
            for kind in ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")
        }
    # Decayed and plain weights, and statistics: one gather each at most.
    assert counted[False]["all-gather"] == 0
    assert 1 <= counted[True]["all-gather"] <= 3
    # One for gradients and statistics, one for the norm that clips what is split.
    assert counted[True]["all-reduce"] <= counted[False]["all-reduce"] + 2
    assert not counted[True]["all-to-all"]
