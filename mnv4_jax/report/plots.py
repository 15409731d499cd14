"""The report's figures, drawn by matplotlib as SVG in the page's colours.

Figures are drawn in placeholder colours that no plot would use. `_svg` replaces them by the page's
CSS variables, so one drawing works in light mode, in dark mode and on paper.
"""

import html
import io
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binomtest
from sklearn import metrics as sk

from mnv4_jax.measure import metrics
from mnv4_jax.measure.audit import FEATURES
from mnv4_jax.measure.corruptions import CORRUPTIONS

INK, GRID, FAKE, REAL, QUIET = "#010101", "#020202", "#030303", "#040404", "#050505"
_CSS = {
    INK: "var(--ink)",
    GRID: "var(--grid)",
    FAKE: "var(--fake)",
    REAL: "var(--real)",
    QUIET: "var(--quiet)",
}
_STYLE = {
    "figure.figsize": (4.6, 3.9),
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",  # keeps text as text, for search and screen readers
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 2,
}


# Around each figure: both drawing and saving read the style.
_styled = mpl.rc_context(_STYLE)


def _svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element named `name`."""
    buffer = io.StringIO()
    for part in (figure, *figure.axes):
        part.patch.set_visible(False)
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for stand_in, variable in _CSS.items():
        svg = svg.replace(stand_in, variable)
    # Ids must differ between the figures of one page.
    key = f"p{zlib.crc32(name.encode(errors='surrogateescape')):08x}"
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    label = html.escape(name)  # it contains a folder's name
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


@_styled
def roc(labels: np.ndarray, scores: np.ndarray, points: Sequence[Mapping], *, name: str) -> str:
    """ROC curve of p_fake [N], with the operating `points` ({"name", "fpr", "tpr"}) on it."""
    fpr, tpr, _ = sk.roc_curve(labels == metrics.FAKE, scores)
    axes = Figure().subplots()
    axes.plot([0, 1], [0, 1], color=QUIET, linestyle=":", linewidth=1, label="chance")
    axes.plot(fpr, tpr, color=INK, label=_counts(labels))
    for point, marker in zip(points, "osD^v<>", strict=False):
        axes.plot(
            point["fpr"],
            point["tpr"],
            marker,
            color=FAKE,
            markersize=7,
            linestyle="none",
            label=point["name"],
        )
    axes.set(
        xlabel="false-alarm rate (reals called fake)",
        ylabel="detection rate (fakes called fake)",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
    )
    axes.legend(loc="lower right")
    return _svg(axes.figure, name)


@_styled
def precision_recall(labels: np.ndarray, scores: np.ndarray, *, name: str) -> str:
    """Precision of "fake" over its recall."""
    fake = labels == metrics.FAKE
    precision, recall, _ = sk.precision_recall_curve(fake, scores)
    axes = Figure().subplots()
    share = fake.mean()
    axes.axhline(share, color=QUIET, linestyle=":", linewidth=1, label=f"chance ({share:.0%})")
    axes.plot(recall, precision, color=INK, drawstyle="steps-post", label=_counts(labels))
    axes.set(
        xlabel="recall (fakes called fake)",
        ylabel="precision (of those called fake)",
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
    )
    axes.legend(loc="lower left")
    return _svg(axes.figure, name)


@_styled
def reliability(labels: np.ndarray, curves: Mapping[str, np.ndarray], *, name: str) -> str:
    """Share of fakes among pictures of similar p_fake; `curves` maps names to one or two arrays
    [N].

    The last one is drawn in full, with 95% Wilson intervals of each bin.
    """
    fake = labels == metrics.FAKE
    *_, last = curves
    axes = Figure().subplots()
    axes.plot([0, 1], [0, 1], color=QUIET, linestyle=":", linewidth=1, label="perfect")
    for label, p in curves.items():
        mean, share, low, high = _reliability_bins(fake, p)
        if label != last:
            axes.plot(mean, share, "--", color=QUIET, linewidth=1.2, label=label)
            continue
        axes.errorbar(
            mean,
            share,
            yerr=[share - low, high - share],
            fmt="o-",
            color=INK,
            ecolor=QUIET,
            elinewidth=1,
            markersize=5,
            label=f"{label}, {_counts(labels)}",
        )
    axes.set(
        xlabel="p_fake (mean of the bin)",
        ylabel="share that is fake (95% interval)",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    axes.legend(loc="upper left")
    return _svg(axes.figure, name)


def _reliability_bins(fake: np.ndarray, p: np.ndarray):
    """For each non-empty bin: mean p, share of fakes, and its Wilson interval (1927)."""
    bins = np.minimum((p * metrics.ECE_BINS).astype(int), metrics.ECE_BINS - 1)
    n = np.bincount(bins, minlength=metrics.ECE_BINS)
    filled = n > 0
    n = n[filled]
    mean = np.bincount(bins, p, metrics.ECE_BINS)[filled] / n
    share = np.bincount(bins, fake, metrics.ECE_BINS)[filled] / n
    intervals = [
        binomtest(round(k), int(m)).proportion_ci(method="wilson")
        for k, m in zip(share * n, n, strict=True)
    ]
    low, high = np.array(intervals).T
    # Rounding must not put an end on the wrong side of the point: matplotlib refuses that.
    return mean, share, np.minimum(low, share), np.maximum(high, share)


@_styled
def histogram(
    labels: np.ndarray, scores: np.ndarray, thresholds: Mapping[str, float], *, name: str
) -> str:
    """Histogram of the scores of each class, with the fixed thresholds."""
    axes = Figure().subplots()
    for label, colour, title in ((metrics.FAKE, FAKE, "fake"), (metrics.REAL, REAL, "real")):
        chosen = scores[labels == label]
        axes.hist(
            chosen,
            bins=np.linspace(0, 1, 31),
            color=colour,
            alpha=0.55,
            label=f"{title}, n = {len(chosen):,}",
        )
    for i, (text, value) in enumerate(thresholds.items()):
        axes.axvline(value, color=INK, linewidth=1, linestyle="--")
        left = value > 0.5  # side of the label; one line each, as values may be close
        axes.annotate(
            text,
            (value, 0.97 - 0.08 * i),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if left else 4, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top",
            fontsize=9,
        )
    axes.set(xlabel="p_fake", ylabel="pictures", xlim=(0, 1))
    axes.margins(y=0.15)
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return _svg(axes.figure, name)


@_styled
def confusion(labels: np.ndarray, called_fake: np.ndarray, *, name: str) -> str:
    """Confusion matrix: counts of truth against answer, coloured by the share of each row."""
    fake = labels == metrics.FAKE
    counts = np.array([[(t & c).sum() for c in (called_fake, ~called_fake)] for t in (fake, ~fake)])
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes = Figure().subplots()
    axes.grid(False)
    for row, column in np.ndindex(2, 2):
        colour = FAKE if column == 0 else REAL
        alpha = 0.6 * share[row, column]
        axes.add_patch(mpl.patches.Rectangle((column, row), 1, 1, color=colour, alpha=alpha, lw=0))
        axes.text(
            column + 0.5,
            row + 0.5,
            f"{counts[row, column]:,}\n{share[row, column]:.1%}",
            ha="center",
            va="center",
            fontsize=14,
        )
    axes.set(xlim=(0, 2), ylim=(2, 0), xlabel="called, at p_fake ≥ 0.5", ylabel="truth")
    axes.set_xticks([0.5, 1.5], ["fake", "real"])
    axes.set_yticks([0.5, 1.5], [f"fake, n = {fake.sum():,}", f"real, n = {(~fake).sum():,}"])
    axes.tick_params(length=0)
    return _svg(axes.figure, name)


@_styled
def attack(rows: Sequence[Mapping[str, Any]], *, on: str, name: str) -> str:
    """AUC (left) and fakes found (right) against the budget, one line per attack.

    `rows`: of `attacked.judge`; `on`: what was attacked, "fakes" or "both".
    """
    clean, *rest = (row for row in rows if row["on"] == on)
    names = list(dict.fromkeys(row["attack"] for row in rest))
    figure = Figure(figsize=(8.4, 3.6))
    both = figure.subplots(1, 2)
    for axes, key, label in zip(both, ("auc", "recall_fake"), ("AUC", "fakes found"), strict=True):
        for number, attack in enumerate(names):
            line = [clean, *(row for row in rest if row["attack"] == attack)]
            x = [row["budget"] for row in line]
            y = [row[key]["value"] for row in line]
            worst = attack == "worst"
            axes.plot(
                x, y, "osD^v<>P"[number % 8] + ("-" if worst else ":"), markersize=4,
                color=FAKE if worst else QUIET, linewidth=2 if worst else 1, label=attack,
            )  # fmt: skip
        axes.set(xlabel="budget, 255ths", ylabel=label, ylim=(-0.03, 1.03))
    both[0].legend(fontsize=8)
    return _svg(figure, name)


@_styled
def robustness(
    kind: str, rows: Sequence[Mapping[str, Any]], *, lowest_auc: float, name: str
) -> str:
    """AUC (above) and false-alarm rate (below) under one kind of damage.

    `rows`: of `robustness.sweep`, undamaged first, then the five levels. `lowest_auc`: start of
    the axis, the same for all kinds so that they can be compared.
    """
    ticks = ["none"] + [f"{row['level']:g}" for row in rows[1:]]
    x = np.arange(len(rows))
    figure = Figure(figsize=(3.4, 3.6))
    upper, lower = figure.subplots(2, 1, sharex=True)
    low, high = np.array([row["auc"]["ci95"] for row in rows], float).T
    upper.fill_between(x, low, high, color=INK, alpha=0.15, linewidth=0)
    upper.plot(x, [row["auc"]["value"] for row in rows], "o-", color=INK, markersize=4)
    upper.axhline(0.5, color=QUIET, linestyle=":", linewidth=1)
    upper.set(ylabel="AUC", ylim=(lowest_auc, 1.02), title=kind)
    alarms = [row["false_alarm_rate"] for row in rows]
    lower.plot(x, alarms, "o-", color=REAL, markersize=4)
    lower.set(ylabel="false alarms", ylim=(-0.03, 1.03), xlabel=CORRUPTIONS[kind].unit)
    lower.set_xticks(x, ticks)
    return _svg(figure, name)


@_styled
def rate_under_damage(kind: str, rows: Sequence[Mapping[str, Any]], *, of: str, name: str) -> str:
    """The one rate that a set of one class has, under one kind of damage, with its interval.

    `rows`: of `robustness.sweep`, undamaged first; `of`: "fake" or "real".
    """
    ticks = ["none"] + [f"{row['level']:g}" for row in rows[1:]]
    x = np.arange(len(rows))
    key, title, colour = {
        "real": ("false_alarm_rate", "false alarms", REAL),
        "fake": ("recall_fake", "fakes found", FAKE),
    }[of]
    axes = Figure(figsize=(3.4, 2.4)).subplots()
    low, high = np.array([row["ci95"] for row in rows], float).T
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, [row[key] for row in rows], "o-", color=colour, markersize=4)
    axes.set(ylabel=title, ylim=(-0.03, 1.03), xlabel=CORRUPTIONS[kind].unit, title=kind)
    axes.set_xticks(x, ticks)
    return _svg(axes.figure, name)


@_styled
def shortcuts(rows: Mapping[str, Mapping[str, Any]], *, name: str) -> str:
    """AUC of each file feature on its own; `rows`: of `audit.shortcuts`."""
    known = {feature: row["auc"] for feature, row in rows.items() if row["auc"]}
    axes = Figure().subplots()
    axes.axvline(0.5, color=QUIET, linestyle=":", linewidth=1)
    for y, auc in enumerate(known.values()):
        axes.plot(np.array(auc["ci95"], float), [y, y], color=QUIET, linewidth=2)
        axes.plot(auc["value"], y, "o", color=INK, markersize=7)
    axes.set_yticks(range(len(known)), [feature.replace("_", " ") for feature in known])
    axes.set(
        xlabel="AUC of this value alone (95% interval)\n← larger in reals · larger in fakes →",
        xlim=(-0.02, 1.02),
        ylim=(len(FEATURES) - 0.5, -0.5),
    )
    return _svg(axes.figure, name)


def _counts(labels: np.ndarray) -> str:
    return f"n = {len(labels):,}"
