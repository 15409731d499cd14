"""A run's output for people: metrics.jsonl, TensorBoard files, curves, a progress bar."""

import functools
import sys
from collections.abc import Mapping

import jax
import rich.console
import rich.progress
import rich.table
from etils import epath

from mnv4_jax.runtime.line_file import LineFile, finite, read_lines


class MetricsWriter:
    """Appends to WORKDIR/metrics.jsonl and to TensorBoard files; only process 0 writes."""

    def __init__(self, workdir: epath.Path, *, start_step: int, evaluation_due: bool = False):
        """Drops lines that will be written again: those of an interrupted run after `start_step`,
        the Test line at the end of a finished run and, with `evaluation_due`, the Validation line
        of `start_step`."""
        self._lines = None
        if jax.process_index():
            return
        file = workdir / "metrics.jsonl"
        kept = [
            line
            for line in read_lines(file)
            if line["step"] <= start_step
            and line["split"] != "test"
            and not (evaluation_due and (line["step"], line["split"]) == (start_step, "validation"))
        ]
        self._lines = LineFile(file, kept)
        # A fresh run has nothing to purge, and purge_step 0 would be ignored.
        self._purge_step = start_step + 1 if start_step else None
        self._folder = str(workdir / "tensorboard")

    @functools.cached_property
    def _board(self):
        # Not before the first loss is written: tensorboardX imports PyTorch if it is installed.
        from tensorboardX import SummaryWriter

        return SummaryWriter(self._folder, purge_step=self._purge_step)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        if self._lines is None:
            return
        line = finite({"step": step, "split": split, **values})
        self._lines.append(line)
        for name, value in line.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        if self._lines:
            self._lines.flush()

    def close(self) -> None:
        self.flush()
        if "_board" in self.__dict__:  # else nothing was written
            self._board.close()


class Progress:
    """A progress bar on a terminal, otherwise one line per log; silent unless `show`."""

    def __init__(self, total_steps: int, start_step: int, *, show: bool):
        self._total = total_steps
        self._show = show
        self._bar = None
        if show and sys.stdout.isatty():
            self._bar = rich.progress.Progress(
                "{task.description}",
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeElapsedColumn(),
                "left",
                rich.progress.TimeRemainingColumn(),
                "{task.fields[note]}",
            )
            self._task = self._bar.add_task(
                "train", total=total_steps, completed=start_step, note=""
            )
            self._bar.start()

    def step(self, step: int) -> None:
        if self._bar:
            self._bar.update(self._task, completed=step)

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        names = ("loss", "accuracy", "auc", "images_per_s")
        note = " ".join(f"{n} {values[n]:.4g}" for n in names if n in values)
        if self._bar and split == "train":
            self._bar.update(self._task, note=note)
        elif self._bar:
            self._bar.console.print(f"step {step} {split}: {note}")
        elif self._show:
            print(f"step {step}/{self._total} {split}: {note}", flush=True)
        if self._show and "sets" in values:
            aucs = (f"{name} {of['auc']:.3f}" for name, of in values["sets"].items())
            print(f"  {split} AUC by set: {', '.join(aucs)}", flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


def print_summary(results: Mapping[str, Mapping[str, float]], next_commands: list[str]) -> None:
    """Prints the final table of a run and the next commands to try."""
    names = ("n", "loss", "accuracy", "auc", "recall_fake", "recall_real")
    table = rich.table.Table("split", *names)
    for split, values in results.items():
        cells = (values.get(name) for name in names)
        table.add_row(split, *("–" if c is None else f"{c:.4g}" for c in cells))
    console = rich.console.Console()
    console.print(table)
    print("next:", *next_commands, sep="\n  ", flush=True)


def draw_curves(workdir: epath.Path) -> None:
    """WORKDIR/curves.png: loss, accuracy and AUC over the steps, from metrics.jsonl."""
    from matplotlib.figure import Figure

    lines = read_lines(workdir / "metrics.jsonl")
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    for axis, name in zip(figure.subplots(1, 3), ("loss", "accuracy", "auc"), strict=True):
        for split, style in (("train", "-"), ("validation", "o-"), ("test", "*")):
            points = [
                (line["step"], line[name])
                for line in lines
                if line["split"] == split and line.get(name) is not None
            ]
            if points:
                faint = 0.45 if split == "train" else 1.0
                axis.plot(*zip(*points, strict=True), style, ms=4, alpha=faint, label=split)
        axis.set(xlabel="step", title=name)
        axis.grid(alpha=0.3)
        axis.legend()
    with (workdir / "curves.png").open("wb") as file:
        figure.savefig(file, dpi=110)
