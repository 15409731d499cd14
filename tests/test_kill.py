"""`kill -9` at any moment costs the steps since the last checkpoint, and nothing else."""

import random
import time

import jax
import numpy as np
import pytest

from mnv4_jax.detector import saved
from tests.processes import Run, checkpoint_steps, digests, losses

EVERY = 5


def kill_at(run, rng, *, inside_a_save):
    """Kills `run` inside a save, or at a random moment after one; whether it was inside one."""
    before = max(checkpoint_steps(run.workdir), default=0)
    deadline = time.monotonic() + 120
    while run.alive() and time.monotonic() < deadline:
        if inside_a_save and run.saving():
            break
        if not inside_a_save and max(checkpoint_steps(run.workdir), default=0) > before:
            time.sleep(rng.uniform(0, 0.3))
            break
    assert run.alive(), run.output()
    run.kill()
    return run.saving()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments_ends_as_if_it_had_not_been(picture_folder, compiled, tmp_path):
    kills = 10
    rng, steps = random.Random(kills), 20 * kills
    fields = {
        "train.steps": steps,
        "train.eval_every_steps": 1000,
        "checkpoint.every_steps": EVERY,
    }
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    with Run(undisturbed, picture_folder, compiled, overrides=fields) as run:
        run.wait()
    inside = committed = 0
    for i in range(kills):
        with Run(killed, picture_folder, compiled, overrides=fields) as run:
            saving = kill_at(run, rng, inside_a_save=i % 2 == 0)
            assert run.resumed_from() == committed
            done = run.step()
        inside += saving
        committed = max(checkpoint_steps(killed), default=0)
        assert done - committed < (2 * EVERY if saving else EVERY + 1), f"kill {i}"
    assert inside >= kills // 2
    assert committed > 0
    with Run(killed, picture_folder, compiled, overrides=fields) as run:
        run.wait()
        assert run.resumed_from() == committed
    assert digests(killed) == digests(undisturbed)
    assert losses(killed) == losses(undisturbed)
    one, other = (saved.load(w, raw=True) for w in (undisturbed, killed))
    assert one.step == other.step == steps
    jax.tree.map(np.testing.assert_array_equal, one.weights, other.weights)
