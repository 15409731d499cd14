"""Compares the server under load with its scorer alone; measures memory over many requests:

    python -m benchmarks.serve [--clients=1,4,16,32,64] [--seconds=20] [--checkpoint=DIR]
    python -m benchmarks.serve --requests=10000        # memory alone

Clients are coroutines of this process that send requests over loopback without a pause, one picture
each (a drawn portrait of 128 px, or those of --pictures=FOLDER). The scorer alone is a plain loop
in its own process: decode, find faces, score 16 at a time. It is timed before, between and after
the rounds of clients; a row's ratio uses the two timings next to it.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import pathlib
import socket
import statistics
import subprocess
import sys
import time
from urllib.parse import urlsplit

import psutil

from input_pipeline import demo, listing

_BATCH = 16
_ALONE = "from benchmarks import serve; serve.alone()"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", default="1,4,16,32,64")
    parser.add_argument("--seconds", type=float, default=20, help="of each round")
    parser.add_argument("--checkpoint", help="whole pictures by this; default: faces, by the box")
    parser.add_argument("--pictures", help="a folder; default: drawn portraits")
    parser.add_argument("--requests", type=int, help="measure memory over so many")
    args = parser.parse_args()
    pictures = load(args.pictures)
    with server(args.checkpoint) as (address, process):
        asyncio.run(load_for(address, pictures, clients=4, seconds=10))  # compiles
        if args.requests:
            measure_memory(address, process, pictures, args.requests)
        else:
            measure_speed(address, pictures, args)


def load(folder: str | None) -> list[bytes]:
    """Encoded pictures."""
    if folder is None:
        return [demo.draw_jpeg(7, i)[0] for i in range(64)]
    return [pathlib.Path(file).read_bytes() for file in listing.pictures(folder)[:256]]


@contextlib.contextmanager
def server(checkpoint: str | None):
    """(address, process) of `python -m mnv4_jax.serve`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mnv4_jax.serve", f"--port={port}"]
    command += [f"--checkpoint={checkpoint}"] if checkpoint else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip(), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def measure_speed(address: str, pictures: list[bytes], args) -> None:
    print("| clients | images/s | of the scorer alone | p50 ms | p99 ms | refused |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    before = scorer_alone(pictures, args)
    for clients in map(int, args.clients.split(",")):
        seconds, refused = asyncio.run(
            load_for(address, pictures, clients=clients, seconds=args.seconds)
        )
        after = scorer_alone(pictures, args)
        rate, bare = len(seconds) / args.seconds, (before + after) / 2
        p99 = statistics.quantiles(seconds, n=100)[-1]
        print(
            f"| {clients} | {rate:.1f} | {rate / bare:.2f}× of {bare:.1f}"
            f" | {1e3 * statistics.median(seconds):.0f} | {1e3 * p99:.0f} | {refused} |",
            flush=True,
        )
        before = after


def measure_memory(address: str, process, pictures: list[bytes], requests: int) -> None:
    step = max(1, requests // 10)
    for done in range(step, requests + 1, step):
        answered, refused = asyncio.run(load_for(address, pictures, clients=16, requests=step))
        rss = process.memory_info().rss / 2**20
        print(f"{done} requests, {refused} refused in the last {step}: {rss:.0f} MiB", flush=True)
        assert len(answered) + refused == step


async def load_for(address, pictures, *, clients, seconds=1e9, requests=10**9):
    """(seconds of each answered request, number of those refused with 503)."""
    deadline = time.perf_counter() + seconds
    numbers, taken, refused = itertools.count(), [], 0
    url = urlsplit(address)

    async def client():
        nonlocal refused
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        while time.perf_counter() < deadline and (i := next(numbers)) < requests:
            start = time.perf_counter()
            status, body = await ask(reader, writer, pictures[i % len(pictures)])
            if status == 503:
                refused += 1
                continue
            assert status == 200 and json.loads(body)["results"], (status, body)
            taken.append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return taken, refused


async def ask(reader, writer, data: bytes) -> tuple[int, bytes]:
    """Sends one request. Hand-written: a client library would use as much CPU as the server."""
    head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    (length,) = (int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
    return int(lines[0].split()[1]), await reader.readexactly(length)


def scorer_alone(pictures: list[bytes], args) -> float:
    """Images/s of the scorer in its own process."""
    given = [args.checkpoint or "", args.pictures or "", str(args.seconds)]
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, *given], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def alone() -> None:
    """The process that `scorer_alone` starts."""
    from input_pipeline.decode import decode
    from input_pipeline.faces import FaceFinder
    from mnv4_jax.detector.detector import Detector
    from mnv4_jax.detector.views import View, face_views
    from mnv4_jax.runtime import memory

    checkpoint, folder, seconds = sys.argv[1:]
    memory.keep_freed()
    detector = Detector(checkpoint or None)
    finder = None if checkpoint else FaceFinder()
    pictures = itertools.cycle(load(folder or None))

    def batch() -> None:
        decoded = [decode(next(pictures)) for _ in range(_BATCH)]
        views = [
            view
            for pixels in decoded
            for view in (face_views(pixels, finder, keep_crops=True) if finder else [View(pixels)])
        ]
        detector.answers([view.pixels for view in views])

    batch()
    start, n = time.perf_counter(), 0
    while time.perf_counter() < start + float(seconds):
        batch()
        n += _BATCH
    print(n / (time.perf_counter() - start))


if __name__ == "__main__":
    main()
