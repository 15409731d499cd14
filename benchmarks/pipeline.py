"""Compares the input pipeline with a bare loop of the decoder and with PyTorch's DataLoader.

    python benchmarks/pipeline.py --data=$MNV4_DATA/rvf10k [--threads=2] [--out=FILE.json]

The rows "decoded before" are of a warm `data.cache=host`.

256 px JPEG files to uint8 batches of random 224 px crops, without resizing; the same files for all
rows, medians of alternating rounds, the files in the operating system's cache. Without --data it
first writes 1,000 JPEGs of smooth noise. The torch rows need the extra `torch`.
"""

import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import simplejpeg

from input_pipeline import cli
from input_pipeline import slots as slots_lib
from input_pipeline.batches import train_batches
from input_pipeline.sources import FileSource, open_source
from input_pipeline.transforms import Transform

CROP_PX, SIDE_PX = 224, 256  # of a crop, of a picture
_LARGE = 512  # pictures per batch, as for an accelerator


def bare_loop(files: list[bytes] | FileSource, n: int, threads: int) -> float:
    """Images/s of threads that call simplejpeg and drop the result: the upper bound.

    files: encoded pictures in memory, or a source to read them from.
    """

    def run(first: int) -> None:
        for i in range(first, n, threads):
            i %= len(files)
            simplejpeg.decode_jpeg(files[i] if isinstance(files, list) else files.encoded(i))

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(run, range(threads)))
        return n / (time.perf_counter() - start)


def project(source: FileSource, n: int, batch_size: int, threads: int, workers: int) -> float:
    """Images/s of `train_batches` after all its threads have started."""
    arguments = {"batch_size": batch_size, "seed": 0, "threads": threads, "workers": workers}
    with train_batches(source, Transform(CROP_PX, SIDE_PX, "native"), **arguments) as batches:
        return _rate(batches, n, batch_size, warm_up=2 * threads + 2 * workers + 2)


def cached(source: FileSource, n: int, batch_size: int, threads: int) -> float:
    """Images/s of `train_batches` from a warm cache of decoded pictures."""
    transform = Transform(CROP_PX, SIDE_PX, "resize")
    slots = slots_lib.open_for(source, SIDE_PX, "host", 0.0, lambda line: None)
    arguments = {"batch_size": batch_size, "seed": 0, "threads": threads, "slots": slots}
    if slots.filled() < len(source):
        with train_batches(source, transform, **arguments) as batches:
            for _ in range(-(-len(source) // batch_size)):
                next(batches)
    slots.complete()  # checks every slot, like the first epoch of a run
    with train_batches(source, transform, **arguments) as batches:
        return _rate(batches, n, batch_size, warm_up=2 * threads + 2)


def torch_loader(
    source: FileSource, n: int, batch_size: int, workers: int, with_pillow: bool
) -> float:
    """Images/s of a DataLoader over the same files with torchvision's transforms.

    with_pillow: decoded by Pillow, as torchvision's ImageFolder does; else by torchvision itself.
    """
    import torch

    dataset = _TorchFiles(source, with_pillow)
    endless = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=1 << 30)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch_size, num_workers=workers, sampler=endless
    )
    # Each worker loads two batches ahead; these must not count.
    return _rate(iter(loader), n, batch_size, warm_up=4 * workers)


class _TorchFiles:
    """A torch dataset."""

    def __init__(self, source: FileSource, with_pillow: bool):
        from torchvision.transforms import v2

        crop = v2.RandomCrop(CROP_PX)
        self.transform = v2.Compose([crop, v2.PILToTensor()]) if with_pillow else crop
        self.source = source
        self.with_pillow = with_pillow

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int):
        if self.with_pillow:
            from PIL import Image

            picture = Image.open(self.source.ids[i]).convert("RGB")
        else:
            from torchvision.io import ImageReadMode, decode_jpeg, read_file

            picture = decode_jpeg(read_file(self.source.ids[i]), mode=ImageReadMode.RGB)
        return self.transform(picture), int(self.source.labels[i])


def _rate(batches, n: int, batch_size: int, warm_up: int) -> float:
    for _ in range(warm_up):
        next(batches)
    count = -(-n // batch_size)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * batch_size / (time.perf_counter() - start)


def _write_noise(folder: str, n: int = 1000) -> FileSource:
    """256 px JPEGs of quality 75, about as large as those of faces (12 kB)."""
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = rng.integers(0, 256, (32, 32, 3), np.uint8)
        pixels = cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_CUBIC)
        pathlib.Path(folder, f"{i}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, 75))
    return FileSource([os.path.join(folder, f"{i}.jpg") for i in range(n)], [0] * n)


def main() -> None:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="an image folder; its Train split is used")
    parser.add_argument("--threads", type=int, default=2, help="here; as many workers for torch")
    parser.add_argument("--workers", type=int, default=0, help="also measure so many processes")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=2048, help="in one measurement")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-torch", action="store_true", help="leave the torch rows out")
    parser.add_argument("--out", help="append the result to this file, a line of JSON")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        if args.data:
            found = open_source(args.data, "Train")
            paths = [os.path.join(args.data, name) for name in found.ids]
            source = FileSource(paths, found.labels)
        else:
            source = _write_noise(scratch)
        in_memory = [source.encoded(i) for i in range(len(source))]
        n, batch, threads = args.images, args.batch, args.threads
        rows = {
            "simplejpeg in a bare loop, bytes in memory": lambda: bare_loop(in_memory, n, threads),
            "simplejpeg in a bare loop, files": lambda: bare_loop(source, n, threads),
            "this pipeline": lambda: project(source, n, batch, threads, 0),
            f"decoded before, batches of {_LARGE}, 1 thread": lambda: cached(
                source, 8 * n, _LARGE, 1
            ),
            f"decoded before, batches of {_LARGE}": lambda: cached(source, 8 * n, _LARGE, threads),
        }
        if args.workers:
            name = f"this pipeline, {args.workers} processes"
            each = max(1, threads // args.workers)
            rows[name] = lambda: project(source, n, batch, each, args.workers)
        if not args.no_torch:
            for with_pillow in (True, False):
                name = f"torch DataLoader, {'Pillow' if with_pillow else 'torchvision.io'}"
                rows[name] = lambda p=with_pillow: torch_loader(source, n, batch, threads, p)

        rates: dict[str, list[float]] = {name: [] for name in rows}
        for _, (name, run) in itertools.product(range(args.rounds), rows.items()):
            rates[name].append(run())

    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{threads} threads or processes, batch {batch}, median of {args.rounds} rounds")
    print("| | images/s | lowest to highest | this pipeline is |")
    print("| --- | --- | --- | --- |")
    for name, rate in medians.items():
        spread = f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        print(f"| {name} | {rate:,.0f} | {spread} | {medians['this pipeline'] / rate:.2f}× |")
    if args.out:
        with open(args.out, "a") as file:
            line = {"benchmark": "pipeline", **vars(args), "cores": os.cpu_count(), "rates": rates}
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    cli.run(main)
