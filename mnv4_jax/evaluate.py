"""Judges a detector: python -m mnv4_jax.evaluate --checkpoint=DIR --data=DIR --out=DIR

Writes report.html, to read, and report.json, to compute with. Several --data make a cross-dataset
table. Exit status: 0 done, 2 something to put right.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import math
import pathlib
import platform
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline import cli, sources
from input_pipeline.cli import UserError
from mnv4_jax import (
    audit,
    calibration,
    checkpoint,
    compilation_cache,
    host_memory,
    metrics,
    robustness,
    scoring,
    sharding,
)

DEFAULT_THRESHOLD = 0.5
_ROBUSTNESS_RATE = "0.05"  # of the thresholds in the checkpoint, the one robustness is judged at


@dataclasses.dataclass(frozen=True)
class Judgement:
    """One data set: the numbers for report.json, and what else the report shows."""

    summary: dict[str, Any]
    source: sources.Source
    data_config: ConfigDict
    index: np.ndarray  # [N] int32, of the readable pictures in the source
    labels: np.ndarray  # [N] int32
    logits: np.ndarray  # [N, 2] as the model gave them
    p_fake: np.ndarray  # [N] float64, calibrated


def main() -> None:
    args = parse(sys.argv[1:])
    compilation_cache.enable()
    host_memory.keep_freed()
    sharding.initialize_from(args)
    opened = [(data, sources.open_source(data, args.split)) for data in args.data]
    for _, source in opened:
        _ = source.groups  # read on first use: a mistake in them is better found now
    loaded = checkpoint.load(args.checkpoint, raw=args.raw)
    out = pathlib.Path(args.out).expanduser()
    if jax.process_index() == 0:
        _make_folder(out)

    results = [judge(loaded, data, source, args.split, args.robustness) for data, source in opened]
    if jax.process_index() != 0:
        return
    from mnv4_jax import report  # matplotlib and jinja2, which the other processes do without

    facts = run_facts(loaded, raw=args.raw)
    others = {"other_data_sets": [result.summary for result in results[1:]]}
    contents = json.dumps(_finite(facts | results[0].summary | others), indent=2)
    (out / "report.json").write_text(contents + "\n")
    html = report.render(facts, results, loaded.model)
    # Names of files need not be UTF-8.
    (out / "report.html").write_text(html, encoding="utf-8", errors="replace")
    for result in results:
        _print_summary(result.summary)
    print(f"report: {out / 'report.html'}, {out / 'report.json'}")


def parse(argv: Sequence[str]):
    parser = cli.ArgumentParser(
        prog="python -m mnv4_jax.evaluate", description=__doc__.split("\n", 2)[2]
    )
    parser.add_argument("--checkpoint", required=True, help="a workdir, or one checkpoint in it")
    parser.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="DIR",
        help="image folder or prepared set; may be repeated; empty (--data=): the demo set",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where the report goes")
    parser.add_argument("--split", default="Test", help="Train, Validation or Test (default)")
    parser.add_argument("--raw", action="store_true", help="weights as trained, not averaged")
    parser.add_argument(
        "--robustness",
        type=int,
        default=100,
        metavar="N",
        help="how many pictures to damage in every way (default 100; 0: none)",
    )
    sharding.add_flags(parser)
    args = parser.parse_args(argv)
    args.split = args.split.capitalize()
    if args.split not in sources.SPLITS:
        parser.error(f"--split={args.split}: must be one of {', '.join(sources.SPLITS)}")
    if args.robustness < 0:
        parser.error(f"--robustness={args.robustness}: must be 0 or more")
    return args


def judge(
    loaded: checkpoint.Checkpoint,
    data: str,
    source: sources.Source,
    split: str,
    damaged_pictures: int,
) -> Judgement:
    """All that is measured on one data set. Every process must call it; all get the same."""
    mesh = sharding.make_mesh()
    data_config = scoring.evaluation_config(loaded.config.data)
    name = f"{data or 'demo set'} {split}"
    scores = scoring.score_source(loaded.model, source, data_config, mesh, description=name)
    labels, groups = scores.labels, source.groups
    if len(np.unique(labels)) < 2:
        raise UserError(f"{name}: {len(labels)} readable pictures, of one class or none")
    if groups is not None:
        groups = [groups[i] for i in scores.index]
    unreadable = [source.ids[i] for i in np.setdiff1d(np.arange(len(source)), scores.index)]

    fitted = loaded.calibration or {"temperature": 1.0, "thresholds": {}}
    p_fake = calibration.p_fake(scores.logits, fitted["temperature"])
    raw = metrics.metrics_with_intervals(labels, scores.logits, groups)
    calibrated = raw
    if fitted["temperature"] != 1:
        logits = scores.logits / fitted["temperature"]
        calibrated = metrics.metrics_with_intervals(labels, logits, groups)
    digest, features = audit.inspect(source)
    features = {feature: values[scores.index] for feature, values in features.items()}
    summary = {
        "data": data or "demo set",
        "split": split,
        "data_digest": f"sha256:{digest}",
        "eval_image_size_px": data_config.eval_image_size,
        "n": len(labels),
        "n_fake": int((labels == metrics.FAKE).sum()),
        "n_real": int((labels == metrics.REAL).sum()),
        "n_groups": None if groups is None else len(set(groups)),
        "unreadable": unreadable,
        **calibrated,
        "uncalibrated": {key: raw[key] for key in ("log_loss", "brier", "ece")},
        "calibration": loaded.calibration,
        "thresholds": _thresholds(p_fake, labels, groups, loaded.calibration),
        "shortcuts": audit.shortcuts(labels, features, groups),
        "robustness": None,
    }
    if damaged_pictures:
        picks = robustness.choose(labels, scores.index, damaged_pictures)
        threshold = fitted["thresholds"].get(_ROBUSTNESS_RATE, DEFAULT_THRESHOLD)
        rows = robustness.sweep(
            loaded.model,
            source,
            picks,
            data_config,
            mesh,
            temperature=fitted["temperature"],
            threshold=threshold,
        )
        summary["robustness"] = {"n": len(picks), "threshold": threshold, "rows": rows}
    return Judgement(summary, source, data_config, scores.index, labels, scores.logits, p_fake)


def _thresholds(p_fake, labels, groups, fitted) -> list[dict[str, Any]]:
    """The rates at 0.5 and at each threshold that was fitted, which is applied unchanged."""
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
    for row in rows:
        # Logits that say nothing but the answer: their recalls are the rates at this threshold.
        called = p_fake >= row["threshold"]
        answers = np.stack([called, ~called], axis=1)
        at = metrics.metrics_with_intervals(labels, answers, groups)
        low, high = at["recall_real"]["ci95"]
        row["false_alarm_rate"] = {
            "value": 1 - at["recall_real"]["value"],
            "ci95": [1 - high, 1 - low],
        }
        row["recall_fake"] = at["recall_fake"]
    return rows


def run_facts(loaded: checkpoint.Checkpoint, *, raw: bool) -> dict[str, Any]:
    """What was judged, by what, when."""
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


def _make_folder(out: pathlib.Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--out={out}: is a file, or lies below one; name a folder") from None


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_summary(summary: dict[str, Any]) -> None:
    print(f"{summary['data']}, {summary['split']}: {summary['n']:,} pictures", end="")
    if summary["unreadable"]:
        print(f" ({len(summary['unreadable'])} more unreadable)", end="")
    print()
    for key in ("auc", "accuracy", "balanced_accuracy", "eer", "ece"):
        low, high = summary[key]["ci95"]
        print(f"  {key:18} {summary[key]['value']:.4f}  (95%: {low:.4f} to {high:.4f})")


if __name__ == "__main__":
    with sharding.prompt_exit():
        cli.run(main)
