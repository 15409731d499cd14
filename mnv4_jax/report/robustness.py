"""Measures a detector on damaged pictures: every kind and level of damage in one pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from input_pipeline.sources import Source
from mnv4_jax.detector.detector import Detector
from mnv4_jax.measure import calibration, metrics
from mnv4_jax.measure.corruptions import CORRUPTIONS, corrupt
from mnv4_jax.report import one_class

_RESAMPLES = 200


class Damaged:
    """The `picks` of another source: undamaged first, then under every kind and level of damage.

    Example `i` is pick `i % len(picks)` under damage `i // len(picks)` of `damages`.
    """

    groups = None

    def __init__(self, source: Source, picks: Sequence[int]):
        self._source, self._picks = source, list(picks)
        self.damages = [("none", 0.0)]
        self.damages += [(kind, level) for kind, c in CORRUPTIONS.items() for level in c.levels]
        self.labels = np.tile(np.asarray(source.labels)[self._picks], len(self.damages))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def ids(self) -> list[str]:
        return [f"{self._source.ids[p]} ({k} {v:g})" for k, v in self.damages for p in self._picks]

    def read(self, i: int) -> np.ndarray:
        damage, pick = divmod(i, len(self._picks))
        kind, level = self.damages[damage]
        pixels = self._source.read(self._picks[pick])
        if kind == "none":
            return pixels
        return corrupt(pixels, kind, level, seed=self._picks[pick])


def choose(labels: np.ndarray, index: np.ndarray, n: int, *, seed: int = 0) -> np.ndarray:
    """About `n` of `index` [N], half of them fake if there are that many; sorted.

    If there is only one class, `n` of that class.

    The AUC and the false-alarm rate do not depend on the share of fakes, so equal halves make the
    best use of a small sample.
    """
    rng = np.random.default_rng(seed)
    halves = [index[labels == label] for label in (metrics.FAKE, metrics.REAL)]
    each = max(1, n // 2 if all(len(half) for half in halves) else n)
    return np.sort(np.concatenate([rng.permutation(half)[:each] for half in halves]))


def sweep(
    detector: Detector,
    source: Source,
    picks: Sequence[int],
    *,
    threshold: float,
    groups: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Scores `picks` under no damage and under every kind and level of `CORRUPTIONS`.

    Every process must call it; all get the same answer.

    Returns:
      One {"kind", "level", "auc": {"value", "ci95"}, "false_alarm_rate"} for each;
      "false_alarm_rate" is the share of real pictures whose calibrated p_fake reaches the fixed
      `threshold`. If `picks` are of one class, the AUC is undefined, and "ci95" is the interval of
      the remaining rate, "false_alarm_rate" or for fakes "recall_fake" (over `groups`
      [len(source)], if given).
    """
    damaged = Damaged(source, picks)
    scores = detector.logits(damaged, description="damaged")
    rows = []
    for i, (kind, level) in enumerate(damaged.damages):
        here = scores.index // len(picks) == i
        logits, labels = scores.logits[here], scores.labels[here]
        called = calibration.p_fake(logits, detector.temperature) >= threshold
        of = None
        if groups is not None:
            of = [groups[picks[p]] for p in scores.index[here] % len(picks)]
        if present := one_class.only_class(labels):
            rate = one_class.rate(called, of)
            row = {"kind": kind, "level": level, "auc": one_class.undefined(present)}
            row |= {"false_alarm_rate": float("nan"), one_class.RATE[present]: rate["value"]}
            rows.append(row | {"ci95": rate["ci95"]})
            continue
        alarms = called[labels == metrics.REAL]
        found = metrics.metrics_with_intervals(labels, logits, of, resamples=_RESAMPLES)
        rows.append(
            {
                "kind": kind,
                "level": level,
                "auc": found["auc"],
                "false_alarm_rate": float(alarms.mean()) if len(alarms) else float("nan"),
            }
        )
    return rows
