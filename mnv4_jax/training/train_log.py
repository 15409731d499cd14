"""The training lines of metrics.jsonl, written without making the device wait."""

import collections
import functools
import math
import time
from typing import Any

import jax
import numpy as np

from mnv4_jax.measure.metrics import binary_metrics
from mnv4_jax.training import flops

_IN_FLIGHT = 2  # steps dispatched beyond the one whose metrics are read


class TrainLog:
    """Reads the metrics of each step a few steps later, so that the device never waits.

    Loss is the mean over the global batch. Accuracy and AUC are over the rows of this process, for
    all steps since the last line.

    Attributes:
      bad_in_a_row: the longest run of steps without a finite loss or gradient.
      step: the last step of that run.
    """

    def __init__(self, writer, progress, config, learning_rates, n_devices):
        self._writer, self._progress = writer, progress
        self._config, self._learning_rates, self._n_devices = config, learning_rates, n_devices
        self._pending = collections.deque()
        self._losses, self._logits, self._labels = [], [], []
        self.bad_in_a_row = self.step = 0
        self.restart_clock()

    @functools.cached_property
    def _flops_per_image(self) -> float:
        # Tracing takes a second: not before the first step, nor if the device's peak is unknown.
        known = math.isfinite(flops.peak(jax.devices()[0]))
        return flops.per_image(self._config) if known else math.nan

    def restart_clock(self) -> None:
        """Excludes the time up to now (an evaluation) from the next images/s."""
        self._clock, self._timed_steps = time.perf_counter(), 0

    def add(self, done: int, metrics: dict[str, jax.Array], labels: np.ndarray) -> None:
        self._pending.append((done, metrics, labels))
        while len(self._pending) > _IN_FLIGHT:
            self._read()

    def flush(self) -> None:
        while self._pending:
            self._read()

    def _read(self) -> None:
        done, metrics, labels = self._pending.popleft()
        shards = sorted(
            metrics.pop("logits").addressable_shards, key=lambda s: s.index[0].start or 0
        )
        self._logits.extend(np.asarray(s.data) for s in shards)
        self._labels.append(labels)
        metrics = jax.device_get(metrics)
        self._losses.append(float(metrics["loss"]))
        self._timed_steps += 1
        self._progress.step(done)
        if metrics["bad_in_a_row"] > self.bad_in_a_row:
            self.step, self.bad_in_a_row = done, int(metrics["bad_in_a_row"])
        if done % self._config.train.log_every_steps == 0:
            self._write(done, metrics)

    def _write(self, done: int, metrics: dict[str, Any]) -> None:
        seconds = time.perf_counter() - self._clock
        images_per_s = self._timed_steps * self._config.train.batch_size / seconds
        window = binary_metrics(np.concatenate(self._labels), np.concatenate(self._logits))
        values = {
            "loss": float(np.mean(self._losses)),
            "accuracy": window["accuracy"],
            "auc": window["auc"],
            "images_per_s": images_per_s,
            "images_per_s_per_device": images_per_s / self._n_devices,
            "model_flops_utilisation": flops.utilisation(
                self._flops_per_image * images_per_s / self._n_devices, jax.devices()[0]
            ),
            "learning_rate": float(self._learning_rates[done - 1]),
            "grad_norm": float(metrics["grad_norm"]),
            "bad_steps": int(metrics["bad_steps"]),
        }
        self._writer.write(done, "train", values)
        self._progress.log(done, "train", values)
        self._losses, self._logits, self._labels = [], [], []
        self.restart_clock()
