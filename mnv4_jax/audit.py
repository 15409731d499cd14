"""Finds shortcuts between sets: python -m mnv4_jax.audit --config=configs/shipped.py

Prints how well each simple property alone separates the fakes of one set from the photographs of
another, on training crops as the network gets them, damaged and augmented. An AUC of 0.5 means no
information; a property far above it can be learned instead of faces. Exit status: 0 done, 2 an
error that the user can fix.
"""

import sys
from collections.abc import Callable

import cv2
import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from sklearn.metrics import roc_auc_score

from input_pipeline import cli, sources
from input_pipeline.batches import train_batches
from input_pipeline.cli import UserError
from input_pipeline.faces import FaceFinder, largest
from input_pipeline.mixtures import Mixture
from mnv4_jax.config import parse_flags, train_transform
from mnv4_jax.models.classifier import to_float
from mnv4_jax.training.augment import vary

flags.DEFINE_integer("pictures", 100, "of each class of each set", lower_bound=2)

_MOST_BATCHES = 400


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _sharpness(image):
    return cv2.Laplacian(_grey(image), cv2.CV_32F).var()


def _high_pass(image):
    grey = _grey(image)
    return np.abs(grey - cv2.GaussianBlur(grey, (0, 0), 1)).mean() / (grey.std() + 1)


def _blockiness(image):
    steps = np.abs(np.diff(_grey(image), axis=1)).mean(0)
    by_phase = [steps[phase::8].mean() for phase in range(8)]
    return max(by_phase) / (np.mean(by_phase) + 1e-6)


def _colour(image):
    return cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1].mean()


class _Framing:
    """Distance of the eyes as a share of the picture's side; nan if no face is found."""

    def __init__(self):
        self._find = FaceFinder()

    def __call__(self, image):
        face = largest(self._find(image))
        if face is None:
            return np.nan
        return np.linalg.norm(face.landmarks[0] - face.landmarks[1]) / image.shape[1]


def main() -> int:
    if {"--help", "-h"} & set(sys.argv):
        print(__doc__, flags.FLAGS.main_module_help())
        return 0
    config = parse_flags(sys.argv, flags.FLAGS)
    source = sources.open_source(config.data.dir, "Train")
    if not isinstance(source, Mixture):
        raise UserError(f"config.data.dir={config.data.dir}: one set; name several, as A,B,C")
    cells = collect(config, source, flags.FLAGS.pictures)
    properties: dict[str, Callable] = {
        "sharpness": _sharpness,
        "high-pass": _high_pass,
        "blockiness": _blockiness,
        "brightness": np.mean,
        "colour": _colour,
        "eye distance": _Framing(),
    }
    values = {
        cell: {name: np.array([of(x) for x in images]) for name, of in properties.items()}
        for cell, images in cells.items()
    }
    print("| fakes of | photographs of |", " | ".join(properties), "|")
    print("|", " --- |" * (2 + len(properties)), sep="")
    for fakes in (c for c in cells if c[1] == 0):
        for reals in (c for c in cells if c[1] == 1):
            row = [told_apart(values[fakes][p], values[reals][p]) for p in properties]
            print(f"| {fakes[0]} | {reals[0]} |", " | ".join(f"{x:.2f}" for x in row), "|")
    return 0


def told_apart(fakes: np.ndarray, reals: np.ndarray) -> float:
    """The AUC of a property, 0.5 to 1, in the better direction; ignores nan."""
    fakes, reals = fakes[np.isfinite(fakes)], reals[np.isfinite(reals)]
    if not len(fakes) or not len(reals):
        return float("nan")
    labels = np.repeat([1, 0], [len(fakes), len(reals)])
    auc = roc_auc_score(labels, np.concatenate([fakes, reals]))
    return float(max(auc, 1 - auc))


def collect(config: ConfigDict, source: Mixture, n: int) -> dict[tuple[str, int], list]:
    """{(set, label): up to n augmented crops [S, S, 3] uint8}; without fakes made by blending."""
    data = config.data
    step = jax.jit(lambda images, position: vary(to_float(images), position, config))
    cells = {
        (source.names[s], int(label)): []
        for s, label in sorted(
            set(zip(source.set_of.tolist(), source.labels.tolist(), strict=True))
        )
    }
    with train_batches(
        source,
        train_transform(data),
        batch_size=config.train.batch_size,
        seed=config.seed,
        webp=data.webp_prob,
        weights=data.weights,
        balance=data.balance,
        threads=data.threads,
        workers=data.workers,
    ) as batches:
        for _ in range(_MOST_BATCHES):
            batch = next(batches)
            images = np.asarray(step(batch["image"], batch["position"]))
            for image, index in zip(images, batch["index"], strict=True):
                cell = cells[source.names[source.set_of[index]], int(source.labels[index])]
                if len(cell) < n:
                    cell.append(np.rint(image * 255).astype(np.uint8))
            if all(len(cell) == n for cell in cells.values()):
                break
    return cells


if __name__ == "__main__":
    cli.run(main)
