"""How the cost of a step grows with batch and picture size: time, memory, checkpoint. Prints:

    python benchmarks/growth.py [--out=FILE.jsonl] [--points=128:16,128:64,224:16,224:64]

The shipped step without the Gabor bank, on a resident batch. Memory is that of XLA's program
without its arguments. The last lines are the time to write a checkpoint, which depends on neither.
"""

import argparse
import json
import tempfile
import time

import jax
from steps import config_for, make_step, median_s, random_batch

from mnv4_jax.detector import saved
from mnv4_jax.runtime import memory
from mnv4_jax.runtime.mesh import make_mesh
from mnv4_jax.training import checkpoint
from mnv4_jax.training.step import Program


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", default="128:16,128:64,224:16,224:64", help="px:batch, ...")
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    memory.keep_freed()  # as mnv4_jax.main
    print("| px | batch | ms a step | us a picture and 1000 px | temporary MiB |")
    print("| --- | --- | --- | --- | --- |")
    for point in args.points.split(","):
        size, batch = map(int, point.split(":"))
        config = config_for(batch, size)
        compiled, state, _ = make_step(config)
        images, box = random_batch(config), [state]

        def run(compiled=compiled, images=images, box=box):
            box[0], metrics = compiled(box[0], images)
            return metrics

        seconds = median_s(run, jax.block_until_ready)
        row = {
            "px": size,
            "batch": batch,
            "ms": round(1e3 * seconds, 1),
            "us_per_picture_1000_px": round(1e9 * seconds / (batch * size * size), 1),
            "temp_mib": compiled.memory_analysis().temp_size_in_bytes >> 20,
        }
        print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
        if args.out:
            with open(args.out, "a") as file:
                file.write(json.dumps(row) + "\n")
    by_name = jax.jit(Program(config, make_mesh(), 1e-3).packing.unpack_state)
    meta = saved.make_meta(config, calibration=None, metrics=None)
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = checkpoint.Checkpointer(folder, keep=1)
        for number, name in ((1, "first"), (2, "second")):
            start = time.perf_counter()
            checkpointer.save(number, by_name(box[0]), meta, None)
            blocked = time.perf_counter() - start
            checkpointer.wait()
            in_all = time.perf_counter() - start
            print(f"{name} checkpoint: {blocked:.2f} s in the loop, {in_all:.2f} s in all")
        checkpointer.close()


if __name__ == "__main__":
    main()
