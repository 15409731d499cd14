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
from input_pipeline.transforms import Transform
from mnv4_jax.config import eval_transform
from mnv4_jax.detector import saved, scoring
from mnv4_jax.measure import audit, calibration, metrics
from mnv4_jax.measure.groups import rates_by_group
from mnv4_jax.report import attacked, one_class, robustness
from mnv4_jax.runtime.mesh import make_mesh

DEFAULT_THRESHOLD = 0.5
# The false-alarm rate whose threshold (from the checkpoint) robustness and groups are judged at.
_FIXED_RATE = "0.05"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """One data set: the numbers for report.json, and other contents of the report."""

    summary: dict[str, Any]
    source: sources.Source
    transform: Transform
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
    other: saved.Checkpoint | None  # whose gradients a transfer attack takes


def judge(
    loaded: saved.Checkpoint,
    data: str,
    source: sources.Source,
    split: str,
    damaged_pictures: int,
    attack: AttackPlan | None = None,
) -> Judgement:
    """Measures everything on one data set. Every process must call it; all get the same result."""
    mesh = make_mesh()
    transform = eval_transform(loaded.config.data)
    name = f"{data or 'demo set'} {split}"
    least_px = scoring.needed_px(transform)
    scores = scoring.score_source(
        loaded.model, source, transform, mesh, description=name, least_px=least_px
    )
    labels, groups = scores.labels, source.groups
    if not len(labels):
        why = f" ({len(scores.refused)} are too small or of one colour)" if scores.refused else ""
        raise UserError(f"{name}: none of {len(source)} pictures can be read and scored{why}")
    present = one_class.only_class(labels)
    if groups is not None:
        groups = [groups[i] for i in scores.index]
    missing = np.setdiff1d(np.arange(len(source)), scores.index).tolist()
    unreadable = [source.ids[i] for i in missing if i not in scores.refused]

    fitted = loaded.calibration or {"temperature": 1.0, "thresholds": {}}
    p_fake = calibration.p_fake(scores.logits, fitted["temperature"])
    raw = metrics.metrics_with_intervals(labels, scores.logits, groups)
    calibrated = raw
    if fitted["temperature"] != 1:
        logits = scores.logits / fitted["temperature"]
        calibrated = metrics.metrics_with_intervals(labels, logits, groups)
    if present:
        raw, calibrated = (one_class.restrict(values, present) for values in (raw, calibrated))
    threshold = fitted["thresholds"].get(_FIXED_RATE, DEFAULT_THRESHOLD)
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
        "eval_image_size_px": transform.size,
        "n": len(labels),
        "n_fake": int((labels == metrics.FAKE).sum()),
        "n_real": int((labels == metrics.REAL).sum()),
        "n_groups": None if groups is None else len(set(groups)),
        "unreadable": unreadable,
        "no_score": [{"file": source.ids[i], "reason": why} for i, why in scores.refused.items()],
        "passed_over": sources.found(source)["passed_over"],
        **calibrated,
        "uncalibrated": {key: raw[key] for key in ("log_loss", "brier", "ece")},
        "calibration": loaded.calibration,
        "thresholds": _thresholds(p_fake, labels, groups, loaded.calibration),
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
        rows = robustness.sweep(
            loaded.model,
            source,
            picks,
            transform,
            mesh,
            temperature=fitted["temperature"],
            threshold=threshold,
            groups=source.groups,
        )
        summary["robustness"] = {"n": len(picks), "threshold": threshold, "rows": rows}
    failures = []
    if attack and present:
        raise UserError(
            f"{name}: --attack needs both classes, and there are only {present} pictures here"
        )
    if attack:
        picks = robustness.choose(labels, scores.index, attack.n_pictures)
        images = attacked.pixels_of(source, picks, transform)
        under = functools.partial(
            attacked.Attacked, loaded.model, images, source.labels[picks],
            temperature=fitted["temperature"],
        )  # fmt: skip
        found, worst = attacked.judge(
            detector := under(), attack.budgets, steps=attack.steps, threshold=threshold,
            transfer=under(other=attack.other.model) if attack.other else None,
        )  # fmt: skip
        summary["attack"] = found
        failures = attacked.failures(detector, worst, [source.ids[i] for i in picks])
    return Judgement(
        summary, source, transform, scores.index, labels, scores.logits, p_fake, failures
    )


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


def run_facts(loaded: saved.Checkpoint, *, raw: bool) -> dict[str, Any]:
    """Facts about the run: checkpoint, command, date, versions, device."""
    packages = ("mnv4_jax", "jax", "flax", "numpy", "scikit-learn")
    devices = jax.devices()
    return {
        "checkpoint": str(loaded.path),
        "step": loaded.step,
        "weights": "as trained" if raw else "moving average (EMA)",
        "trained_on": loaded.config.data.dir or "demo set",
        "model": loaded.config.model.name,
        "gabor": loaded.config.gabor.mode,
        "command": f"python -m mnv4_jax.evaluate {shlex.join(sys.argv[1:])}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
        "device": f"{len(devices)} × {devices[0].device_kind}, {jax.process_count()} process(es)",
    }
