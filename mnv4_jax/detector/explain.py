"""Which parts of a picture led to the answer: Grad-CAM on the last stage's features.

Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2, for the log-odds of fake. The map is
kept signed: its positive part is Grad-CAM for "fake", its negative part Grad-CAM for "real".
"""

import functools
from collections.abc import Callable, Iterator

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from input_pipeline.sources import Source
from mnv4_jax.detector.detector import Detector
from mnv4_jax.models.vit import Tokens
from mnv4_jax.models.weights import merge, split

# RGB of evidence for fake and for real, as in the report's plots.
FAKE_COLOUR, REAL_COLOUR = (234, 88, 12), (37, 99, 235)


def grad_cam(head: Callable[[jax.Array], jax.Array], features: jax.Array) -> jax.Array:
    """Signed class activation maps.

    Args:
      head: maps features to logits [B, 2], column 0 fake; must treat each example on its own.
      features: [B, h, w, C] floats.

    Returns:
      [B, h, w] float32: each position's features weighted by the mean gradient of the log-odds of
      fake. Positive is evidence for fake.
    """

    def log_odds(features):
        logits = head(features)
        return (logits[:, 0] - logits[:, 1]).sum()

    weights = jax.grad(log_odds)(features).mean(axis=(1, 2))
    return jnp.einsum("bhwc,bc->bhw", features, weights).astype(jnp.float32)


def explain(model: nnx.Module, images: np.ndarray) -> np.ndarray:
    """[B, H, W, 3] uint8 pictures, as `eval_batches` yields them -> [B, h, w] signed maps."""
    graphdef, weights = split(model)
    return np.asarray(_explain(graphdef)(weights, images))


@functools.cache
def _explain(graphdef: nnx.GraphDef):
    @jax.jit
    def run(weights, images):
        model = merge(graphdef, weights)
        features = model.features(images)
        if isinstance(features, Tokens):  # a transformer: tokens without a position stay fixed
            head = lambda grid: model.head(features._replace(grid=grid))  # noqa: E731
            return grad_cam(head, features.grid)
        return grad_cam(model.head, features)

    return run


def explain_source(
    detector: Detector, source: Source
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields (index in `source`, picture [S, S, 3] uint8 as the model sees it, its map [h, w]).

    Uses only the devices of this process. Skips pictures that cannot be read.
    """
    with detector.batches(source, batch_size=8) as batches:
        for batch in batches:
            maps = explain(detector.model, batch["image"])
            for row in np.flatnonzero(batch["mask"]):
                yield int(batch["index"][row]), batch["image"][row], maps[row]


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lays a signed map over its picture: orange is evidence for fake, blue for real.

    Args:
      image: [H, W, 3] uint8.
      heat: [h, w] float, one map of `explain`; scaled by its own largest magnitude.

    Returns:
      [H, W, 3] uint8.
    """
    height, width = image.shape[:2]
    heat = cv2.resize(np.asarray(heat, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    strength = 0.75 * np.abs(heat) / max(np.abs(heat).max(), np.finfo(np.float32).tiny)
    colour = np.where(heat[..., None] > 0, FAKE_COLOUR, REAL_COLOUR)
    # Grey underneath, so that no colour of the picture looks like evidence.
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    mixed = grey * (1 - strength[..., None]) + colour * strength[..., None]
    return np.rint(mixed).astype(np.uint8)
