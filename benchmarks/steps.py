"""Shared by the benchmarks of the training step: the project's own compiled step, and a timer."""

import contextlib
import time

import jax
import numpy as np

from configs import small
from mnv4_jax.models import weights as weights_lib
from mnv4_jax.ops import conv
from mnv4_jax.runtime.mesh import make_mesh
from mnv4_jax.training import optimizer as optimizer_lib
from mnv4_jax.training.step import Program


def median_s(run, finish, *, rounds=5, repeats=1):
    """Median seconds per run, of `repeats` runs that are dispatched together and then awaited."""
    finish(run())  # compiles on first use
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(repeats):
            result = run()
        finish(result)
        times.append((time.perf_counter() - start) / repeats)
    return float(np.median(times))


def config_for(batch_size, size, dtype="auto", model="mobilenetv4_conv_small"):
    config = small.get_config()
    config.model.name = model
    config.data.image_size = size
    config.gabor.mode = "none"
    config.model.dtype = dtype
    config.train.batch_size = batch_size
    for name in config.augment:
        config.augment[name] = type(config.augment[name])(0)
    return config


def sized(name, size):
    """Arguments of timm's `create_model` for the size: only a vision transformer needs them."""
    return {"img_size": size} if name.startswith("vit_") else {}


def make_step(config, form=None):
    """(compiled step, state, seconds to compile) of the project's own train_step."""
    mesh = make_mesh(jax.devices()[:1])
    program = Program(config, mesh, optimizer_lib.learning_rate(config, 1000, 100))
    state = jax.jit(program.init)(weights_lib.fresh_weights(config))
    start = time.perf_counter()
    with conv.use(form) if form else contextlib.nullcontext():
        lowered = jax.jit(program.step, donate_argnums=0).lower(state, random_batch(config))
        compiled = lowered.compile()
    return compiled, state, time.perf_counter() - start


def random_batch(config):
    batch, size = config.train.batch_size, config.data.image_size
    rng = np.random.default_rng(0)
    return jax.device_put(
        {
            "image": rng.integers(0, 256, (batch, size, size, 3), np.uint8),
            "label": rng.integers(0, 2, batch, np.int32),
            "position": np.arange(batch, dtype=np.uint32),
        }
    )
