"""Definitions of the metrics. "Positive" means fake; scores rank by the log-odds of fake.

Every metric is written once, for weighted examples and for many weightings at a time: weights of 1
give the value, bootstrap counts as weights give the interval.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

FAKE, REAL = 0, 1
ECE_BINS = 15
FALSE_POSITIVE_RATES = (0.01, 0.05, 0.10)
_RESAMPLES_AT_ONCE = 50


def binary_metrics(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """All metrics of one split, without intervals.

    Args:
      labels: [N] integers, 0 fake and 1 real.
      logits: [N, 2] floats, column 0 fake.

    Returns:
      "loss" and the keys of `weighted_metrics`. Metrics that need a missing class are nan.
    """
    z = log_odds(logits)
    values = weighted_metrics(labels, z, np.ones((1, len(z))))
    values = {name: float(value[0]) for name, value in values.items()}
    return {"loss": values["log_loss"], **values}


def metrics_by_set(
    labels: np.ndarray, logits: np.ndarray, set_of: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    """`binary_metrics` as the mean over sets, with equal weights for all sizes.

    Args:
      labels, logits: as for `binary_metrics`.
      set_of: [N] integers, the set of each example, an index into `names`.

    Returns:
      The keys of `binary_metrics`, and "sets": {name: {"n", "loss", "accuracy", "auc"}}. A set of
      one class is measured against the other class of all sets together. A set without examples
      is left out.
    """
    sets = {}
    for i, name in enumerate(names):
        mine = set_of == i
        if not mine.any():
            continue
        others = np.isin(labels, np.unique(labels[mine]), invert=True)
        rows = mine | others if len(np.unique(labels[mine])) == 1 else mine
        sets[name] = {"n": int(mine.sum()), **binary_metrics(labels[rows], logits[rows])}
    keys = [key for key in next(iter(sets.values())) if key != "n"]
    means = {key: float(np.mean([values[key] for values in sets.values()])) for key in keys}
    shown = ("n", "loss", "accuracy", "auc")
    return {
        **means,
        "sets": {name: {key: values[key] for key in shown} for name, values in sets.items()},
    }


def metrics_with_intervals(
    labels: np.ndarray,
    logits: np.ndarray,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict]:
    """`weighted_metrics`, each as {"value": x, "ci95": [lo, hi]}, by the percentile bootstrap.

    Pictures of one source are not independent: with `groups` ([N] names) it draws whole groups.
    A metric ignores resamples in which it is undefined (a class missing). With a single group, the
    intervals are NaN. If all or none of the pictures are answered correctly, every resample agrees:
    then the interval of accuracy and recalls is Clopper and Pearson's (1934), exact for as many
    independent draws as there are groups.
    """
    labels, z = np.asarray(labels), log_odds(logits)
    values = weighted_metrics(labels, z, np.ones((1, len(z))))
    parts = []
    if groups is None or len(set(groups)) > 1:
        parts = [
            weighted_metrics(labels, z, weights)
            for weights in bootstrap_weights(len(z), groups, resamples=resamples, seed=seed)
        ]
    found = {
        name: {"value": float(value[0]), "ci95": _percentiles([part[name] for part in parts])}
        for name, value in values.items()
    }
    independent = np.arange(len(z)) if groups is None else np.asarray(groups)
    of = {"accuracy": np.isfinite(z), "recall_fake": labels == FAKE, "recall_real": labels == REAL}
    for name, mine in of.items():
        value = found[name]["value"]
        if parts and value in (0, 1):
            least = 0.025 ** (1 / len(set(independent[mine].tolist())))
            found[name]["ci95"] = [least, 1.0] if value else [0.0, 1 - least]
    return found


def rates_of(
    labels: np.ndarray,
    called: np.ndarray,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
) -> dict[str, dict]:
    """ "false_alarm_rate" and "recall_fake", each {"value", "ci95"}; `called` [N] bool says which
    pictures are called fake; intervals as in `metrics_with_intervals`."""
    # Logits that encode only the answer: their recalls are the rates.
    answers = np.stack([called, ~called], axis=1)
    at = metrics_with_intervals(labels, answers, groups, resamples=resamples)
    low, high = at["recall_real"]["ci95"]
    return {
        "false_alarm_rate": {
            "value": 1 - at["recall_real"]["value"],
            "ci95": [1 - high, 1 - low],
        },
        "recall_fake": at["recall_fake"],
    }


def weighted_metrics(
    labels: np.ndarray, log_odds: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The metrics of N examples under R weightings at once; each value is [R] float64.

    Args:
      labels: [N] integers, 0 fake and 1 real.
      log_odds: [N] floats, log(p_fake / p_real). A picture is called fake if it is ≥ 0.
      weights: [R, N] non-negative floats: how often each example counts.

    Definitions follow scikit-learn, ties included. `eer` is where the ROC's chords cross
    FPR = 1 − TPR; `tpr_at_fpr_X` is the highest TPR of a threshold whose FPR is at most X%;
    `ece` is the mean gap between p_fake and the share of fakes in 15 bins of equal width.
    """
    # Descending scores make every threshold metric a cumulative sum.
    order = np.argsort(-np.asarray(log_odds, np.float64), kind="stable")
    z = np.asarray(log_odds, np.float64)[order]
    fake = np.asarray(labels)[order] == FAKE
    weights = np.asarray(weights, np.float64)[:, order]
    w_fake, w_real = weights * fake, weights * ~fake
    n_fake, n_real = w_fake.sum(1), w_real.sum(1)
    n = n_fake + n_real

    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is nan on purpose: undefined
        called = z >= 0
        tp, fp = w_fake[:, called].sum(1), w_real[:, called].sum(1)
        fn, tn = n_fake - tp, n_real - fp
        out = {
            "accuracy": (tp + tn) / n,
            "balanced_accuracy": (tp / n_fake + tn / n_real) / 2,
            **_per_class("fake", tp, fp, fn),
            **_per_class("real", tn, fn, fp),
        }
        # One point of the curve per distinct score, from the highest threshold down.
        ends = np.append(np.flatnonzero(np.diff(z)), len(z) - 1)
        hits, alarms = w_fake.cumsum(1)[:, ends], w_real.cumsum(1)[:, ends]
        out |= _curve_metrics(hits, alarms, n_fake[:, None], n_real[:, None])

        p = np.exp(-np.logaddexp(0, -z))  # the sigmoid, without overflow at either end
        out["log_loss"] = weights @ np.logaddexp(0, np.where(fake, -z, z)) / n
        out["brier"] = weights @ (p - fake) ** 2 / n
        bins = np.minimum((p * ECE_BINS).astype(int), ECE_BINS - 1)
        in_bin = bins[:, None] == np.arange(ECE_BINS)
        out["ece"] = np.abs((weights * (p - fake)) @ in_bin).sum(1) / n
    # A diverged network has no ranking: its AUC must not look like one.
    return out if np.isfinite(z).all() else {name: value * np.nan for name, value in out.items()}


def _per_class(name: str, tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> dict:
    """Precision is 0 if no picture was called this class, as in scikit-learn."""
    return {
        f"precision_{name}": np.where(tp + fp > 0, tp / (tp + fp), 0.0),
        f"recall_{name}": tp / (tp + fn),
        f"f1_{name}": 2 * tp / (2 * tp + fp + fn),
    }


def _curve_metrics(
    hits: np.ndarray, alarms: np.ndarray, n_fake: np.ndarray, n_real: np.ndarray
) -> dict[str, np.ndarray]:
    """Metrics of the ROC curve: `hits` and `alarms` are [R, T] cumulative counts."""
    tpr, fpr = hits / n_fake, alarms / n_real
    tpr, fpr = (np.pad(rate, ((0, 0), (1, 0))) for rate in (tpr, fpr))
    precision = hits / (hits + alarms)
    # A resample may have no example at the highest scores: add 0 there, not 0/0.
    gain = np.diff(tpr)
    average_precision = np.where(gain > 0, gain * precision, 0 * gain).sum(1)

    # EER: the chord of the ROC on which FPR − (1 − TPR) changes sign.
    gap = fpr + tpr - 1
    rows, right = np.arange(len(gap)), np.argmax(gap >= 0, axis=1)
    left = np.maximum(right - 1, 0)
    span = gap[rows, right] - gap[rows, left]
    share = np.where(span > 0, -gap[rows, left] / span, 0.0)
    eer = fpr[rows, left] + share * (fpr[rows, right] - fpr[rows, left])
    defined = (n_fake[:, 0] > 0) & (n_real[:, 0] > 0)

    return {
        "auc": np.trapezoid(tpr, fpr, axis=1),
        "average_precision": np.where(n_fake[:, 0] > 0, average_precision, np.nan),
        "eer": np.where(defined, eer, np.nan),
    } | {
        f"tpr_at_fpr_{round(100 * rate)}": np.where(
            defined, np.where(fpr <= rate, tpr, 0.0).max(1), np.nan
        )
        for rate in FALSE_POSITIVE_RATES
    }


def bootstrap_weights(n: int, groups: Sequence[str] | None, *, resamples: int, seed: int):
    """Yields [≤ 50, n] counts of draws of each example, drawing whole groups.

    Chunks keep memory at a few hundred megabytes for 100,000 examples.
    """
    rng = np.random.default_rng(seed)
    unit = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    n_units = int(unit.max()) + 1
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        rows = min(_RESAMPLES_AT_ONCE, resamples - start)
        yield rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=rows)[:, unit]


def log_odds(logits: np.ndarray) -> np.ndarray:
    """[N, 2] logits to [N] float64 log(p_fake / p_real)."""
    logits = np.asarray(logits, np.float64).reshape(-1, 2)
    return logits[:, FAKE] - logits[:, REAL]


def _percentiles(parts: list[np.ndarray]) -> list[float]:
    values = np.concatenate([[], *parts])
    values = values[np.isfinite(values)]
    if not len(values):
        return [float("nan"), float("nan")]
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]
