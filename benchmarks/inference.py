"""Pictures a second through the network alone, against timm in PyTorch and in onnxruntime:

    python benchmarks/inference.py [--out=FILE.jsonl] [--size=224] [--batches=1,64] [--rounds=7]
        [--model=vit_tiny_patch16_224]

Random weights, float32, evaluation mode, a resident batch; alternating rounds, each program in its
own process. `mnv4_jax.evaluate` keeps freed memory in the process (memory.py), so ours does here;
PyTorch is timed without and with that. onnxruntime runs PyTorch's export, with BatchNorm folded.
"""

import argparse
import functools
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


def jax_run(model, batch, size):
    import jax
    import numpy as np
    from steps import config_for

    from mnv4_jax.models import weights as weights_lib

    config = config_for(batch, size, model=model)
    graphdef, weights = weights_lib.abstract(config)[0], weights_lib.fresh_weights(config)
    weights = jax.device_put(weights)
    images = jax.device_put(np.zeros((batch, size, size, 3), np.uint8))
    forward = jax.jit(
        lambda weights, images: weights_lib.eval_step(weights, images, graphdef=graphdef)
    )
    compiled = forward.lower(weights, images).compile()
    return lambda: jax.block_until_ready(compiled(weights, images))


def torch_run(name, batch, size, channels_last=False):
    import timm
    import torch
    from steps import sized

    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = timm.create_model(name, num_classes=2, **sized(name, size)).eval()
    model = model.to(memory_format=layout)
    images = torch.rand(batch, 3, size, size).to(memory_format=layout)

    def run():
        with torch.inference_mode():
            model(images)

    return run


def onnx_run(name, batch, size):
    import onnxruntime
    import timm
    import torch
    from steps import sized

    model = timm.create_model(name, num_classes=2, **sized(name, size)).eval()
    images = torch.rand(batch, 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        torch.onnx.export(model, (images,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


if __name__ == "__main__":
    main()
