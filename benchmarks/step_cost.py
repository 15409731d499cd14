"""The cost of parts of a training step, compared with the same step without them:

    python benchmarks/step_cost.py gabor [--size=128] [--batch_size=64] [--steps=5]
    python benchmarks/step_cost.py damage
    python benchmarks/step_cost.py adversary

The whole step of `configs/small.py` (augmentation, AdamW and EMA included) on one resident batch;
rounds of the variants alternate, and each row is the best round.
"""

import argparse
import time

import jax
from steps import make_step, random_batch

from configs import small
from mnv4_jax.runtime import memory

_DAMAGE = {
    "data.jpeg_prob": 0.5,
    "data.downscale_prob": 0.3,
    "augment.blur": 0.7,
    "augment.noise": 0.02,
    "augment.erase": 0.3,
}
_OF_ALL = {"train.adversary.share": 1.0}
GROUPS = {
    "gabor": {
        "no bank": {"gabor.mode": "none"},
        "real": {"gabor.response": "real"},
        "magnitude": {"gabor.response": "magnitude"},
        "magnitude, enhance": {"gabor.response": "magnitude", "gabor.mode": "enhance"},
        "magnitude, learnable": {"gabor.response": "magnitude", "gabor.learnable": True},
    },
    "damage": {
        "no damage": {},
        **{name: {name: value} for name, value in _DAMAGE.items()},
        "all of it": _DAMAGE,
    },
    "adversary": {
        "no attack": {},
        "fgsm": {"train.adversary.method": "fgsm"},
        "pgd, 3 steps": {"train.adversary.method": "pgd"},
        "trades, 3 steps": {"train.adversary.method": "trades"},
        "fgsm on all": {"train.adversary.method": "fgsm", **_OF_ALL},
        "pgd, 3 steps, on all": {"train.adversary.method": "pgd", **_OF_ALL},
        "trades, 3 steps, on all": {"train.adversary.method": "trades", **_OF_ALL},
    },
}
ROUNDS = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--size", type=int, default=128, help="px")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="a round")
    args = parser.parse_args()
    memory.keep_freed()  # as mnv4_jax.main does
    variants = GROUPS[args.group]
    names = list(variants)
    runs = {name: make_run(variants[name], args.size, args.batch_size) for name in names}
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
    print(
        f"| {args.group} | ms a step | images/s | against {names[0]} |\n| --- | --- | --- | --- |"
    )
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
