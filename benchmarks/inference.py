"""Pictures a second through the network alone, against timm in PyTorch and in onnxruntime:

    python benchmarks/inference.py [--out=FILE.jsonl] [--size=224] [--batches=1,64] [--rounds=7]

The same random weights everywhere, float32, evaluation mode, a resident batch, alternating rounds.
onnxruntime runs PyTorch's export with BatchNorm folded; PyTorch is given its better layout.
"""

import argparse
import json
import os
import tempfile
import time

import jax
import numpy as np
import timm
import torch
from steps import config_for

from mnv4_jax import step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", default="1,64")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    print("| px | batch | what | images/s | ms | CPU ms a core | of PyTorch's best |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for batch in map(int, args.batches.split(",")):
        runs = {
            "mnv4_jax": jax_run(batch, args.size),
            "PyTorch": torch_run(batch, args.size, torch.contiguous_format),
            "PyTorch channels_last": torch_run(batch, args.size, torch.channels_last),
            "onnxruntime": onnx_run(batch, args.size),
        }
        repeats = max(1, 32 // batch)
        clock = {name: [] for name in runs}
        cpu = {name: [] for name in runs}
        for _ in range(args.rounds + 1):
            for name, run in runs.items():
                start, cpu_start = time.perf_counter(), time.process_time()
                for _ in range(repeats):
                    run()
                clock[name].append((time.perf_counter() - start) / repeats)
                cpu[name].append((time.process_time() - cpu_start) / repeats)
        seconds = {name: float(np.median(times[1:])) for name, times in clock.items()}
        best = min(s for name, s in seconds.items() if name.startswith("PyTorch"))
        for name, s in seconds.items():
            row = {
                "px": args.size,
                "batch": batch,
                "what": name,
                "images_per_s": round(batch / s, 1),
                "ms": round(1e3 * s, 2),
                "cpu_ms_a_core": round(1e3 * np.median(cpu[name][1:]) / os.cpu_count(), 2),
                "of_best_peer": round(best / s, 2),
            }
            print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
            if args.out:
                with open(args.out, "a") as file:
                    file.write(json.dumps(row) + "\n")


def jax_run(batch, size):
    config = config_for(batch, size)
    graphdef, weights = step.abstract(config)[0], step.fresh_weights(config)
    weights = jax.device_put(weights)
    images = jax.device_put(np.zeros((batch, size, size, 3), np.uint8))
    forward = jax.jit(lambda weights, images: step.eval_step(weights, images, graphdef=graphdef))
    compiled = forward.lower(weights, images).compile()
    return lambda: jax.block_until_ready(compiled(weights, images))


def torch_run(batch, size, layout):
    model = timm.create_model("mobilenetv4_conv_small", num_classes=2).eval()
    model = model.to(memory_format=layout)
    images = torch.rand(batch, 3, size, size).to(memory_format=layout)

    def run():
        with torch.inference_mode():
            model(images)

    return run


def onnx_run(batch, size):
    import onnxruntime

    model = timm.create_model("mobilenetv4_conv_small", num_classes=2).eval()
    images = torch.rand(batch, 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        torch.onnx.export(model, (images,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


if __name__ == "__main__":
    main()
