"""Error rates of a set with one class. Photographs alone have no AUC, but they have false alarms,
which most people can measure.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.cli import UserError
from mnv4_jax.measure import metrics

# Averages over pictures of one class are meaningful for it. All other metrics compare the classes,
# or depend on the share of fakes.
_ALLOWED = {
    "real": {"accuracy", "recall_real", "log_loss", "brier"},
    "fake": {"accuracy", "recall_fake", "log_loss", "brier"},
}
# The name of the rate of p_fake ≥ threshold: for reals these are false alarms, for fakes finds.
RATE = {"real": "false_alarm_rate", "fake": "recall_fake"}


def only_class(labels: np.ndarray) -> str | None:
    """ "fake" or "real" if all of `labels` [N] are of that class; None if there are both."""
    present = np.unique(labels)
    return {metrics.FAKE: "fake", metrics.REAL: "real"}[present[0]] if len(present) == 1 else None


def check_attackable(name: str, labels: np.ndarray) -> None:
    """Raises UserError if the pictures of the set `name` are of one class."""
    if present := only_class(labels):
        raise UserError(
            f"{name}: --attack needs both classes, and there are only {present} pictures here"
        )


def undefined(present: str) -> dict[str, Any]:
    """A metric without a value, with the reason: only `present` ("fake" or "real") occurs."""
    return {
        "value": math.nan,
        "ci95": [math.nan, math.nan],
        "reason": f"needs both classes; there are only {present} pictures",
    }


def restrict(values: Mapping[str, dict], present: str) -> dict[str, dict]:
    """`values` of `metrics.metrics_with_intervals`; marks those undefined for one class."""
    return {
        name: value if name in _ALLOWED[present] else undefined(present)
        for name, value in values.items()
    }


def rate(called: np.ndarray, groups: Sequence[str] | None = None) -> dict[str, Any]:
    """{"value", "ci95"} of the share of `called` [N] bool.

    The interval is that of `metrics.metrics_with_intervals`, by whole groups.
    """
    called = np.asarray(called, bool)
    if not len(called):
        return {"value": math.nan, "ci95": [math.nan, math.nan]}
    labels = np.full(len(called), metrics.FAKE)
    answers = np.stack([called, ~called], axis=1)
    return metrics.metrics_with_intervals(labels, answers, groups)["recall_fake"]


def by_group(
    p_fake: np.ndarray, groups: Sequence[str], thresholds: Sequence[float], present: str
) -> list[dict[str, Any]]:
    """{"group", "n", "rates"} of each group, the worst at the first threshold first.

    Args:
      p_fake: [N] calibrated.
      groups: [N] names.
      thresholds: T of them; "rates" is the share of p_fake ≥ each.
      present: "fake" or "real"; for reals the highest rate is the worst, for fakes the lowest.
    """
    names, member = np.unique(groups, return_inverse=True)
    rows = []
    for i, name in enumerate(names.tolist()):
        p = p_fake[member == i]
        rates = [float((p >= threshold).mean()) for threshold in thresholds]
        rows.append({"group": name, "n": len(p), "rates": rates})
    sign = -1 if present == "real" else 1
    return sorted(rows, key=lambda row: (sign * row["rates"][0], row["group"]))
