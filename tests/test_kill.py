"""`kill -9` at any moment costs the steps since the last checkpoint, and nothing else."""

import random
import re
import time

import jax
import numpy as np
import pytest

from mnv4_jax import checkpoint
from tests.processes import Run, checkpoint_steps, digests, last_step, losses

EVERY = 5


def unfinished(workdir):
    """Saves that have begun and are not committed."""
    return list((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def kill_at(run, rng, *, inside_a_save):
    """Kills `run` at a random moment after its first step; (steps done, was a save under way)."""
    run.wait_for_step(resumed_from(run) + 1)
    deadline = time.monotonic() + (60 if inside_a_save else rng.uniform(0, 0.6))
    while run.alive() and time.monotonic() < deadline:
        if inside_a_save and unfinished(run.workdir):
            break
    run.kill()
    return last_step(run.workdir), bool(unfinished(run.workdir))


def resumed_from(run):
    found = re.findall(r"going on from step (\d+)", run.output())
    return int(found[-1]) if found else 0


@pytest.mark.parametrize(
    "kills",
    [3, pytest.param(10, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_killed_at_random_moments_ends_as_if_it_had_not_been(
    kills, picture_folder, compiled, tmp_path
):
    rng = random.Random(kills)
    fields = {
        "train.steps": 8 * kills,
        "train.eval_every_steps": 1000,
        "checkpoint.every_steps": EVERY,
    }
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    with Run(undisturbed, picture_folder, compiled, overrides=fields) as run:
        run.wait()
    inside = 0
    for i in range(kills):
        with Run(killed, picture_folder, compiled, overrides=fields) as run:
            done, saving = kill_at(run, rng, inside_a_save=i % 2 == 0)
        inside += saving
        committed = max(checkpoint_steps(killed), default=0)
        assert done - committed < (2 * EVERY if saving else EVERY + 1), f"kill {i}"
    assert inside >= kills // 2
    with Run(killed, picture_folder, compiled, overrides=fields) as run:
        run.wait()
        assert resumed_from(run) == committed
    assert digests(killed) == digests(undisturbed)
    assert losses(killed) == losses(undisturbed)
    one, other = (checkpoint.load(w, raw=True) for w in (undisturbed, killed))
    assert one.step == other.step == 8 * kills
    jax.tree.map(np.testing.assert_array_equal, one.weights, other.weights)
