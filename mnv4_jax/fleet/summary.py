"""The summary at the end of a job, counted from its output, with its files summary.json and
scores.png; and the lock of its folder.
"""

import contextlib
import io
from collections.abc import Iterator

import matplotlib.figure
import numpy as np
from etils import epath

from mnv4_jax.fleet import shards
from mnv4_jax.fleet.store import Store
from mnv4_jax.runtime import workdir_lock
from mnv4_jax.runtime.line_file import in_bucket


@contextlib.contextmanager
def held(out: str) -> Iterator[None]:
    """Reserves `out` for this job alone, if its file system has locks."""
    if in_bucket(out):
        yield
        return
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with workdir_lock.hold(folder, flag="--out"):
        yield


def write(store: Store, rows: np.ndarray, threshold: float) -> shards.Summary:
    """Counts all shards of a finished job, and writes the counts beside them."""
    found = shards.Summary.of(store, len(rows))
    store.write("summary.json", found.json().encode())
    store.write("scores.png", _histogram(found, threshold))
    return found


def describe(found: shards.Summary, out: str) -> str:
    parts = [f"{found.rows:,} pictures: {found.scored:,} scored"]
    if found.scored:
        parts.append(f"{found.fake:,} called fake ({found.fake / found.scored:.1%})")
    parts.append(f"{found.unreadable:,} unreadable")
    if found.without_score:
        parts.append(f"{found.without_score:,} without a score")
    return f"{', '.join(parts)}\nin {out}: scores/*.parquet, summary.json, scores.png"


def _histogram(found: shards.Summary, threshold: float) -> bytes:
    figure = matplotlib.figure.Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    edges = np.linspace(0, 1, len(found.histogram) + 1)
    axes.stairs(found.histogram, edges, fill=True)
    axes.axvline(threshold, color="black", linestyle="--", linewidth=1, label="threshold")
    axes.set(xlabel="p_fake", ylabel="pictures", xlim=(0, 1), title=f"{found.scored:,} scored")
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
