"""Measures the parts around the step: start-up, input, host time, predict. Prints the table:

  python benchmarks/loop.py [--out=FILE.jsonl] [--batch=64] [--size=128] [--steps=60]

start: `mnv4_jax.main` on the demo set (drawn beforehand) from its process's start to its first
  line in metrics.jsonl, with log_every_steps=1, without and with what the first run compiled
  (XLA's programs, the C++ convolutions);
loop: images/s by metrics.jsonl, decoding included (data.cache=none) and from device memory, against
  the bare step on one batch of the host's (same config, augmentation and Gabor bank included), one
  step at a time, in alternation;
host: what one step costs the host, queue empty: the batch put on the device, the step dispatched;
predict: `mnv4_jax.predict` on one picture, cold process to answer, second run (cache warm).
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import jax
from steps import make_step, median_s, random_batch

from configs import small
from input_pipeline import demo
from mnv4_jax.runtime import memory
from mnv4_jax.runtime.mesh import make_mesh, put_batch


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", default="")
    args = parser.parse_args()

    def report(what, value, unit):
        print(f"| {what} | {value:.4g} {unit} |", flush=True)
        if args.out:
            with open(args.out, "a") as file:
                file.write(json.dumps({"what": what, "value": value, "unit": unit}) + "\n")

    memory.keep_freed()  # as mnv4_jax.main, for the bare step
    print("| what | value |\n| --- | --- |")
    data = demo.ensure_demo()
    with tempfile.TemporaryDirectory() as folder:
        cache = pathlib.Path(folder, "cache")
        cache.mkdir()
        (cache / data.name).symlink_to(data)
        env = os.environ | {"MNV4_CACHE": str(cache)}
        env.pop("JAX_COMPILATION_CACHE_DIR", None)  # that cache would be warm
        for name in ("cold", "warm"):
            report(f"start to first loss, {name}", first_loss_s(folder, name, args, env), "s")
        bare_step, host = make_bare_step(args)
        rates = []  # alternate, since the machine's other load varies
        for i in range(3):
            workdir = os.path.join(folder, f"loop{i}")
            rates.append(
                (
                    loop_rate(workdir, args, env, cache="none"),
                    args.batch / median_s(*bare_step, rounds=20),
                    loop_rate(workdir + "d", args, env, cache="device"),
                )
            )
        loop, bare, resident = map(statistics.median, zip(*rates, strict=True))
        report("loop, decoding included", loop, "images/s")
        report("loop, all pictures in device memory", resident, "images/s")
        report("bare step", bare, "images/s")
        report("loop / bare", statistics.median(x / y for x, y, _ in rates), "")
        report("resident / bare", statistics.median(x / y for _, y, x in rates), "")
        put_s, dispatch_s = map(statistics.median, zip(*host, strict=True))
        report("host time to put a batch", 1e3 * put_s, "ms")
        report("host time to dispatch a step", 1e3 * dispatch_s, "ms")
        picture = str(next(pathlib.Path(data).rglob("*.jpg")))
        command = [sys.executable, "-m", "mnv4_jax.predict"]
        command += [f"--checkpoint={folder}/loop0", picture]
        for name in ("first run", "second run"):
            start = time.perf_counter()
            subprocess.run(command, env=env, check=True, capture_output=True)
            report(f"predict, one picture, {name}", time.perf_counter() - start, "s")


def train_command(workdir, args, *fields):
    return [
        sys.executable,
        *("-m", "mnv4_jax.main", "--config=configs/small.py", f"--workdir={workdir}"),
        f"--config.train.batch_size={args.batch}",
        f"--config.data.image_size={args.size}",
        *(f"--config.{field}" for field in fields),
    ]


def first_loss_s(folder, name, args, env):
    """Seconds from the process's start to the first line of metrics.jsonl; then ends it."""
    workdir = os.path.join(folder, name)
    command = train_command(workdir, args, "train.log_every_steps=1")
    start = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    metrics = pathlib.Path(workdir, "metrics.jsonl")
    try:
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
            time.sleep(0.01)
        return time.perf_counter() - start
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(workdir, ignore_errors=True)


def loop_rate(workdir, args, env, *, cache):
    """Median images/s of the second half of the log lines: with a cache, not the first epoch's."""
    fields = (
        f"train.steps={args.steps}",
        "train.log_every_steps=5",
        f"data.cache={cache}",
        "train.eval_every_steps=100000",
    )
    subprocess.run(train_command(workdir, args, *fields), env=env, check=True, capture_output=True)
    lines = map(json.loads, pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines())
    rates = [line["images_per_s"] for line in lines if line["split"] == "train"]
    return statistics.median(rates[len(rates) // 2 :])


def make_bare_step(args):
    """((runs a step, waits for it), list of its host seconds: batch put, step dispatched)."""
    config = small.get_config()
    config.data.image_size, config.train.batch_size = args.size, args.batch
    compiled, state, _ = make_step(config)
    batch, box, host = jax.device_get(random_batch(config)), [state], []
    mesh = make_mesh(jax.devices()[:1])

    def run():
        start = time.perf_counter()
        arrays = put_batch(batch, mesh)
        put = time.perf_counter()
        box[0], metrics = compiled(box[0], arrays)
        host.append((put - start, time.perf_counter() - put))
        return metrics

    return (run, jax.block_until_ready), host


if __name__ == "__main__":
    main()
