"""One training step of the project against timm and PyTorch, in alternating rounds:

    python benchmarks/train_step.py [--out=FILE.jsonl] [--sizes=128:64,224:32] [--rounds=5]

A resident batch, float32, no augmentation, no Gabor bank. Ours: forward, backward, clipping, AdamW
and EMA, the guard against non-finite steps included. The peer's: the same without EMA and guard,
which favours it; the better of its plain and channels_last layouts counts. CPU seconds (of all
threads, over the cores) stand beside the clock's: they hold on a machine that others use too.
`mnv4_jax.main` keeps freed memory in the process (host_memory.py); PyTorch as it comes does not.
With --keep_freed both do, without it neither: ours as shipped is in the one table, PyTorch as it
comes in the other.
"""

import argparse
import json
import os
import time

import jax
import numpy as np
import timm
import torch
from steps import config_for, make_step, random_batch

from mnv4_jax import host_memory
from mnv4_jax.ops import conv


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="128:64,224:32", help="px:batch, ...")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pure", action="store_true", help="ours without the C++ convolutions too")
    parser.add_argument("--keep_freed", action="store_true", help="as mnv4_jax.main, for all here")
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    if args.keep_freed:
        host_memory.keep_freed()
    print("| px | batch | what | images/s | ms | CPU ms a core | of PyTorch's best | compile s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for pair in args.sizes.split(","):
        size, batch = map(int, pair.split(":"))
        compile_s = {}
        runs = {"mnv4_jax": jax_step(batch, size, None, compile_s, "mnv4_jax")}
        if args.pure:
            runs["mnv4_jax, pure JAX"] = jax_step(
                batch, size, conv.PURE_CPU, compile_s, "mnv4_jax, pure JAX"
            )
        runs["PyTorch"] = torch_step(batch, size, torch.contiguous_format)
        runs["PyTorch channels_last"] = torch_step(batch, size, torch.channels_last)
        clock = {name: [] for name in runs}
        cpu = {name: [] for name in runs}
        for _ in range(args.rounds + 1):
            for name, run in runs.items():
                start, cpu_start = time.perf_counter(), time.process_time()
                run()
                clock[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - cpu_start)
        seconds = {name: float(np.median(times[1:])) for name, times in clock.items()}
        best = min(s for name, s in seconds.items() if name.startswith("PyTorch"))
        for name, s in seconds.items():
            row = {
                "px": size,
                "batch": batch,
                "what": name,
                "images_per_s": round(batch / s, 1),
                "ms": round(1e3 * s, 1),
                "cpu_ms_a_core": round(1e3 * np.median(cpu[name][1:]) / os.cpu_count(), 1),
                "of_best_peer": round(best / s, 2),
                "compile_s": round(compile_s[name], 1) if name in compile_s else "",
            }
            print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
            if args.out:
                with open(args.out, "a") as file:
                    file.write(json.dumps(row) + "\n")


def jax_step(batch, size, form, compile_s, name):
    config = config_for(batch, size)
    compiled, state, compile_s[name] = make_step(config, form)
    images, box = random_batch(config), [state]

    def run():
        box[0], metrics = compiled(box[0], images)
        jax.block_until_ready((box[0], metrics))

    return run


def torch_step(batch, size, layout):
    model = timm.create_model("mobilenetv4_conv_small", num_classes=2, drop_rate=0.2).train()
    model = model.to(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    images = torch.rand(batch, 3, size, size).to(memory_format=layout)
    labels = torch.randint(0, 2, (batch,))

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.05)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return run


if __name__ == "__main__":
    main()
