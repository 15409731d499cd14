"""Saves and resumes a run with Orbax.

A checkpoint is `WORKDIR/checkpoints/<step>/` with four items, so that each reader loads only what
it needs: `weights` and `ema` (parameters and BatchNorm statistics), `optimizer` (with the step
counters), and `meta`, a JSON object: config, data position, labels, normalisation, calibration,
metrics.
"""

import contextlib
import errno
import functools
import gc
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint import multihost

from input_pipeline.cli import UserError
from mnv4_jax.detector.saved import Damaged, check_crc32, read_intact, read_meta, to_save
from mnv4_jax.runtime.line_file import replace_text
from mnv4_jax.training.state import TrainState

_COUNTERS = ("step", "bad_in_a_row", "bad_steps", "opt_state")
_FORM = 2  # format of a checkpoint: since 2, the optimizer's moments have names


class Checkpointer:
    """The checkpoints of one run: the newest `keep` and the best by validation AUC."""

    def __init__(self, workdir: str | epath.Path, *, keep: int):
        self.folder = epath.Path(workdir).absolute() / "checkpoints"
        _drop_damaged_metrics(self.folder)
        best = lambda metrics: metrics["auc"]  # noqa: E731
        self._manager = ocp.CheckpointManager(
            self.folder,
            # best_fn as well as BestN: without it Orbax does not store the metrics, and forgets
            # the best checkpoint on restart.
            options=ocp.CheckpointManagerOptions(
                best_fn=best,
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(keep),
                        policies.BestN(
                            n=1, get_metric_fn=best, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
                cleanup_tmp_directories=True,
            ),
        )

    def save(
        self,
        step: int,
        state: TrainState,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts writing `state`; returns as soon as it is copied from the device.

        Args:
          step: the step of `state`, known without asking the device.
          state: what to save.
          meta: JSON values, see `make_meta`.
          metrics: of validation, or None. Orbax never gets a NaN AUC: it would evict the best.
        """
        auc = (metrics or {}).get("auc", math.nan)
        items = to_save(step, _arrays(state), {**meta, "form": _FORM})
        self._manager.save(step, args=items, metrics=None if math.isnan(auc) else {"auc": auc})

    def add_results(self, step: int, meta: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Completes the checkpoint of `step`, which was saved before its evaluation was done.

        Args:
          meta: replaces the saved "calibration", "metrics" and "evaluation_due".
          metrics: as for `save`.
        """
        folder = self.folder / str(step)
        if jax.process_index() == 0:
            auc = metrics.get("auc", math.nan)
            if not math.isnan(auc):
                (folder / "metrics").mkdir(exist_ok=True)
                replace_text(folder / "metrics" / "metrics", json.dumps({"auc": auc}))
            # Last: after a kill before this line, the evaluation is still due.
            new = {**read_meta(folder), **meta}
            replace_text(folder / "meta" / "metadata", json.dumps(new))
        multihost.sync_global_processes("an evaluation was made up for")
        self._manager.reload()

    def latest_meta(self) -> tuple[int, dict[str, Any]] | None:
        """Step and `meta` of the newest checkpoint whose `meta` can be read; None without any.

        Raises:
          UserError: there are checkpoints, but none is readable, or the newest has another format.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            folder = self.folder / str(step)
            try:
                meta = read_intact(folder, [], functools.partial(read_meta, folder))
            except Damaged:
                continue
            if meta.get("form", 1) != _FORM:
                raise UserError(
                    f"checkpoint {folder} has the form of another version of mnv4_jax: finish the"
                    " run with that version, or begin another from its weights with another"
                    f" --workdir and --config.model.init_from={self.folder.parent}"
                )
            return step, meta
        if steps:
            raise self._none_intact(steps)
        return None

    def _none_intact(self, damaged: list[int]) -> UserError:
        return UserError(
            f"{self.folder} holds no intact checkpoint (damaged: {damaged}):"
            " delete the folder to start anew, or name another --workdir"
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict] | None:
        """The newest intact state, or None if there is no checkpoint.

        Reports newer, damaged checkpoints and moves them to `checkpoints/damaged`: otherwise Orbax
        would silently refuse to save at a step that is not above theirs.

        Args:
          like: a TrainState of `jax.ShapeDtypeStruct` with shardings.

        Raises:
          UserError: there are checkpoints, but none is intact, or the newest cannot be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged = []
        for step in steps:
            try:
                state, meta = read_intact(
                    self.folder / str(step),
                    list(_arrays(like)),
                    functools.partial(self._restore_step, step, like),
                )
            except Damaged as reason:
                logging.warning("checkpoint %d is damaged: %s", step, reason)
                damaged.append(step)
                continue
            if damaged:
                self._move_aside(damaged, going_on_from=step)
            return state, meta
        if damaged:
            raise self._none_intact(damaged)
        return None

    def _move_aside(self, damaged: list[int], *, going_on_from: int) -> None:
        """Moves damaged steps where Orbax does not look: it reads only folders named by number."""
        if jax.process_index() == 0:
            for step in damaged:
                to = _unused(self.folder / "damaged" / str(step))
                to.parent.mkdir(exist_ok=True)
                (self.folder / str(step)).rename(to)
                print(
                    f"checkpoint {step} in {self.folder} is damaged: moved to {to},"
                    f" going on from {going_on_from}"
                )
        multihost.sync_global_processes("damaged checkpoints are moved")
        self._manager.reload()

    def _restore_step(self, step: int, like: TrainState):
        arrays = _arrays(like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardRestore(item) for name, item in arrays.items()},
                meta=ocp.args.JsonRestore(),
            ),
        )
        for name in arrays:
            check_crc32(name, restored[name], restored.meta)
        state = TrainState(weights=restored.weights, ema=restored.ema, **restored.optimizer)
        return state, restored.meta

    def wait(self) -> None:
        """Waits until all saves are on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    @contextlib.contextmanager
    def explain_disk_full(self) -> Iterator[None]:
        """Wraps a run: turns a full disk into a UserError, and removes the half-written save.

        On a full disk Orbax raises ValueError, about this save or the previous one, unless writing
        a log line fails first.
        """
        try:
            yield
            return
        except (OSError, ValueError) as error:
            full = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT)]
            if not any(text in str(error) for text in full):
                raise
        # Silence tracebacks, which would bury the one line that matters: TensorStore's threads
        # print some now, unfinished coroutines when Python exits.
        sys.excepthook = lambda *_: None
        gc.collect()
        names = [path.name for path in self.folder.iterdir()]
        for name in names:
            if name.endswith(".orbax-checkpoint-tmp"):  # room for the last lines of the log
                with contextlib.suppress(OSError):  # somebody may still be writing there
                    (self.folder / name).rmtree(missing_ok=True)
        intact = any(name.isdecimal() for name in names)
        raise UserError(
            f"no space left to save a checkpoint in {self.folder}: free some and run the same"
            f" command again; {'the last checkpoint is intact' if intact else 'none was saved'}"
        )


def _arrays(state: TrainState) -> dict[str, Any]:
    """The items of a checkpoint that hold arrays."""
    counters = {name: getattr(state, name) for name in _COUNTERS}
    return {"weights": state.weights, "ema": state.ema, "optimizer": counters}


def _unused(path: epath.Path) -> epath.Path:
    """`path`, or the first of `path`.2, .3, … that does not exist."""
    for i in itertools.count(2):
        if not path.exists():
            return path
        path = path.with_name(f"{path.name.split('.')[0]}.{i}")


def _drop_damaged_metrics(folder: epath.Path) -> None:
    """Renames unreadable metrics of a step: with them Orbax would not even start."""
    for file in folder.glob("*/metrics/metrics"):
        try:
            json.loads(file.read_text())
        except FileNotFoundError:  # another process was quicker
            continue
        except ValueError:
            logging.warning("%s is damaged: renamed", file)
            with contextlib.suppress(FileNotFoundError):
                file.rename(_unused(file.with_name("metrics.damaged")))
