"""The evaluation report: one self-contained HTML file that needs no network."""

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from input_pipeline.sources import Subset
from mnv4_jax.detector import explain
from mnv4_jax.detector.detector import Detector
from mnv4_jax.measure import audit, calibration, metrics
from mnv4_jax.measure.corruptions import CORRUPTIONS
from mnv4_jax.report import one_class, plots

_MISTAKES, _RIGHT = 20, 20  # pictures shown
_SHOWN_PX = 192

# Key in report.json: its name in the table, and its explanation.
METRICS = {
    "auc": ("ROC AUC", "chance that a random fake gets a higher score than a random real"),
    "accuracy": ("accuracy", "share of right answers at p_fake ≥ 0.5"),
    "balanced_accuracy": ("balanced accuracy", "mean of both classes' recall"),
    "eer": ("EER", "error rate where as many reals as fakes are mistaken; lower is better"),
    "average_precision": ("average precision", "area under precision over recall of fakes"),
    "tpr_at_fpr_1": ("TPR at 1% FPR", "fakes found if 1% of reals may be accused"),
    "tpr_at_fpr_5": ("TPR at 5% FPR", "… if 5% may be"),
    "tpr_at_fpr_10": ("TPR at 10% FPR", "… if 10% may be"),
    "precision_fake": ("precision, fake", "of those called fake, share that is"),
    "recall_fake": ("recall, fake", "of the fakes, share called fake"),
    "f1_fake": ("F1, fake", "harmonic mean of the two"),
    "precision_real": ("precision, real", "of those called real, share that is"),
    "recall_real": ("recall, real", "of the reals, share called real"),
    "f1_real": ("F1, real", "harmonic mean of the two"),
    "log_loss": ("log loss", "nats; a coin's is 0.693; lower is better"),
    "brier": ("Brier score", "mean squared error of p_fake; a coin's is 0.25; lower is better"),
    "ece": ("ECE", "mean gap between p_fake and the share of fakes; lower is better"),
}
_CROSS = ("auc", "accuracy", "balanced_accuracy", "eer", "average_precision", "ece")


def render(facts: Mapping[str, Any], results: Sequence, detector: Detector) -> str:
    """The report as HTML.

    Args:
      facts: of `judge.run_facts`.
      results: one `judge.Judgement` a data set.
      detector: the judged one; its maps explain single pictures.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mnv4_jax", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals["rate_of"] = one_class.RATE
    environment.filters |= {"number": _number, "percent": _percent, "interval": _interval}
    sections = [_section(i, result, detector) for i, result in enumerate(results)]
    for section in sections:
        section["trained_here"] = _among(section["summary"]["data"], facts["trained_on"])
    return environment.get_template("report.html.j2").render(
        facts=facts,
        sections=sections,
        metrics=METRICS,
        cross=_CROSS,
        features=audit.FEATURES,
        corruptions=CORRUPTIONS,
    )


def _among(data: str, trained_on: str) -> bool:
    """Whether the set in the folder `data` is one of `trained_on`, folders separated by commas. The
    shipped detector has only their last folders."""
    found = os.path.realpath(os.path.expanduser(data))
    return any(
        found == os.path.realpath(os.path.expanduser(name)) or name == os.path.basename(found)
        for name in trained_on.split(",")
    )


def _section(number: int, result, detector: Detector) -> dict[str, Any]:
    summary, labels, p_fake = result.summary, result.labels, result.p_fake
    name = f"{summary['data']}, {summary['split']}"
    right = (p_fake >= 0.5) == (labels == metrics.FAKE)
    confidence = np.abs(p_fake - 0.5)
    wrong = np.flatnonzero(~right)
    mistakes = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MISTAKES]
    shown = np.random.default_rng(0).permutation(np.flatnonzero(right))[:_RIGHT]
    return {
        "summary": summary,
        "id": f"set-{number}",
        "plots": _plots(result, name),
        "robustness": _robustness_plots(summary["robustness"], name, summary.get("only")),
        "attack": _attack_plots(summary["attack"], name),
        "failures": [_failure(failure) for failure in result.failures],
        "n_wrong": len(wrong),
        "mistakes": _pictures(result, mistakes, detector),
        "right": _pictures(result, np.sort(shown), detector),
    }


def _plots(result, name: str) -> dict[str, str]:
    summary, labels, p_fake = result.summary, result.labels, result.p_fake
    thresholds = {_promise(row): row["threshold"] for row in summary["thresholds"]}
    histogram = plots.histogram(labels, p_fake, thresholds, name=f"Scores, {name}")
    if summary.get("only"):  # one class has no curves
        return {"histogram": histogram}
    points = [
        {
            "name": _promise(row),
            "fpr": row["false_alarm_rate"]["value"],
            "tpr": row["recall_fake"]["value"],
        }
        for row in summary["thresholds"]
    ]
    curves = {"not calibrated": p_fake}
    if summary["calibration"]:
        before = calibration.p_fake(result.logits)
        curves = {"before calibration": before, "calibrated": p_fake}
    return {
        "roc": plots.roc(labels, p_fake, points, name=f"ROC curve, {name}"),
        "precision_recall": plots.precision_recall(
            labels, p_fake, name=f"Precision over recall, {name}"
        ),
        "reliability": plots.reliability(labels, curves, name=f"Reliability diagram, {name}"),
        "histogram": histogram,
        "confusion": plots.confusion(labels, p_fake >= 0.5, name=f"Confusion matrix, {name}"),
        "shortcuts": plots.shortcuts(summary["shortcuts"], name=f"Shortcut audit, {name}"),
    }


def _robustness_plots(
    robustness: Mapping[str, Any] | None, name: str, only: str | None
) -> dict[str, str]:
    if robustness is None:
        return {}
    clean, *rows = robustness["rows"]
    lows = [row["auc"]["ci95"][0] for row in robustness["rows"]]
    lowest_auc = min([0.4, *(low - 0.02 for low in lows if math.isfinite(low))])

    def plot(kind: str) -> str:
        shown = [clean, *(row for row in rows if row["kind"] == kind)]
        title = f"Robustness to {kind}, {name}"
        if only:
            return plots.rate_under_damage(kind, shown, of=only, name=title)
        return plots.robustness(kind, shown, lowest_auc=lowest_auc, name=title)

    return {kind: plot(kind) for kind in CORRUPTIONS}


def _attack_plots(attack: Mapping[str, Any] | None, name: str) -> dict[str, str]:
    if attack is None:
        return {}
    return {
        on: plots.attack(attack["rows"], on=on, name=f"Attack on {on}, {name}")
        for on in ("fakes", "both")
    }


def _failure(failure: Mapping[str, Any]) -> dict[str, Any]:
    """A picture, its attacked version, and their difference on grey, amplified ten times."""
    before, after = (failure[key].astype(int) for key in ("before", "after"))
    difference = np.clip(128 + 10 * (after - before), 0, 255).astype(np.uint8)
    return {
        "id": failure["id"],
        "p_before": failure["p_before"],
        "p_after": failure["p_after"],
        "before": _data_uri(failure["before"]),
        "after": _data_uri(failure["after"]),
        "difference": _data_uri(difference),
    }


def _promise(row: Mapping[str, Any]) -> str:
    return "p ≥ 0.5" if row["promise"] is None else f"fitted for {row['promise']:.0%}"


def _pictures(result, chosen: np.ndarray, detector: Detector) -> list[dict[str, Any]]:
    """Template values of examples `chosen`: the network's input and its explanation map."""
    if not len(chosen):
        return []
    picked = Subset(result.source, result.index[chosen])
    shown = []
    for row, image, heat in explain.explain_source(detector, picked):
        i = chosen[row]
        shown.append(
            {
                "id": picked.ids[row],
                "truth": "fake" if result.labels[i] == metrics.FAKE else "real",
                "p_fake": result.p_fake[i],
                "picture": _data_uri(image),
                "map": _data_uri(explain.overlay(image, heat)),
            }
        )
    return shown


def _data_uri(image: np.ndarray) -> str:
    picture = Image.fromarray(image)
    picture.thumbnail((_SHOWN_PX, _SHOWN_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.1%}"


def _interval(metric: Mapping[str, Any], percent: bool = False) -> str:
    show = _percent if percent else _number
    return f"{show(metric['ci95'][0])} – {show(metric['ci95'][1])}"
