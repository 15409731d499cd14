"""Size and speed of a detector in each format, and its difference from the JAX model:

    python benchmarks/deploy.py --checkpoint=runs/small

Converts the checkpoint into every format, then runs each in its own process on one core or two, and
prints the table of docs/DEPLOY.md. Latency is for one picture in memory, decoded and of the
evaluation side; p50 and p95 of at least 50 calls after warming up.
"""

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

TARGETS = {
    "JAX": None,
    "PyTorch": "model.safetensors",
    "ONNX fp32": "model.onnx",
    "ONNX int8": "model.int8.onnx",
    "StableHLO": "model.stablehlo",
}
CORES = (1, 2)
PICTURES = 32


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", default="", help="data folder; empty: the demo set")
    parser.add_argument("--target", choices=TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--folder", type=pathlib.Path, help="keep the files here; what is there is used again"
    )
    args = parser.parse_args()
    if args.target:
        # before any library counts the cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
        print(json.dumps(measure(args.target, args.checkpoint, args.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or pathlib.Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "pictures.npy").exists():
            prepare(args.checkpoint, args.data, folder)
        rows = {}
        for target in TARGETS:
            for cores in CORES:
                rows[target, cores] = run_child(target, cores, args.checkpoint, folder)
                print(f"  {target}, {cores} cores", file=sys.stderr, flush=True)
        print_table(rows, folder)


def prepare(checkpoint_path, data, folder):
    """Writes the file of every format, and the pictures, under `folder`."""
    from input_pipeline.sources import open_source
    from mnv4_jax import convert
    from mnv4_jax.detector.detector import Detector
    from mnv4_jax.export import onnx as onnx_export
    from mnv4_jax.export import stablehlo

    detector = Detector(checkpoint_path)
    (folder / TARGETS["PyTorch"]).write_bytes(convert.to_torch(detector))
    (folder / TARGETS["StableHLO"]).write_bytes(stablehlo.stablehlo(detector))
    model = onnx_export.export((folder / TARGETS["PyTorch"]).read_bytes())
    (folder / TARGETS["ONNX fp32"]).write_bytes(model)
    quantized = onnx_export.quantize(model, detector, data)
    (folder / TARGETS["ONNX int8"]).write_bytes(quantized)
    onnx_export.print_accuracy_lost(model, quantized, detector, data)
    source = open_source(data, "Validation")
    every = max(1, len(source) // PICTURES)
    images = [
        image
        for batch in detector.batches(source, batch_size=PICTURES)
        for image in batch["image"][batch["mask"]]
    ]
    pictures = np.stack(images[::every][:PICTURES])
    np.save(folder / "pictures.npy", pictures)
    _, side, _, _ = pictures.shape
    name, gabor = detector.config.model.name, detector.config.gabor
    print(f"{name}, Gabor {gabor.mode}, {gabor.response}, {side} px, step {detector.step}")


def run_child(target, cores, checkpoint_path, folder):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": str(cores),
        "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parents[1]), *sys.path[1:]]),
    }
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, __file__, f"--target={target}", f"--cores={cores}"]
    result = subprocess.run(
        [*command, f"--folder={folder}", f"--checkpoint={checkpoint_path}"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def measure(target, checkpoint_path, folder):
    """{"p50_ms", "p95_ms", "images_per_s", "p_fake"} of one target in this process."""
    pictures = np.load(folder / "pictures.npy")
    ask = loader(target)(checkpoint_path if target == "JAX" else folder / TARGETS[target])
    one = pictures[:1]
    for _ in range(5):
        ask(one)
    latencies = []
    stop = time.perf_counter() + 2
    while len(latencies) < 50 or time.perf_counter() < stop:
        start = time.perf_counter()
        ask(one)
        latencies.append(1e3 * (time.perf_counter() - start))
    p_fake = ask(pictures)
    calls, start = 0, time.perf_counter()
    while time.perf_counter() < start + 2:
        ask(pictures)
        calls += 1
    return {
        "p50_ms": np.percentile(latencies, 50),
        "p95_ms": np.percentile(latencies, 95),
        "images_per_s": calls * len(pictures) / (time.perf_counter() - start),
        "p_fake": p_fake.tolist(),
    }


def loader(target):
    """A function from a path to a function from uint8 pictures to p_fake."""
    return {
        "JAX": load_jax,
        "PyTorch": load_torch,
        "ONNX fp32": load_onnx,
        "ONNX int8": load_onnx,
        "StableHLO": load_stablehlo,
    }[target]


def load_jax(path):
    from mnv4_jax.runtime import memory

    memory.keep_freed()  # as `predict` does
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from mnv4_jax.detector.detector import Detector

    detector = Detector(path)
    graphdef, state = nnx.split(detector.folded)

    @jax.jit
    def p_fake(state, pictures):
        logits = nnx.merge(graphdef, state, copy=True)(pictures.astype(jnp.float32) / 255)
        return jax.nn.softmax(logits / detector.temperature)[:, 0]

    return lambda pictures: np.asarray(p_fake(state, pictures))


def load_stablehlo(path):
    import jax
    import jax.export

    call = jax.jit(jax.export.deserialize(path.read_bytes()).call)
    return lambda pictures: np.asarray(call(pictures))


def load_torch(path):
    import torch

    from mnv4_jax.export.torch_module import load

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    detector = load(path)

    def p_fake(pictures):
        with torch.inference_mode():
            return detector(torch.from_numpy(pictures)).numpy()

    return p_fake


def load_onnx(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(None, {"pictures": pictures})[0]


def print_table(rows, folder):
    print(f"{datetime.date.today()}, {processor()}")
    print(
        "| target | file, MB | 1 core: p50, p95 ms | images/s at batch 32"
        " | 2 cores: p50, p95 ms | images/s at batch 32 | max &#124;Δ p_fake&#124; |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    expected = np.array(rows["JAX", 1]["p_fake"])
    for target, file in TARGETS.items():
        size = f"{(folder / file).stat().st_size / 1e6:.1f}" if file else "–"
        cells = []
        for cores in CORES:
            row = rows[target, cores]
            cells += [f"{row['p50_ms']:.1f}, {row['p95_ms']:.1f}", f"{row['images_per_s']:.0f}"]
        answers = [np.array(rows[target, cores]["p_fake"]) for cores in CORES]
        off = max(np.abs(answer - expected).max() for answer in answers)
        print(f"| {target} | {size} | {' | '.join(cells)} | {off:.1e} |")


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


if __name__ == "__main__":
    main()
