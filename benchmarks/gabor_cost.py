"""What the Gabor bank costs in a training step, by mode, beside the same step without one:

    python benchmarks/gabor_cost.py [--size=128] [--batch_size=64] [--steps=5]

The whole step of `configs/small.py` (augmentation, AdamW and EMA included) on one resident batch;
rounds of the variants alternate, and each is given its best round.
"""

import argparse
import functools
import time

import jax
import numpy as np

from configs import small
from mnv4_jax import sharding, step

VARIANTS = {
    "none": {"gabor.mode": "none"},
    "enhance": {"gabor.mode": "enhance"},
    "concat": {"gabor.mode": "concat"},
    "concat, magnitude": {"gabor.mode": "concat", "gabor.response": "magnitude"},
    "concat, learnable": {"gabor.mode": "concat", "gabor.learnable": True},
}
ROUNDS = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", type=int, default=128, help="px")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="a round")
    parser.add_argument("--variants", default=";".join(VARIANTS), help="separated by semicolons")
    args = parser.parse_args()
    names = args.variants.split(";")
    runs = {name: make_run(VARIANTS[name], args.size, args.batch_size) for name in names}
    seconds = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run(args.steps)
            seconds[name].append((time.perf_counter() - start) / args.steps)
    best = {name: min(times) for name, times in seconds.items()}
    plain = best[names[0]]
    device = jax.devices()[0].device_kind
    print(f"{args.size} px, batch {args.batch_size}, {device}, {small.get_config().model.name}")
    print(f"| Gabor | ms a step | images/s | against {names[0]} |\n| --- | --- | --- | --- |")
    for name, s in best.items():
        print(f"| {name} | {1e3 * s:.1f} | {args.batch_size / s:.1f} | {s / plain - 1:+.1%} |")


def make_run(overrides, size, batch_size):
    """A function that takes n steps and waits for them; compiled and warm."""
    config = small.get_config()
    config.update_from_flattened_dict(overrides)
    mesh = sharding.make_mesh(jax.devices()[:1])
    optimizer = step.make_optimizer(config, 1e-3)
    train_step = jax.jit(
        functools.partial(
            step.train_step,
            model=step.abstract(config),
            optimizer=optimizer,
            config=config,
            mesh=mesh,
        ),
        donate_argnums=0,
    )
    init = functools.partial(step.init_state, optimizer=optimizer)
    state = jax.jit(init, out_shardings=sharding.replicated(mesh))(step.fresh_weights(config))
    rng = np.random.default_rng(0)
    batch = sharding.put_batch(
        {
            "image": rng.integers(0, 256, (batch_size, size, size, 3), np.uint8),
            "label": rng.integers(0, 2, batch_size).astype(np.int32),
            "position": np.arange(batch_size, dtype=np.uint32),
        },
        mesh,
    )

    def run(steps):
        nonlocal state
        for _ in range(steps):
            state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)

    run(2)
    return run


if __name__ == "__main__":
    main()
