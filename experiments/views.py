"""Tests whether scoring several views of a picture helps. Prints the table of docs/RESULTS.md.

    python experiments/views.py --checkpoint=runs/rvf10k_long --data=$MNV4_DATA/rvf10k

Logits of the views are averaged. All views are as large as a training crop, except the whole
picture.
"""

import dataclasses
import functools

import numpy as np

from input_pipeline import cli
from input_pipeline.sources import open_source
from mnv4_jax.detector import scoring
from mnv4_jax.detector.detector import Detector
from mnv4_jax.measure.metrics import binary_metrics
from mnv4_jax.runtime.mesh import make_mesh


def crop(images: np.ndarray, size: int, y: float, x: float) -> np.ndarray:
    """[B, H, W, 3] -> [B, size, size, 3]; y and x from 0, the top left, to 1."""
    top, left = int(y * (images.shape[1] - size)), int(x * (images.shape[2] - size))
    return images[:, top : top + size, left : left + size]


def middle(images, size):
    return crop(images, size, 0.5, 0.5)


def mirrored(images, size):
    return middle(images, size)[:, :, ::-1]


def whole(images, size):
    del size
    return images


CORNERS = [functools.partial(crop, y=y, x=x) for y in (0, 1) for x in (0, 1)]
ROWS = {
    "the middle": [middle],
    "and mirrored": [middle, mirrored],
    "four corners": CORNERS,
    "all six": [middle, mirrored, *CORNERS],
    "the whole picture": [whole],
}


def main() -> None:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True, help="an image folder")
    args = parser.parse_args()
    detector = Detector(args.checkpoint)
    size = detector.config.data.image_size
    detector.transform = dataclasses.replace(detector.transform, size=detector.transform.shorter_px)
    mesh = make_mesh()

    def logits(source, view):
        with detector.batches(source, batch_size=16) as batches:
            seen = (b | {"image": np.ascontiguousarray(view(b["image"], size))} for b in batches)
            return scoring.score(detector.folded, seen, mesh)

    columns = []
    for split in ("Validation", "Test"):
        source = open_source(args.data, split)
        scores = {view: logits(source, view) for view in [*ROWS["all six"], whole]}
        labels = scores[whole].labels
        columns.append([])
        for views in ROWS.values():
            mean = np.mean([scores[view].logits for view in views], axis=0)
            found = binary_metrics(labels, mean)
            columns[-1].append(f"{found['auc']:.4f}, {found['accuracy']:.3f}")
    print("| views | Validation AUC, accuracy | Test AUC, accuracy |\n| --- | --- | --- |")
    for name, *cells in zip(ROWS, *columns, strict=True):
        print("|", " | ".join([name, *cells]), "|")


if __name__ == "__main__":
    cli.run(main)
