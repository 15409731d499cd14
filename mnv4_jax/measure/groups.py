"""Error rates by group of people, generator or source, at one fixed threshold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from mnv4_jax.measure import metrics

_MOST_VALUES = 40  # a column with more values names single files, not groups
_AGES = (18, 40, 65)  # years at which age bands begin


def rates_by_group(
    labels: np.ndarray, p_fake: np.ndarray, columns: Mapping[str, Sequence[str]], threshold: float
) -> dict[str, dict[str, Any]]:
    """False alarms and detections at `threshold` for every value of every column.

    Args:
      labels: [N] 0 fake, 1 real.
      p_fake: [N] calibrated.
      columns: {name: N values, "" if unknown}; "age" in years is grouped into bands. Columns with
        one value, or with more than 40, are left out.

    Returns:
      {column: {"groups": {value: {"n_real", "false_alarm_rate", "n_fake", "recall_fake"}},
      "gap": …}}. A rate is {"value", "ci95"}, by Wilson's interval, or None without such pictures.
      The gap is the largest difference between the false-alarm rates of two groups, None with
      fewer than two.
    """
    out = {}
    called = p_fake >= threshold
    for name, values in columns.items():
        values = np.array([_band(v) for v in values] if name == "age" else list(values))
        known = sorted(set(values) - {""}, key=_natural)
        if not 2 <= len(known) <= _MOST_VALUES:
            continue
        groups = {}
        for value in known:
            real = (values == value) & (labels == metrics.REAL)
            fake = (values == value) & (labels == metrics.FAKE)
            groups[value] = {
                "n_real": int(real.sum()),
                "false_alarm_rate": _rate(called[real]),
                "n_fake": int(fake.sum()),
                "recall_fake": _rate(called[fake]),
            }
        alarms = [g["false_alarm_rate"]["value"] for g in groups.values() if g["n_real"]]
        gap = max(alarms) - min(alarms) if len(alarms) > 1 else None
        out[name] = {"groups": groups, "gap": gap}
    return out


def _rate(called: np.ndarray) -> dict[str, Any] | None:
    if not len(called):
        return None
    interval = binomtest(int(called.sum()), len(called)).proportion_ci(0.95, method="wilson")
    return {"value": float(called.mean()), "ci95": [interval.low, interval.high]}


def _band(age: str) -> str:
    if not age.isdecimal():
        return age
    i = int(np.searchsorted(_AGES, int(age), side="right"))
    bounds = (0, *_AGES)
    return f"{bounds[i]}+" if i == len(_AGES) else f"{bounds[i]}-{bounds[i + 1] - 1}"


def _natural(value: str) -> tuple[int, str]:
    digits = value.split("-")[0].rstrip("+")
    return (int(digits) if digits.isdecimal() else 0, value)
