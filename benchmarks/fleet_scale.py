"""Predicts the time to score 10^8 pictures on clusters where this has not run. Prints:

    MNV4_DATA=… python -m benchmarks.fleet_scale [--pictures=1e8] [--checkpoint=DIR]

First the rates, measured here in one process each: decoding, scoring, listing, and the driver's
work per row, task and shard. Then, for each cluster, arithmetic (every core busy, nothing waits)
beside a simulation, task by task: the driver starts and collects one task after the other, task
times vary, and Spot machines are lost. It assumes cores as fast as here, and the GPU rates in
CLUSTERS; neither was measured there.
"""

import argparse
import dataclasses
import heapq
import math
import os
import pathlib
import random
import resource
import statistics
import tempfile
import time

import numpy as np
import psutil

from benchmarks.fleet import find_files
from input_pipeline import cli

_BLOCK_BYTES = 32 << 20  # from decode tasks to scorers, as in mnv4_jax/fleet/decoding.py
_CHUNK = 2560  # pictures in a decode task of a large job
_SHARD = 10_000


@dataclasses.dataclass(frozen=True)
class Cluster:
    """`price`: US dollars an hour and machine, assumed; `gpu_rate`: pictures/s that one GPU scores,
    assumed, or 0: scored on the cores."""

    name: str
    machines: int
    cores: int
    price: float
    gpu_rate: float = 0.0


# Neither prices nor the GPU's rate were looked up or measured: use your own.
CLUSTERS = (
    Cluster("8 × 16 cores", 8, 16, 0.78),
    Cluster("64 × 16 cores", 64, 16, 0.78),
    Cluster("512 × 16 cores", 512, 16, 0.78),
    Cluster("8 × (16 cores, 1 GPU)", 8, 16, 1.15, gpu_rate=10_000),
)
_GET_PRICE, _LIST_PRICE = 0.4e-6, 5e-6  # US dollars a request; a listing names 1,000 objects
_STORE_RATE = 5_000  # requests/s that a bucket serves before it throttles


@dataclasses.dataclass(frozen=True)
class Rates:
    """Measured seconds. `list_bytes`: the driver's memory per listed picture."""

    decode_s: float
    score_s: float
    list_s: float
    list_bytes: float
    plan_bytes: float
    row_s: float
    task_s: float
    shard_s: float
    file_bytes: float
    view_bytes: float


def main() -> int:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=float, default=1e8)
    parser.add_argument("--checkpoint")
    args = parser.parse_args()
    rates = measure(args)
    total = int(args.pictures)
    print(rates_table(rates, total))
    print()
    print(clusters_table(rates, total))
    return 0


def measure(args: argparse.Namespace) -> Rates:
    files = find_files()[:2000]
    data = [pathlib.Path(file).read_bytes() for file in files]
    with tempfile.TemporaryDirectory() as folder:
        listing = measure_list(pathlib.Path(folder))
        row_s, shard_s = measure_driver(pathlib.Path(folder))
    decode_s, score_s, view_bytes = measure_pictures(args.checkpoint, data)
    return Rates(
        decode_s,
        score_s,
        *listing,
        row_s,
        measure_task(),
        shard_s,
        statistics.mean(map(len, data)),
        view_bytes,
    )


def measure_pictures(checkpoint: str | None, data: list[bytes]) -> tuple[float, float, int]:
    """CPU seconds per picture to decode and to score, over all threads; bytes between them."""
    from mnv4_jax.detector.detector import Detector
    from mnv4_jax.fleet import decoding, scorer

    card = scorer.card_of(Detector(checkpoint), named=checkpoint is not None)
    decoder = decoding.Decoder(
        "", None, "files", "", card.transform, card.least_px, faces=False, keep_crops=False
    )
    for _ in range(2):  # the first round warms up
        started = time.process_time()
        rows = [(0, i, *decoder.views(one)) for i, one in enumerate(data)]
        decode_s = (time.process_time() - started) / len(data)
    actor = scorer.Scorer(card, False)
    tables = [decoding.as_table(rows[i : i + 160]) for i in range(0, len(rows), 160)]
    actor(tables[0])
    started = time.process_time()
    for table in tables:
        actor(table)
    score_s = (time.process_time() - started) / len(data)
    return decode_s, score_s, 3 * card.transform.size**2


def measure_list(folder: pathlib.Path) -> tuple[float, float, float]:
    """(seconds, bytes of memory, bytes of the plan) per picture of a list, after the first 200,000,
    in which reader and writer allocate their constant memory."""
    _, at_first, _ = list_once(folder, 200_000)
    took, grown, size = list_once(folder, 1_200_000)
    return took / 1_200_000, (grown - at_first) / 1_000_000, size / 1_200_000


def list_once(folder: pathlib.Path, count: int) -> tuple[float, int, int]:
    """(seconds, highest memory of this process so far, bytes of the plan)."""
    from mnv4_jax.fleet import inputs, plan
    from mnv4_jax.fleet.store import Store

    with open(folder / "list.txt", "w") as file:
        for i in range(count):
            file.write(f"gs://archive-of-pictures/2026/11/{i:09d}/photograph.jpg\n")
    store = Store(str(folder / "out"))
    store.make()
    started = time.perf_counter()
    plan.write(inputs.open_input(str(folder / "list.txt")), store, shard_rows=_SHARD)
    took = time.perf_counter() - started
    plan.adopt(store)
    most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return took, most, os.path.getsize(folder / "out" / plan.FILE)


def measure_driver(folder: pathlib.Path) -> tuple[float, float]:
    """(seconds per row, additional seconds per shard) to collect answers and write them."""
    from mnv4_jax.fleet import plan, shards
    from mnv4_jax.fleet.store import Store

    store = Store(str(folder / "out"))
    import pyarrow as pa

    columns = [[0] * _CHUNK, range(_CHUNK), np.random.default_rng(0).random(_CHUNK)]
    answer = pa.table(
        [*map(list, columns), [None] * _CHUNK, [None] * _CHUNK, [None] * _CHUNK],
        schema=shards.ANSWERS,
    )
    started, n = time.perf_counter(), 100
    shard = shards.Shard(n * _CHUNK)
    for i in range(n):
        rows = zip(*(c.to_pylist() for c in answer.columns), strict=True)
        for _, row, *values in rows:
            shard.take(i * _CHUNK + row, tuple(values))
    row_s = (time.perf_counter() - started) / (n * _CHUNK)
    full = shards.Shard(_SHARD, {i: shard.given[i] for i in range(_SHARD)})
    started = time.perf_counter()
    for i in range(5):
        entries = plan.entries(store, i)
        data = shards.encode(
            full, entries, first_row=0, threshold=0.5, checkpoint="0" * 32, job="job"
        )
        store.write(shards.name(i), data)
    return row_s, (time.perf_counter() - started) / 5


def measure_task(tasks: int = 1500) -> float:
    """The driver's seconds per task of Ray Data: empty tasks, and as many calls of an actor."""
    from input_pipeline import engine

    class Nothing:
        def __call__(self, batch):
            return batch

    with engine.running(None) as ray:
        work = ray.data.range(tasks, override_num_blocks=tasks).map_batches(
            lambda batch: batch, batch_size=None, num_cpus=0.5
        )
        work = work.map_batches(
            Nothing, batch_size=None, num_cpus=0.5, compute=ray.data.ActorPoolStrategy(size=2)
        )
        cpu = []
        for _ in work.iter_batches(batch_size=None):
            cpu.append(time.process_time())  # of the driver alone
        half = len(cpu) // 2
        return (cpu[-1] - cpu[half]) / (len(cpu) - half - 1) / 2


def arithmetic_h(rates: Rates, cluster: Cluster, total: int) -> float:
    """Hours with all cores, or all GPUs, busy: the slower of the two."""
    cores = cluster.machines * cluster.cores
    if not cluster.gpu_rate:
        return total * (rates.decode_s + rates.score_s) / cores / 3600
    by_cores = total * rates.decode_s / cores
    return max(by_cores, total / (cluster.machines * cluster.gpu_rate)) / 3600


def simulate(
    rates: Rates, cluster: Cluster, total: int, *, lost_an_hour: float = 0.0, seed: int = 0
) -> tuple[float, float]:
    """(hours, share of them in which the driver is busy).

    A machine works on as many tasks at a time as it has cores. Task times vary by a lognormal
    factor (sigma 0.5); on GPU machines, the GPU takes one task after the other. The driver starts
    tasks and collects answers one at a time, first come first served. `lost_an_hour`: share of the
    machines lost per hour: their tasks are done again, and a new machine comes after five minutes.
    """
    rng = random.Random(seed)
    tasks = -(-total // _CHUNK)
    # Simulate some hundred tasks per core: the others would behave the same.
    shown = min(tasks, 200 * cluster.machines * cluster.cores, 400_000)
    on_core = _CHUNK * (rates.decode_s + (0 if cluster.gpu_rate else rates.score_s))
    on_gpu = _CHUNK / cluster.gpu_rate if cluster.gpu_rate else 0.0
    blocks = math.ceil(_CHUNK * rates.view_bytes / _BLOCK_BYTES)
    in_driver = (1 + blocks) * rates.task_s + _CHUNK * (rates.row_s + rates.shard_s / _SHARD)
    gpu_free = [0.0] * cluster.machines
    driver_free, started, done, end = 0.0, 0, 0, 0.0
    slots = [(0.0, machine) for machine in range(cluster.machines) for _ in range(cluster.cores)]
    heapq.heapify(slots)
    back_at = [0.0] * cluster.machines
    while done < shown:
        free_at, machine = heapq.heappop(slots)
        free_at = max(free_at, back_at[machine])
        driver_free = max(driver_free, free_at) + in_driver
        started += 1
        took = on_core * rng.lognormvariate(-0.125, 0.5)  # of mean 1
        until = driver_free + took
        if on_gpu:
            gpu_free[machine] = max(gpu_free[machine], until) + on_gpu
        if rng.random() < lost_an_hour * took / 3600:
            back_at[machine] = until + 300.0  # this task, and what else ran there, is lost
        else:
            done += 1
            end = max(end, gpu_free[machine] if on_gpu else until)
        # The GPU may lag by two tasks a core, which wait in memory.
        wait = max(until, gpu_free[machine] - 2 * cluster.cores * on_gpu) if on_gpu else until
        heapq.heappush(slots, (wait, machine))
    return end / shown * tasks / 3600, started * in_driver / end


def rates_table(rates: Rates, total: int) -> str:
    rows = [
        ("decoding, CPU ms a picture", f"{1000 * rates.decode_s:.2f}"),
        ("scoring, CPU ms a picture", f"{1000 * rates.score_s:.2f}"),
        ("listing a text list, µs a picture", f"{1e6 * rates.list_s:.1f}"),
        ("the driver's memory, bytes a listed picture", f"{rates.list_bytes:.0f}"),
        ("the plan's file, bytes a picture", f"{rates.plan_bytes:.1f}"),
        ("the driver, µs an answer", f"{1e6 * rates.row_s:.1f}"),
        ("the driver, ms a task or a block", f"{1000 * rates.task_s:.2f}"),
        (f"the driver, ms a shard of {_SHARD:,} rows", f"{1000 * rates.shard_s:.0f}"),
        ("a picture's file, KiB", f"{rates.file_bytes / 1024:.1f}"),
    ]
    head = f"{psutil.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}"
    lines = [f"Measured, {head}:", "", "| rate | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    tib = total * rates.file_bytes / 2**40
    lines += [
        "",
        f"Of {total:.0e} pictures, by arithmetic: {tib:.2f} TiB read;"
        f" {total:.0e} GET requests, {_GET_PRICE * total:,.0f} USD (as files; in Parquet or"
        f" tar some hundred pictures share one);"
        f" {total / 1000:,.0f} requests to list them, {_LIST_PRICE * total / 1000:.2f} USD;"
        f" {rates.list_s * total / 60:.0f} min and {rates.list_bytes * total / 2**30:.1f} GiB to"
        f" list, {rates.plan_bytes * total / 2**30:.1f} GiB of plan.",
    ]
    return "\n".join(lines)


def clusters_table(rates: Rates, total: int) -> str:
    lines = [
        "| cluster | hours: arithmetic | simulated | 5% lost an hour | pictures/s | USD |"
        " read, MB/s | GETs/s, of 5,000 | driver busy |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cluster in CLUSTERS:
        ideal = arithmetic_h(rates, cluster, total)
        hours, busy = simulate(rates, cluster, total)
        spot, _ = simulate(rates, cluster, total, lost_an_hour=0.05)
        rate = total / hours / 3600
        lines.append(
            f"| {cluster.name} | {ideal:.2f} | {hours:.2f} | {spot:.2f} | {rate:,.0f} |"
            f" {hours * cluster.machines * cluster.price:,.0f} |"
            f" {rate * rates.file_bytes / 1e6:,.0f} | {rate / _STORE_RATE:.1f} × | {busy:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
