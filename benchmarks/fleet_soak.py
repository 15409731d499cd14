"""Kills jobs of `mnv4_jax.score` repeatedly, and counts rows that are lost or occur twice.

    nice -n 10 python -m benchmarks.fleet_soak --kills=50 --minutes=30

A job scores a list of pictures, 5% of them unreadable, on its own Ray on this machine. At random
moments a scorer, a decode process or the driver with all of Ray gets SIGKILL; the driver is started
again, on the same folder, until the job is finished. Then a new job starts. Every row is compared
with that of an undisturbed job.
"""

import collections
import pathlib
import platform
import random
import shutil
import tempfile
import time

import psutil
import pyarrow.parquet as pq

from input_pipeline import cli
from mnv4_jax.detector import saved
from mnv4_jax.models import weights as weights_lib
from tests.fleet_job import Job, parts
from tests.pictures import encoded, smooth
from tests.tiny import tiny_config

VICTIMS = ("Scorer", "Decoder", "driver")
_TIMEOUT_S = 300


def main() -> int:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=30, help="end after so many")
    parser.add_argument("--rows", type=int, default=4000, help="of a job")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fleet-soak-"))
    try:
        return soak(args, folder)
    finally:
        shutil.rmtree(folder)


def soak(args, folder: pathlib.Path) -> int:
    rng, started = random.Random(args.seed), time.monotonic()
    detector, listed = write_detector(folder / "detector"), draw(folder / "in", args.rows)
    flags = [f"--input={listed}", f"--checkpoint={detector}", "--shard_rows=200"]
    compiled = folder / "compiled"
    with Job(*flags, f"--out={folder / 'reference'}", compiled=compiled) as job:
        job.end(1)
    expected = {row["row"]: row for row in read(folder / "reference")}

    count, kills = collections.Counter(), collections.Counter()
    minutes = lambda: (time.monotonic() - started) / 60  # noqa: E731
    while kills.total() < args.kills and minutes() < args.minutes:
        out = folder / "out"
        while not one_start([*flags, f"--out={out}"], compiled, out, rng, kills, count):
            if minutes() > args.minutes + 5:
                raise AssertionError("a job does not end")
        compare(read(out), expected, count)
        count["jobs"] += 1
        print(f"{kills.total()} kills, {dict(count)}", flush=True)
        shutil.rmtree(out)
    print(table(count, kills, minutes()))
    return int(any(count[name] for name in MUST_BE_ZERO))


MUST_BE_ZERO = ("rows lost", "rows twice", "rows with another answer", "unexpected exits")


def one_start(flags, compiled, out, rng, kills, count) -> bool:
    """Starts or resumes a job, kills parts of it, and returns whether it reached its end."""
    with Job(*flags, compiled=compiled) as job:
        already, deadline = len(parts(out)), time.monotonic() + _TIMEOUT_S
        goal = already + rng.randint(0, 4)  # shards, until something is killed
        while job.process.poll() is None and time.monotonic() < deadline:
            victim = rng.choice(VICTIMS)
            while job.process.poll() is None and len(parts(out)) < goal:
                time.sleep(0.02)
            if victim == "driver":
                below = [p for p in job.below() if "Agent" not in p.name()]
                job.process.kill()
                job.process.wait(30)
                kills[victim] += 1
                psutil.wait_procs(below, timeout=60)
                return False
            if processes := job.find(victim):
                rng.choice(processes).kill()
                kills[victim] += 1
            goal = len(parts(out)) + rng.randint(1, 6)
            if goal > 20:
                break
        job.process.wait(max(1, deadline - time.monotonic()))
        if job.process.returncode != 1:  # some are unreadable
            print(job.process.communicate()[1], flush=True)
            count["unexpected exits"] += 1
        return True


def compare(found: list[dict], expected: dict[int, dict], count: collections.Counter) -> None:
    times = collections.Counter(row["row"] for row in found)
    count["rows"] += len(found)
    count["rows lost"] += sum(row not in times for row in expected)
    count["rows twice"] += sum(n - 1 for n in times.values())
    for row in found:
        other = expected[row["row"]]
        near = row["p_fake"] == other["p_fake"] or abs(row["p_fake"] - other["p_fake"]) < 1e-5
        same = all(row[name] == other[name] for name in ("path", "error", "reason", "checkpoint"))
        count["rows with another answer"] += not (near and same)


def read(out: pathlib.Path) -> list[dict]:
    return pq.read_table(out / "scores").to_pylist()


def write_detector(workdir: pathlib.Path) -> pathlib.Path:
    """The smallest network, never trained."""
    config = tiny_config(**{"data.image_size": 64, "data.eval_image_size": 64})
    config.model.zero_init_head = False
    saved.write_initial(workdir, config, weights_lib.fresh_weights(config))
    return workdir


def draw(folder: pathlib.Path, rows: int) -> pathlib.Path:
    """A list of `rows` names over 100 pictures, five of which are truncated."""
    folder.mkdir()
    for i in range(100):
        data = encoded(smooth(150 + i, 200, i))
        (folder / f"{i}.jpg").write_bytes(data if i % 20 else data[:90])
    listed = folder / "list.txt"
    listed.write_text("\n".join(str(folder / f"{i % 100}.jpg") for i in range(rows)))
    return listed


def table(count, kills, minutes) -> str:
    rows = [
        ("jobs finished", f"{count['jobs']}"),
        ("rows written", f"{count['rows']:,}"),
        *((f"kills of a {victim.lower()}", f"{kills[victim]}") for victim in VICTIMS),
        ("kills", f"{kills.total()}"),
        *((name, f"{count[name]}") for name in MUST_BE_ZERO),
        ("minutes", f"{minutes:.0f}"),
    ]
    head = f"{platform.machine()}, {psutil.cpu_count()} CPU cores"
    return "\n".join([f"| {head} | |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in rows)])


if __name__ == "__main__":
    cli.run(main)
