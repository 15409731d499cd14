"""Times programs in alternating rounds, each in its own process.

In one process they would affect each other: they would share an allocator, and PyTorch's threads
spin for a while after their work on the cores of the next program. Here the others are asleep.
"""

import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping

import numpy as np

from mnv4_jax.runtime import memory


@dataclasses.dataclass(frozen=True)
class Times:
    """Medians over the rounds, for one run: wall-clock seconds, CPU seconds of all threads."""

    clock_s: float
    cpu_s: float


def alternate(
    contenders: Mapping[str, Callable[[], Callable[[], None]]], *, rounds: int, repeats: int
) -> dict[str, Times]:
    """Times every program in turn, `rounds` times, after one warm-up round.

    Args:
      contenders: by name, a picklable function that builds a program: called in its process, it
        returns the function to time, which must wait for its own result.
      repeats: runs in a round.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name, build in contenders.items():
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=_serve, args=(build, repeats, theirs), daemon=True))
        processes[-1].start()
        theirs.close()  # so that a dead program raises EOFError here, instead of a hang
        pipes[name].recv()  # built
    measured = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, pipe in pipes.items():
            time.sleep(0.5)
            pipe.send("go")
            measured[name].append(pipe.recv())
    for process in processes:
        process.kill()
        process.join()
    medians = {name: np.median(times[1:], axis=0) for name, times in measured.items()}
    return {name: Times(*map(float, median)) for name, median in medians.items()}


def _serve(build, repeats, pipe):
    run = build()
    run()
    pipe.send("built")
    while pipe.recv():
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            run()
        clock, cpu = time.perf_counter() - start, time.process_time() - cpu_start
        pipe.send((clock / repeats, cpu / repeats))


def kept(build: Callable[[], Callable[[], None]]) -> Callable[[], None]:
    """Like `build`, in a process that keeps freed memory, as `mnv4_jax.main` does."""
    memory.keep_freed()
    return build()


HEADER = (
    "| px | batch | what | images/s | ms | CPU ms a core | of PyTorch as it comes"
    " | of PyTorch, memory kept |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)
KEPT = ", memory kept"


def print_rows(times: Mapping[str, Times], *, size: int, batch: int, out: str) -> None:
    """Prints rows of a table, and writes lines of JSON to the file `out` if it is given.

    The two peers are the fastest whose names start with PyTorch: one without the suffix KEPT, one
    with it.
    """
    peers = {name: t.clock_s for name, t in times.items() if name.startswith("PyTorch")}
    best = min(s for name, s in peers.items() if not name.endswith(KEPT))
    best_kept = min(s for name, s in peers.items() if name.endswith(KEPT))
    for name, t in times.items():
        row = {
            "px": size,
            "batch": batch,
            "what": name,
            "images_per_s": round(batch / t.clock_s, 1),
            "ms": round(1e3 * t.clock_s, 2),
            "cpu_ms_a_core": round(1e3 * t.cpu_s / os.cpu_count(), 2),
            "of_peer": round(best / t.clock_s, 2),
            "of_peer_kept": round(best_kept / t.clock_s, 2),
        }
        print("| " + " | ".join(map(str, row.values())) + " |", flush=True)
        if out:
            with open(out, "a") as file:
                file.write(json.dumps(row) + "\n")
