"""Measures a detector on one data set."""

import dataclasses
import datetime
import functools
import importlib.metadata
import platform
import shlex
import sys
from typing import Any

import jax
import numpy as np

from input_pipeline import sources
from input_pipeline.cli import UserError
from mnv4_jax.detector.detector import Detector
from mnv4_jax.measure import audit, calibration, metrics
from mnv4_jax.measure.groups import rates_by_group
from mnv4_jax.report import attacked, one_class, robustness

DEFAULT_THRESHOLD = 0.5
# The false-alarm rate whose threshold (from the checkpoint) robustness and groups are judged at.
_FIXED_RATE = "0.05"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """One data set: the numbers for report.json, and other contents of the report."""

    summary: dict[str, Any]
    source: sources.Source
    index: np.ndarray  # [N] int32, of the readable pictures in the source
    labels: np.ndarray  # [N] int32
    logits: np.ndarray  # [N, 2] as the model gave them
    p_fake: np.ndarray  # [N] float64, calibrated
    failures: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # see `attacked`


@dataclasses.dataclass(frozen=True)
class AttackPlan:
    """What `--attack` asks for."""

    budgets: tuple[int, ...]  # 255ths
    n_pictures: int
    steps: int
    other: Detector | None  # whose gradients a transfer attack takes


def judge(
    detector: Detector,
    data: str,
    source: sources.Source,
    split: str,
    damaged_pictures: int,
    attack: AttackPlan | None = None,
) -> Judgement:
    """Measures everything on one data set. Every process must call it; all get the same result."""
    name = f"{data or 'demo set'} {split}"
    scores = detector.logits(source, description=name, least_px=detector.least_px)
    labels, groups = scores.labels, source.groups
    if not len(labels):
        why = f" ({len(scores.refused)} are too small or of one colour)" if scores.refused else ""
        raise UserError(f"{name}: none of {len(source)} pictures can be read and scored{why}")
    present = one_class.only_class(labels)
    if attack:  # a class may have been unreadable
        one_class.check_attackable(name, labels)
    if groups is not None:
        groups = [groups[i] for i in scores.index]
    missing = np.setdiff1d(np.arange(len(source)), scores.index).tolist()
    unreadable = [source.ids[i] for i in missing if i not in scores.refused]

    p_fake = calibration.p_fake(scores.logits, detector.temperature)
    raw = metrics.metrics_with_intervals(labels, scores.logits, groups)
    calibrated = raw
    if detector.temperature != 1:
        logits = scores.logits / detector.temperature
        calibrated = metrics.metrics_with_intervals(labels, logits, groups)
    if present:
        raw, calibrated = (one_class.restrict(values, present) for values in (raw, calibrated))
    threshold = detector.thresholds.get(_FIXED_RATE, DEFAULT_THRESHOLD)
    columns = {
        column: [values[i] for i in scores.index]
        for column, values in getattr(source, "columns", {}).items()
    }
    digest, features = audit.inspect(source)
    features = {feature: values[scores.index] for feature, values in features.items()}
    summary = {
        "data": data or "demo set",
        "split": split,
        "data_digest": f"sha256:{digest}",
        "eval_image_size_px": detector.transform.size,
        "n": len(labels),
        "n_fake": int((labels == metrics.FAKE).sum()),
        "n_real": int((labels == metrics.REAL).sum()),
        "n_groups": None if groups is None else len(set(groups)),
        "unreadable": unreadable,
        "no_score": [{"file": source.ids[i], "reason": why} for i, why in scores.refused.items()],
        "passed_over": sources.found(source)["passed_over"],
        **calibrated,
        "uncalibrated": {key: raw[key] for key in ("log_loss", "brier", "ece")},
        "calibration": detector.calibration,
        "thresholds": _thresholds(p_fake, labels, groups, detector.calibration),
        "shortcuts": audit.shortcuts(labels, features, groups),
        "by_column": {
            "threshold": threshold,
            "columns": rates_by_group(labels, p_fake, columns, threshold),
        },
        "robustness": None,
        "attack": None,
    }
    if present:
        summary["only"] = present
        thresholds = [row["threshold"] for row in summary["thresholds"]]
        if groups is not None:
            summary["by_group"] = one_class.by_group(p_fake, groups, thresholds, present)
    if damaged_pictures:
        picks = robustness.choose(labels, scores.index, damaged_pictures)
        rows = robustness.sweep(detector, source, picks, threshold=threshold, groups=source.groups)
        summary["robustness"] = {"n": len(picks), "threshold": threshold, "rows": rows}
    failures = []
    if attack:
        picks = robustness.choose(labels, scores.index, attack.n_pictures)
        images = attacked.pixels_of(source, picks, detector)
        under = functools.partial(
            attacked.Attacked, detector.model, images, source.labels[picks],
            temperature=detector.temperature,
        )  # fmt: skip
        found, worst = attacked.judge(
            victim := under(), attack.budgets, steps=attack.steps, threshold=threshold,
            transfer=under(other=attack.other.model) if attack.other else None,
        )  # fmt: skip
        summary["attack"] = found
        failures = attacked.failures(victim, worst, [source.ids[i] for i in picks])
    return Judgement(summary, source, scores.index, labels, scores.logits, p_fake, failures)


def _thresholds(p_fake, labels, groups, fitted) -> list[dict[str, Any]]:
    """The rates at 0.5 and at each fitted threshold, unchanged."""
    rows = [{"promise": None, "threshold": DEFAULT_THRESHOLD, "fitted_on": None}]
    if fitted:
        rows += [
            {
                "promise": float(rate),
                "threshold": threshold,
                "fitted_on": fitted.get("achieved", {}).get(rate),
            }
            for rate, threshold in fitted["thresholds"].items()
        ]
    present = one_class.only_class(labels)
    for row in rows:
        called = p_fake >= row["threshold"]
        if present:
            row |= dict.fromkeys(one_class.RATE.values(), one_class.undefined(present))
            row[one_class.RATE[present]] = one_class.rate(called, groups)
        else:
            row |= metrics.rates_of(labels, called, groups)
    return rows


def run_facts(detector: Detector, *, raw: bool) -> dict[str, Any]:
    """Facts about the run: checkpoint, command, date, versions, device."""
    packages = ("mnv4_jax", "jax", "flax", "numpy", "scikit-learn")
    devices = jax.devices()
    return {
        "checkpoint": str(detector.path),
        "step": detector.step,
        "weights": "as trained" if raw else "moving average (EMA)",
        "trained_on": detector.config.data.dir or "demo set",
        "model": detector.config.model.name,
        "gabor": detector.config.gabor.mode,
        "command": f"python -m mnv4_jax.evaluate {shlex.join(sys.argv[1:])}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
        "device": f"{len(devices)} × {devices[0].device_kind}, {jax.process_count()} process(es)",
    }
