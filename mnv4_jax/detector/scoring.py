"""Computes the logits of pictures: every example exactly once, on any number of hosts.

Training, `evaluate` and `predict` all use this code.
"""

import collections
import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np
import rich.console
import rich.progress
from flax import nnx
from jax.sharding import Mesh

from input_pipeline.batches import OnBad, eval_batches
from input_pipeline.sources import Source
from input_pipeline.transforms import ONE_COLOUR, Transform
from mnv4_jax.models.weights import eval_step, split
from mnv4_jax.runtime.mesh import put_batch, replicated

_IN_FLIGHT = 2


_ARRAYS = ("image", "label", "index", "mask", "refused")


def batch_sizes() -> tuple[int, ...]:
    """The numbers of pictures that are scored at once on this backend.

    Few sizes, so that their programs are soon all in the compilation cache.
    """
    return (1, 16) if jax.default_backend() == "cpu" else (1, 16, 128)


class Stopped(Exception):
    """Scoring was told to stop before its end."""


class Scores(NamedTuple):
    """The model's output for N examples, in the order of `index`."""

    logits: np.ndarray  # [N, 2] float, fake and real
    labels: np.ndarray  # [N] int32
    index: np.ndarray  # [N] int32, position in the source; unreadable pictures are missing
    refused: Mapping[int, str] = {}  # position: why this readable picture is missing


@functools.cache
def _compiled(graphdef: nnx.GraphDef, mesh: Mesh):
    def step(weights, batch):
        logits = eval_step(weights, batch["image"], graphdef=graphdef)
        return logits, batch["label"], batch["index"], batch["mask"], batch["refused"]

    # Replicated results: every process can read all of them.
    return jax.jit(step, out_shardings=replicated(mesh))


def score(
    model: nnx.Module,
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
    *,
    least_px: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Scores:
    """Scores every unmasked example of `batches`.

    Args:
      model: a `classifier.Classifier` with its weights; `folded` makes it faster on a CPU.
      batches: this process's part of global batches, as `input_pipeline.batches.eval_batches`
        yields them; every process must bring the same number, of one shape.
      mesh: the devices to split them over; its size must divide the global batch size.
      least_px: the value that `batches` were made with.
      stop: called before each batch; if it returns True, raises Stopped.

    Returns:
      The scores of all processes' examples, the same on each process.
    """
    graphdef, weights = split(model)
    # Go through the host: a loaded checkpoint lies on one device of each process, and device_put
    # would move such arrays between processes.
    everywhere = replicated(mesh)
    weights = jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(everywhere, x, x.shape),
        jax.device_get(weights),
    )
    step = _compiled(graphdef, mesh)
    pending, done = collections.deque(), []
    for batch in batches:
        if stop():
            raise Stopped
        arrays = {name: batch[name] for name in _ARRAYS}
        pending.append(step(weights, put_batch(arrays, mesh)))
        if len(pending) > _IN_FLIGHT:
            done.append(jax.device_get(pending.popleft()))
    done.extend(jax.device_get(list(pending)))
    if not done:
        return Scores(np.zeros((0, 2)), np.zeros(0, np.int32), np.zeros(0, np.int32))
    columns = (np.concatenate(column) for column in zip(*done, strict=True))
    logits, labels, index, mask, refused = columns
    order = np.flatnonzero(mask)
    order = order[np.argsort(index[order], kind="stable")]
    why = {int(index[i]): int(refused[i]) for i in np.flatnonzero(refused)}
    reasons = {i: reason_of(why[i], least_px) for i in sorted(why)}
    return Scores(logits[order], labels[order], index[order], reasons)


def reason_of(refused: int, least_px: int) -> str:
    """The result of `transforms.why_refused` in words."""
    if refused == ONE_COLOUR:
        return "one colour only"
    return f"too small: {refused} px, needs {least_px}"


def score_source(
    model: nnx.Module,
    source: Source,
    transform: Transform,
    mesh: Mesh,
    *,
    description: str = "",
    threads: int = 0,
    workers: int = 0,
    on_bad: OnBad | None = None,
    least_px: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Scores:
    """Scores a whole source in evaluation form. With a `description`, shows a progress bar on a
    terminal.

    Every process must call it. With `least_px` a picture of fewer pixels, or of one colour, gets no
    score: `Scores.refused` says why. Calls `on_bad` with (id, reason) of each picture that this
    process cannot read. `threads` and `workers` as in `train_batches`.
    """
    size = max(b for b in batch_sizes() if b <= max(1, len(source)))
    size = -(-size // mesh.size) * mesh.size
    batches = eval_batches(
        source,
        transform,
        batch_size=size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=threads,
        workers=workers,
        on_bad=on_bad,
        least_px=least_px,
    )
    show = bool(description) and jax.process_index() == 0 and sys.stderr.isatty()
    with batches:
        tracked = rich.progress.track(
            batches,
            description,
            total=-(-len(source) // size),
            console=rich.console.Console(stderr=True),
            disable=not show,
        )
        return score(model, tracked, mesh, least_px=least_px, stop=stop)
