"""Kills a training run repeatedly, on random numbers of processes and devices; counts failures.

    nice -n 10 python -m benchmarks.soak --kills=200 [--minutes=60]

A run of `tests/small_net.py` is started on 1 to 4 processes of 1 to 4 CPU devices, killed with
SIGKILL, and started again on another number of them until it is finished; then a new run starts.
The kill happens during start-up, training or a save, or to one of several processes first. Every
batch is compared with that of an undisturbed run. Takes about 10 s per kill on two cores.
"""

import collections
import pathlib
import platform
import random
import shutil
import tempfile
import time

import cv2
import numpy as np

from input_pipeline import cli
from mnv4_jax.detector import saved
from tests.processes import Run, checkpoint_steps, read_lines

# (processes, devices of each): relative frequency; four processes on few cores start slowly
SHAPES = {(1, 1): 3, (1, 2): 3, (1, 4): 3, (2, 1): 2, (2, 2): 2, (4, 1): 1}
MOMENTS = ("starting", "training", "saving", "one first")
EVERY = 20
FIELDS = {
    "train.steps": 300,
    "train.eval_every_steps": 150,
    "train.log_every_steps": 1,
    "checkpoint.every_steps": EVERY,
}
_TIMEOUT_S = 300


def main() -> int:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=600, help="end after so many")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, started = random.Random(args.seed), time.monotonic()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="soak-"))
    data, compiled = draw_pictures(folder / "data"), folder / "compiled"

    with Run(folder / "reference", data, compiled, overrides=FIELDS) as run:
        run.wait(timeout_s=900)
    expected = {x["step"]: x["sha256"] for x in read_lines(folder / "reference/digests.jsonl")}
    if len(expected) != FIELDS["train.steps"]:
        raise cli.UserError("the undisturbed run did not write all its digests")

    count = collections.Counter()
    lost, moments, shapes = [], collections.Counter(), collections.Counter()
    minutes = lambda: (time.monotonic() - started) / 60  # noqa: E731
    while sum(moments.values()) < args.kills and minutes() < args.minutes:
        workdir = folder / f"run-{count['finished runs']}"
        ((processes, devices),) = rng.choices(list(SHAPES), SHAPES.values())
        before = max(checkpoint_steps(workdir), default=0)
        shapes[f"{processes}×{devices}"] += 1
        with Run(
            workdir, data, compiled, overrides=FIELDS, processes=processes, devices=devices
        ) as run:
            moment = kill(run, rng)
            output = run.output(1_000_000)
            if run.step() or run.resumed_from():
                count["not from the newest checkpoint"] += run.resumed_from() != before
        count["damaged checkpoints"] += output.count("is damaged")
        count["wrong digests"] += wrong_digests(workdir, expected)
        committed = max(checkpoint_steps(workdir), default=0)
        if moment is None:
            print(f"a process ended by itself:\n{run.output()}", flush=True)
            count["unexpected exits"] += 1
        elif moment == "finished":
            count["damaged checkpoints"] += damaged(workdir)
            count["incomplete runs"] += len(read_lines(workdir / "digests.jsonl")) != len(expected)
            count["finished runs"] += 1
            count["steps"] += FIELDS["train.steps"] - before
            shutil.rmtree(workdir)
            continue
        else:
            moments[moment] += 1
            if run.step():
                lost.append(run.step() - committed)
                count["steps"] += run.step() - before
                count["over the bound"] += lost[-1] >= 2 * EVERY
        if sum(moments.values()) % 10 == 0:
            print(f"{sum(moments.values())} kills, {dict(count)}", flush=True)

    print(table(count, lost, moments, shapes, minutes()))
    shutil.rmtree(folder)
    must_be_zero = (
        "wrong digests",
        "damaged checkpoints",
        "not from the newest checkpoint",
        "incomplete runs",
        "unexpected exits",
        "over the bound",
    )
    return int(any(count[name] for name in must_be_zero))


def kill(run: Run, rng: random.Random) -> str | None:
    """Kills `run`. Returns the moment, "finished" if the run was faster, or None if it failed."""
    moment = rng.choice(MOMENTS)
    deadline = time.monotonic() + _TIMEOUT_S
    if moment == "starting":
        wait(run, rng.uniform(0, 8))
    else:
        while run.alive() and not run.step() and time.monotonic() < deadline:
            time.sleep(0.02)
        if moment == "saving":
            while run.alive() and not run.saving() and time.monotonic() < deadline:
                pass
        else:
            wait(run, rng.uniform(0, 4))
    if not run.alive():
        statuses = [p.wait(_TIMEOUT_S) for p in run.processes]
        return "finished" if not any(statuses) else None
    if moment == "one first":
        rng.choice(run.processes).kill()
        time.sleep(rng.uniform(0, 1))
    run.kill()
    if moment == "saving" and not run.saving():
        moment = "training"  # it was over before it was seen
    return moment


def wait(run: Run, seconds: float) -> None:
    end = time.monotonic() + seconds
    while run.alive() and time.monotonic() < end:
        time.sleep(0.01)


def wrong_digests(workdir: pathlib.Path, expected: dict[int, str]) -> int:
    """Number of batches that differ from the undisturbed run, and of steps that occur twice."""
    lines = read_lines(workdir / "digests.jsonl")
    steps = [line["step"] for line in lines]
    wrong = sum(expected.get(line["step"]) != line["sha256"] for line in lines)
    return wrong + len(steps) - len(set(steps))


def damaged(workdir: pathlib.Path) -> int:
    """Number of checkpoints of a finished run that cannot be loaded."""
    count = 0
    for step in checkpoint_steps(workdir):
        for raw in (False, True):
            try:
                saved.load(workdir / "checkpoints" / str(step), raw=raw)
            except cli.UserError:
                count += 1
    return count


def draw_pictures(root: pathlib.Path) -> pathlib.Path:
    """50 noise pictures for training, 14 for validation."""
    rng = np.random.default_rng(0)
    for split, each in (("Train", 25), ("Validation", 7)):
        for name in ("Fake", "Real"):
            (root / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = rng.integers(0, 256, (48, 48, 3), np.uint8)
                cv2.imwrite(str(root / split / name / f"{i}.png"), pixels)
    return root


def table(count, lost, moments, shapes, minutes) -> str:
    lost = np.array(lost)
    of = lambda counter: ", ".join(f"{v} {k}" for k, v in sorted(counter.items()))  # noqa: E731
    rows = [
        ("kills", f"{sum(moments.values())}: {of(moments)}"),
        ("starts, processes × devices", ", ".join(f"{k}: {v}" for k, v in sorted(shapes.items()))),
        ("steps trained", count["steps"]),
        (f"runs of {FIELDS['train.steps']} steps finished", count["finished runs"]),
        (f"lost steps a kill, saving every {EVERY}", f"mean {lost.mean():.1f}, max {lost.max()}"),
        (f"kills that lost {2 * EVERY} steps or more", count["over the bound"]),
        ("wrong digests", count["wrong digests"]),
        ("damaged checkpoints", count["damaged checkpoints"]),
        ("resumed from another than the newest", count["not from the newest checkpoint"]),
        ("finished runs with a batch missing", count["incomplete runs"]),
        ("processes that ended by themselves", count["unexpected exits"]),
        ("minutes", f"{minutes:.0f}"),
    ]
    head = f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}"
    return "\n".join([f"| {head} | |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in rows)])


if __name__ == "__main__":
    cli.run(main)
