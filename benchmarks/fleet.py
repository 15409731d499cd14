"""Compares the rate of `mnv4_jax.score` with the bare detector and with timm. Prints a table:

    MNV4_DATA=… python -m benchmarks.fleet [--pictures=10000] [--rounds=3] [--torch_python=PYTHON]

All run on the cores of this machine, on the same files (rvf10k of $MNV4_DATA, else the demo set,
repeated), with the shipped detector or --checkpoint, without a search for faces; in alternating
rounds, each program in its own process:

- bare: `Detector.score` in one process, as `predict` does;
- score 1, score 2: Ray Data with one and two scorers, decode tasks beside them;
- timm: mobilenetv4_conv_small, a plain loop over PyTorch's DataLoader (--torch_python: an
  interpreter that has timm, if this one has not).

Rates are from the first answer to the last; the time to start has its own column. CPU time and
memory (proportional set size, the maximum) are those of all processes of a program.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import psutil

from input_pipeline import cli, demo

ROOT = pathlib.Path(__file__).parent.parent
_TIMM_PICTURES = 1500  # enough, since its rate is a tenth of the others'
CONTENDERS = ("bare", "score 1", "score 2", "timm")


def main() -> int:
    args = parse()
    if args.child:
        print(json.dumps(CHILDREN[args.child](args)))
        return 0
    folder = tempfile.mkdtemp(prefix="fleet-")
    listed = pathlib.Path(folder, "list.txt")
    found = find_files()
    files = [found[i % len(found)] for i in range(args.pictures)]
    listed.write_text("\n".join(files))
    results: dict[str, list[dict]] = {name: [] for name in CONTENDERS}
    for i in range(args.rounds):
        for name in CONTENDERS:
            out = measure(name, args, listed, pathlib.Path(folder, f"{name[-1]}{i}"))
            if out:
                results[name].append(out)
                print(f"round {i + 1}, {name}: {out['rate']:.0f} pictures/s", file=sys.stderr)
    print(table(results, len(files)))
    return 0


def parse() -> argparse.Namespace:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpoint")
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--list", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=128, help="px, of timm's pictures (128)")
    return parser.parse_args()


def find_files() -> list[str]:
    root = os.environ.get("MNV4_DATA")
    folder = pathlib.Path(root, "rvf10k") if root else demo.ensure_demo()
    return sorted(map(str, pathlib.Path(folder).rglob("*.jpg")))


def measure(name: str, args, listed: pathlib.Path, out: pathlib.Path) -> dict | None:
    """Runs a program and watches its processes; None if it cannot run here."""
    python = args.torch_python if name == "timm" else sys.executable
    command = [python, "-m", "benchmarks.fleet", f"--child={name}", f"--list={listed}"]
    command += [f"--out={out}", f"--size={args.size}"]
    command += [f"--checkpoint={args.checkpoint}"] * bool(args.checkpoint)
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watch = Watch(process.pid)
    said, errors = process.communicate(timeout=1800)
    watch.stop()
    if process.returncode:
        print(f"{name}: {errors.splitlines()[-1] if errors else process.returncode}")
        return None
    found = json.loads(said.splitlines()[-1])
    wall_s = time.monotonic() - started
    cpu_s = watch.cpu_between(found["first"], found["last"])
    n = found["after_first"]
    span_s = found["last"] - found["first"]
    return {
        "rate": n / span_s,
        "cpu_ms": 1000 * cpu_s / n,
        "start_s": wall_s - span_s,
        "mib": watch.most_bytes / 2**20,
    }


class Watch(threading.Thread):
    """CPU time and memory of a process and all its descendants."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self._pid, self._over = pid, threading.Event()
        self._cpu_of: dict[int, float] = {}
        self._seen: list[tuple[float, float]] = []  # time.time(), CPU seconds
        self.most_bytes = 0
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.25):
            n_bytes = 0
            try:
                root = psutil.Process(self._pid)
                processes = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            for process in processes:
                try:
                    times = process.cpu_times()
                    self._cpu_of[process.pid] = times.user + times.system
                    n_bytes += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.most_bytes = max(self.most_bytes, n_bytes)
            self._seen.append((time.time(), sum(self._cpu_of.values())))

    def stop(self) -> None:
        self._over.set()
        self.join()

    def cpu_between(self, first: float, last: float) -> float:
        inside = [cpu for at, cpu in self._seen if first <= at <= last]
        at = [at for at, _ in self._seen if first <= at <= last]
        if len(inside) < 2:
            return float("nan")
        return (inside[-1] - inside[0]) * (last - first) / (at[-1] - at[0])


class Answers:
    """The times at which pictures were answered."""

    def __init__(self):
        self.first = self.last = 0.0
        self.after_first = 0

    def add(self, n: int) -> None:
        self.last = time.time()
        if not self.first:
            self.first = self.last
        else:
            self.after_first += n


def bare(args) -> dict:
    from input_pipeline.sources import FileSource
    from mnv4_jax.detector.detector import Detector
    from mnv4_jax.runtime import memory

    memory.keep_freed()
    files = pathlib.Path(args.list).read_text().split("\n")
    detector, answers = Detector(args.checkpoint), Answers()
    for start in range(0, len(files), 256):  # as predict does
        some = files[start : start + 256]
        detector.score_or_say_why(FileSource(some))
        answers.add(len(some))
    return vars(answers)


def score(scorers: int, args) -> dict:
    from input_pipeline import engine
    from mnv4_jax.fleet import job as jobs

    options = jobs.Options(args.list, args.out, args.checkpoint, scorers=scorers)
    listed = jobs.list_input(options)
    answers = Answers()
    with engine.running(None) as ray:
        job = jobs.open_job(ray, options, listed)
        jobs.run(ray, job, answers.add)
    return vars(answers)


def timm_loop(args) -> dict:
    import timm
    import torch
    from PIL import Image

    files = pathlib.Path(args.list).read_text().split("\n")[:_TIMM_PICTURES]
    model = timm.create_model("mobilenetv4_conv_small", num_classes=2).eval()
    options = timm.data.resolve_data_config({"input_size": (3, args.size, args.size)}, model=model)
    transform = timm.data.create_transform(**options)

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return len(files)

        def __getitem__(self, i):
            with Image.open(files[i]) as image:
                return transform(image.convert("RGB"))

    loader = torch.utils.data.DataLoader(Files(), 64, num_workers=psutil.cpu_count())
    answers = Answers()
    with torch.inference_mode():
        for images in loader:
            model(images).softmax(-1).tolist()
            answers.add(len(images))
    return vars(answers)


CHILDREN = {
    "bare": bare,
    "score 1": lambda args: score(1, args),
    "score 2": lambda args: score(2, args),
    "timm": timm_loop,
}


def table(results: dict[str, list[dict]], count: int) -> str:
    middle = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for name, rows in results.items()
        if rows
    }
    lines = [
        f"{count:,} pictures, {psutil.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}",
        "",
        "| | pictures/s | of bare | CPU ms a picture | over bare | to start, s | MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in middle.items():
        over = row["cpu_ms"] - middle["bare"]["cpu_ms"]
        lines.append(
            f"| {name} | {row['rate']:.0f} | {row['rate'] / middle['bare']['rate']:.2f} |"
            f" {row['cpu_ms']:.1f} | {over:+.1f} | {row['start_s']:.0f} | {row['mib']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
