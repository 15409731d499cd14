"""Turns logits into calibrated probabilities, and fits thresholds for given false-alarm rates.

Both are fitted on Validation, saved in the checkpoint and applied unchanged everywhere else.
"""

import numpy as np

from mnv4_jax.measure import metrics

FALSE_ALARM_RATES = (0.01, 0.05, 0.10)
TEMPERATURES = (0.01, 100.0)  # the fit to a useless model would be infinity


def fit(logits: np.ndarray, labels: np.ndarray, *, set_of: np.ndarray | None = None) -> dict | None:
    """The `calibration` of a checkpoint, or None if it cannot be fitted: a class is missing, or a
    logit is not finite.

    Args:
      logits: [N, 2] floats, column 0 fake.
      labels: [N] integers, 0 fake and 1 real.
      set_of: [N] the set of each example of a mixture: each threshold keeps its false-alarm rate in
        every set that has real pictures.

    Returns:
      {"temperature": T, "thresholds": {"0.01": p, …}, "clear_below": {"0.01": p, …},
      "achieved": {"0.01": `rates_at` the threshold, …}, "split": "Validation", "n": N}
    """
    if len(np.unique(labels)) < 2 or not np.isfinite(logits).all():
        return None
    temperature = fit_temperature(logits, labels)
    set_of = np.zeros(len(labels), int) if set_of is None else set_of
    of_sets = [
        fit_thresholds(logits[set_of == s], labels[set_of == s], temperature=temperature)
        for s in np.unique(set_of[np.asarray(labels) == metrics.REAL])
    ]
    thresholds = {rate: max(found[rate] for found in of_sets) for rate in of_sets[0]}
    p = p_fake(logits, temperature)
    return {
        "temperature": temperature,
        "thresholds": thresholds,
        "clear_below": fit_clear_below(logits, labels, temperature=temperature),
        "achieved": {rate: rates_at(p, labels, t) for rate, t in thresholds.items()},
        "split": "Validation",
        "n": len(labels),
    }


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T that minimises the log loss of softmax(logits / T); Guo et al. 2017, arXiv:1706.04599.

    If every picture is on its right side, the best T is 0, which would make every answer certain.
    In that case the labels are smoothed, to 1 - 1 / (n + 2) for a class of n (Platt 1999).

    Args:
      logits: [N, 2] finite floats.
      labels: [N] integers, 0 fake and 1 real.

    Returns:
      T within `TEMPERATURES`; it never changes which class is more likely.
    """
    from scipy.optimize import minimize_scalar  # slow to import, and only training needs it

    z = metrics.log_odds(logits)
    labels = np.asarray(labels)
    against = np.where(labels == metrics.FAKE, -z, z)
    doubt = 0.0
    if (against < 0).all():
        doubt = 1 / (np.bincount(labels, minlength=2)[labels] + 2)

    def log_loss(log_t: float) -> float:
        x = against / np.exp(log_t)
        return ((1 - doubt) * np.logaddexp(0, x) + doubt * np.logaddexp(0, -x)).mean()

    # The loss is convex in 1/T, so it has one minimum in log T as well.
    best = minimize_scalar(
        log_loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(best.x))


def fit_thresholds(
    logits: np.ndarray, labels: np.ndarray, *, temperature: float = 1.0
) -> dict[str, float]:
    """The lowest threshold on calibrated p_fake whose false-alarm rate is at most each of
    `FALSE_ALARM_RATES`.

    A picture is called fake if p_fake ≥ threshold; the false-alarm rate is the share of real
    pictures called fake. Raises ValueError without a real picture.
    """
    p = p_fake(logits, temperature)
    real = np.sort(p[np.asarray(labels) == metrics.REAL])[::-1]
    if not len(real):
        raise ValueError("thresholds need real pictures, and there is none")
    return {f"{rate:g}": _just_above(real[int(rate * len(real))], p) for rate in FALSE_ALARM_RATES}


def fit_clear_below(
    logits: np.ndarray, labels: np.ndarray, *, temperature: float = 1.0
) -> dict[str, float]:
    """For each of `FALSE_ALARM_RATES`, the highest calibrated p_fake below which at most this share
    of fakes lies.

    Between it and a threshold of `fit_thresholds` a detector may answer that it is unsure. Raises
    ValueError without a fake picture.
    """
    fake = np.sort(p_fake(logits, temperature)[np.asarray(labels) == metrics.FAKE])
    if not len(fake):
        raise ValueError("needs fake pictures, and there is none")
    return {f"{rate:g}": float(fake[int(rate * len(fake))]) for rate in FALSE_ALARM_RATES}


def _just_above(score: float, scores: np.ndarray) -> float:
    """Half-way to the next higher score, so that rounding on other machines flips no picture."""
    above = scores[scores > score]
    return float((score + (above.min() if len(above) else 1.0)) / 2)


def rates_at(p: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, float]:
    """{"false_alarm_rate", "recall_fake"} if p_fake [N] ≥ threshold is called fake."""
    called, labels = p >= threshold, np.asarray(labels)
    return {
        "false_alarm_rate": float(called[labels == metrics.REAL].mean()),
        "recall_fake": float(called[labels == metrics.FAKE].mean()),
    }


def p_fake(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """[N, 2] logits to [N] float64 calibrated probabilities of fake."""
    z = metrics.log_odds(logits) / temperature
    return np.exp(-np.logaddexp(0, -z))  # the sigmoid, without overflow at either end
