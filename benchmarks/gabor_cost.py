"""What the Gabor bank costs in a training step, by form, beside the same step without one:

    python benchmarks/gabor_cost.py [--size=128] [--batch_size=64] [--steps=5]

The whole step of `configs/small.py` (augmentation, AdamW and EMA included) on one resident batch;
rounds of the variants alternate, and each is given its best round.
"""

import argparse
import time

import jax
from steps import make_step, random_batch

from configs import small

VARIANTS = {
    "none": {"gabor.mode": "none"},
    "real": {"gabor.response": "real"},
    "magnitude": {"gabor.response": "magnitude"},
    "magnitude, enhance": {"gabor.response": "magnitude", "gabor.mode": "enhance"},
    "magnitude, learnable": {"gabor.response": "magnitude", "gabor.learnable": True},
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
    print(f"| Gabor bank | ms a step | images/s | against {names[0]} |\n| --- | --- | --- | --- |")
    for name, s in best.items():
        print(f"| {name} | {1e3 * s:.1f} | {args.batch_size / s:.1f} | {s / plain - 1:+.1%} |")


def make_run(overrides, size, batch_size):
    """A function that takes n steps and waits for them; compiled and warm."""
    config = small.get_config()
    config.update_from_flattened_dict(overrides)
    config.data.image_size, config.train.batch_size = size, batch_size
    train_step, state, _ = make_step(config)
    batch = random_batch(config)

    def run(steps):
        nonlocal state
        for _ in range(steps):
            state, metrics = train_step(state, batch)
        jax.block_until_ready(metrics)

    run(2)
    return run


if __name__ == "__main__":
    main()
