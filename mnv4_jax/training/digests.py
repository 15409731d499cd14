"""Proof of which batches a run saw."""

import hashlib
import json

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from mnv4_jax.runtime import line_file
from mnv4_jax.training import augment


class Digests:
    """WORKDIR/digests.jsonl: for each step, a hash of its global batch.

    The hash is of the sorted (example id, augmentation key) list, so two runs that saw the same
    batches have the same file, whatever machines they ran on.
    """

    def __init__(
        self, workdir: epath.Path, seed: int, ids: list[str], start_step: int, *, on: bool
    ):
        """Writes nothing unless `on`."""
        self._seed, self._ids, self._on = seed, ids, on
        self._lines = None
        if on and jax.process_index() == 0:
            file = workdir / "digests.jsonl"
            kept = [line for line in line_file.read_lines(file) if line["step"] <= start_step]
            self._lines = line_file.LineFile(file, kept)

    def write(self, done: int, batch: dict[str, np.ndarray]) -> None:
        if not self._on:
            return
        rows = np.stack([batch["index"], batch["position"].astype(np.int64)], axis=1)
        if jax.process_count() > 1:
            rows = multihost_utils.process_allgather(rows, tiled=True)
        if self._lines:
            keys = np.asarray(jax.random.key_data(augment.keys(self._seed, rows[:, 1])))
            names = [self._ids[i] for i in rows[:, 0]]
            listed = sorted(zip(names, (key.tobytes().hex() for key in keys), strict=True))
            digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
            self._lines.append({"step": done, "sha256": digest})

    def flush(self) -> None:
        if self._lines:
            self._lines.flush()
