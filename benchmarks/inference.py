"""Pictures a second through the network alone, against timm in PyTorch and in onnxruntime:

    python benchmarks/inference.py [--out=FILE.jsonl] [--size=224] [--batches=1,64] [--rounds=7]
        [--model=vit_tiny_patch16_224 | --model=shipped]

Random weights, float32, evaluation mode, a resident batch; alternating rounds, each program in its
own process. `mnv4_jax.evaluate` keeps freed memory in the process (memory.py), so ours does here;
PyTorch is timed without and with that. onnxruntime runs PyTorch's export, with BatchNorm folded.
Ours scores a batch in pieces, as large as `detector/scoring.py` makes them for so many pictures.
"shipped" is the detector in the package with its Gabor bank, exported for the two peers.
"""

import argparse
import functools
import io
import os
import tempfile

import rounds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mobilenetv4_conv_small")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", default="1,64")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    print(rounds.HEADER)
    for batch in map(int, args.batches.split(",")):
        ours, peer, onnx = (
            functools.partial(f, args.model, batch, args.size)
            for f in (jax_run, torch_run, onnx_run)
        )
        channels_last = functools.partial(peer, channels_last=True)
        times = rounds.alternate(
            {
                "mnv4_jax": functools.partial(rounds.kept, ours),
                "PyTorch": peer,
                "PyTorch channels_last": channels_last,
                f"PyTorch channels_last{rounds.KEPT}": functools.partial(
                    rounds.kept, channels_last
                ),
                "onnxruntime": onnx,
            },
            rounds=args.rounds,
            repeats=max(4, 64 // batch),
        )
        rounds.print_rows(times, size=args.size, batch=batch, out=args.out)


def jax_run(name, batch, size):
    import jax
    import numpy as np
    from steps import config_for

    from mnv4_jax.detector import scoring
    from mnv4_jax.detector.detector import Detector
    from mnv4_jax.models import classifier
    from mnv4_jax.models import weights as weights_lib
    from mnv4_jax.models.folded import folded

    if name == "shipped":
        model = Detector().model
    else:
        model = classifier.build(config_for(batch, size, model=name), seed=0)
    graphdef, weights = weights_lib.split(folded(model))
    weights = jax.device_put(weights)
    chunk = max(n for n in scoring.batch_sizes() if n <= batch)
    images = jax.device_put(np.zeros((chunk, size, size, 3), np.uint8))
    forward = jax.jit(
        lambda weights, images: weights_lib.eval_step(weights, images, graphdef=graphdef)
    )
    compiled = forward.lower(weights, images).compile()
    return lambda: jax.block_until_ready(
        [compiled(weights, images) for _ in range(-(-batch // chunk))]
    )


def torch_run(name, batch, size, channels_last=False):
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = _torch_model(name, size).to(memory_format=layout)
    if name == "shipped":
        images = torch.zeros(batch, size, size, 3, dtype=torch.uint8)
    else:
        images = torch.rand(batch, 3, size, size).to(memory_format=layout)

    def run():
        with torch.inference_mode():
            model(images)

    return run


def onnx_run(name, batch, size):
    import onnxruntime
    import torch

    if name == "shipped":
        from mnv4_jax.export import onnx as onnx_export

        graph = onnx_export.export(_shipped())
        images = torch.zeros(batch, size, size, 3, dtype=torch.uint8)
    else:
        images, file = torch.rand(batch, 3, size, size), io.BytesIO()
        program = torch.onnx.export(_torch_model(name, size), (images,), dynamo=True, verbose=False)
        program.save(file)
        graph = file.getvalue()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))  # else it leaves `taskset`'s cores
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


def _torch_model(name, size):
    import timm
    from steps import sized

    if name != "shipped":
        return timm.create_model(name, num_classes=2, **sized(name, size)).eval()
    from mnv4_jax.export import torch_module

    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(_shipped())
        file.flush()
        return torch_module.load(file.name)


def _shipped():
    from mnv4_jax import convert
    from mnv4_jax.detector.detector import Detector

    return convert.to_torch(Detector())


if __name__ == "__main__":
    main()
