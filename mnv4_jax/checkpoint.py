"""All of Orbax, in one room: saving and resuming a run, loading a detector from a path.

A checkpoint is `WORKDIR/checkpoints/<step>/` with four items, so that each reader takes only what
it needs: `weights` and `ema` (parameters and BatchNorm statistics), `optimizer` (with the step
counters), and `meta`, a JSON object: config, data position, labels, normalisation, calibration,
metrics.
"""

import contextlib
import dataclasses
import errno
import gc
import json
import math
import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import nnx
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from input_pipeline.cli import UserError
from mnv4_jax import step as step_lib
from mnv4_jax.models import classifier

_COUNTERS = ("step", "bad_in_a_row", "bad_steps", "opt_state")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A detector as it was saved.

    `model` is a `classifier.Classifier` with the weights in it; `calibration` is
    {"temperature": …, "thresholds": {false-alarm rate: p_fake}, …} or None.
    """

    path: epath.Path
    step: int
    config: ConfigDict
    model: nnx.Module
    labels: tuple[str, ...]
    calibration: dict[str, Any] | None
    meta: dict[str, Any]

    @property
    def weights(self) -> dict[str, nnx.State]:
        """{"params", "stats"}: pure states, as `step.eval_step` takes them."""
        return step_lib.split(self.model)[1]


class Checkpointer:
    """The checkpoints of one run: the newest `keep` and the best by validation AUC."""

    def __init__(self, workdir: str | epath.Path, *, keep: int):
        self.folder = epath.Path(workdir).absolute() / "checkpoints"
        _drop_damaged_metrics(self.folder)
        best = lambda metrics: metrics["auc"]  # noqa: E731
        self._manager = ocp.CheckpointManager(
            self.folder,
            # best_fn besides BestN: without it metrics are not stored, and the best so far is
            # forgotten on restart.
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
        state: step_lib.TrainState,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts writing `state`; returns as soon as it is copied from the device.

        Args:
          step: that of `state`, known without asking the device.
          state: what to save.
          meta: JSON values, see `make_meta`.
          metrics: of validation, or None. A NaN AUC is not passed on: it would evict the best.
        """
        auc = (metrics or {}).get("auc", math.nan)
        items = _to_save(step, _arrays(state), meta)
        self._manager.save(step, args=items, metrics=None if math.isnan(auc) else {"auc": auc})

    def latest_meta(self) -> tuple[int, dict[str, Any]] | None:
        """Step and `meta` of the newest checkpoint whose `meta` can be read; None without any.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return step, read_meta(self.folder / str(step))
            except (OSError, ValueError):
                continue
        if steps:
            raise self._none_intact(steps)
        return None

    def _none_intact(self, damaged: list[int]) -> UserError:
        return UserError(
            f"{self.folder} holds no intact checkpoint (damaged: {damaged}):"
            " delete the folder to start anew, or name another --workdir"
        )

    def restore(self, like: step_lib.TrainState) -> tuple[step_lib.TrainState, dict] | None:
        """The newest intact state, or None where there is no checkpoint at all.

        Damaged ones that are newer are named and deleted: Orbax silently refuses to save at a step
        that is not above its newest.

        Args:
          like: a TrainState of `jax.ShapeDtypeStruct` with shardings.

        Raises:
          UserError: there are checkpoints, but none is intact.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged = []
        for step in steps:
            try:
                state, meta = self._restore_step(step, like)
            except Exception as error:  # Orbax, TensorStore and JSON each raise their own kinds
                logging.warning("checkpoint %d is damaged: %s", step, str(error)[:300])
                damaged.append(step)
                continue
            for bad in damaged:
                print(
                    f"checkpoint {bad} in {self.folder} is damaged: deleted, going on from {step}"
                )
                self._manager.delete(bad)
            return state, meta
        if damaged:
            raise self._none_intact(damaged)
        return None

    def _restore_step(self, step: int, like: step_lib.TrainState):
        arrays = _arrays(like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.StandardRestore(item) for name, item in arrays.items()},
                meta=ocp.args.JsonRestore(),
            ),
        )
        for name in arrays:
            _check_crc32(name, restored[name], restored.meta)
        state = step_lib.TrainState(
            weights=restored.weights, ema=restored.ema, **restored.optimizer
        )
        return state, restored.meta

    def wait(self) -> None:
        """Returns when what was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    @contextlib.contextmanager
    def says_a_full_disk(self) -> Iterator[None]:
        """Around a run: UserError where its disk is full, after removing the half-written save.

        Orbax raises ValueError there, about this save or the one before; or a log's next line meets
        it first.
        """
        try:
            yield
            return
        except (OSError, ValueError) as error:
            full = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT)]
            if not any(text in str(error) for text in full):
                raise
        # What dies with the save prints tracebacks, into the one line that matters: TensorStore's
        # threads now, half-run coroutines at the exit of Python.
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


def _arrays(state: step_lib.TrainState) -> dict[str, Any]:
    """The items of a checkpoint that hold arrays."""
    counters = {name: getattr(state, name) for name in _COUNTERS}
    return {"weights": state.weights, "ema": state.ema, "optimizer": counters}


def _to_save(step: int, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> ocp.args.Composite:
    """A checkpoint's items, and in `meta` what they say of themselves."""
    meta = {**meta, "data_position": step}  # the number of the next global batch
    if jax.process_count() == 1:  # of several, Orbax may write what is another's last bit
        meta["crc32"] = {name: _crc32(item) for name, item in arrays.items()}
    return ocp.args.Composite(
        **{name: ocp.args.StandardSave(item) for name, item in arrays.items()},
        meta=ocp.args.JsonSave(meta),
    )


def _crc32(item: Any) -> dict[str, int]:
    """By dtype, of the bytes of all arrays: TensorStore checks its indices, not the values."""
    sums: dict[str, int] = {}
    for array in map(np.asarray, jax.tree.leaves(item)):
        sums[array.dtype.name] = zlib.crc32(array.tobytes(), sums.get(array.dtype.name, 0))
    return sums


def _check_crc32(name: str, item: Any, meta: Mapping[str, Any]) -> None:
    """Raises ValueError where `item` is not what was saved; not every checkpoint says.

    What is restored in another dtype (float64 without JAX_ENABLE_X64) cannot be compared.
    """
    saved = meta.get("crc32", {}).get(name, {})
    if saved and any(saved.get(dtype, crc) != crc for dtype, crc in _crc32(item).items()):
        raise ValueError(f"the {name} are not those that were saved")


def _drop_damaged_metrics(folder: epath.Path) -> None:
    """A step whose metrics cannot be read is one without: Orbax would not even start."""
    for file in folder.glob("*/metrics/metrics"):
        try:
            json.loads(file.read_text())
        except FileNotFoundError:  # another process was quicker
            continue
        except ValueError:
            logging.warning("%s is damaged: deleted", file)
            file.unlink(missing_ok=True)


def make_meta(config: ConfigDict, *, calibration=None, metrics=None) -> dict[str, Any]:
    """What a checkpoint says of itself, as JSON values."""
    return {
        "config": json.loads(config.to_json_best_effort()),
        "labels": list(classifier.LABELS),
        "normalisation": {"mean": list(classifier.MEAN), "std": list(classifier.STD)},
        "calibration": calibration,
        "metrics": metrics,
        "versions": {"jax": jax.__version__},
    }


def read_meta(step_folder: epath.Path) -> dict[str, Any]:
    return json.loads((step_folder / "meta" / "metadata").read_text())


def save_calibration(step_folder: str | epath.Path, calibration: Mapping[str, Any]) -> None:
    """Replaces the calibration that a checkpoint carries; atomic on a file system."""
    file = epath.Path(step_folder) / "meta" / "metadata"
    meta = json.loads(file.read_text()) | {"calibration": dict(calibration)}
    new = file.with_name("metadata.new")
    new.write_text(json.dumps(meta))
    new.replace(file)


def find(path: str | epath.Path) -> list[epath.Path]:
    """The step folders that `path` may mean, the preferred first.

    Args:
      path: a workdir, a folder of checkpoints or one step's folder. The first two mean the best
        by validation AUC, else the newest; the others follow, newest first.

    Raises:
      UserError: there is no checkpoint.
    """
    path = epath.Path(path).expanduser().absolute()
    if not path.is_dir():
        raise UserError(f"--checkpoint={path}: no such folder")
    if (path / "meta").is_dir():
        return [path]
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = [p for p in folder.iterdir() if p.name.isdecimal() and (p / "meta").is_dir()]
    if not steps:
        raise UserError(
            f"--checkpoint={path}: no checkpoint in it (expected a workdir with"
            " checkpoints/<step>, or one step's folder)"
        )
    newest_first = sorted(steps, key=lambda p: -int(p.name))
    return sorted(newest_first, key=lambda p: -_auc(p))


def _auc(step_folder: epath.Path) -> float:
    """The validation AUC a checkpoint was saved with, -1 without one."""
    try:
        return float(json.loads((step_folder / "metrics" / "metrics").read_text())["auc"])
    except (OSError, ValueError, KeyError):
        return -1.0


def load(path: str | epath.Path, *, raw: bool = False) -> Checkpoint:
    """The detector at `path`; see `find` for what that may be.

    Args:
      path: where; a local folder or one that etils knows (gs://…).
      raw: the weights as trained instead of their moving average; calibration is None then.

    Raises:
      UserError: no checkpoint, or none intact.
    """
    candidates = find(path)
    for folder in candidates:
        try:
            return _load(folder, "weights" if raw else "ema")
        except Exception as error:  # Orbax, TensorStore and JSON each raise their own kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            print(f"checkpoint {folder} is damaged: {reason}", file=sys.stderr)
    raise UserError(f"--checkpoint={path}: no intact checkpoint among {len(candidates)}")


def _load(folder: epath.Path, item: str) -> Checkpoint:
    meta = read_meta(folder)
    config = as_config(meta["config"])
    graphdef, like = step_lib.abstract(config)
    # On this process's first device, wherever and on however many it was trained.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
    with ocp.StandardCheckpointer() as checkpointer:
        weights = checkpointer.restore(folder / item, like)
    _check_crc32(item, weights, meta)
    return Checkpoint(
        path=folder,
        step=int(folder.name) if folder.name.isdecimal() else 0,
        config=config,
        model=nnx.merge(graphdef, weights["params"], weights["stats"]),
        labels=tuple(meta["labels"]),
        # Fitted for the average.
        calibration=meta["calibration"] if item == "ema" else None,
        meta=meta,
    )


def write_initial(
    workdir: str | epath.Path, config: ConfigDict, weights: dict[str, nnx.State]
) -> epath.Path:
    """A checkpoint at step 0 of weights from elsewhere, to start from or to evaluate."""
    folder = epath.Path(workdir).expanduser().absolute() / "checkpoints"
    items = _to_save(0, {"weights": weights, "ema": weights}, make_meta(config))
    with ocp.CheckpointManager(folder) as manager:
        manager.save(0, args=items)
    return folder / "0"


def as_config(values: Mapping[str, Any]) -> ConfigDict:
    """A ConfigDict from what JSON made of one: lists become tuples again."""
    plain = lambda v: (  # noqa: E731
        {k: plain(x) for k, x in v.items()}
        if isinstance(v, Mapping)
        else tuple(plain(x) for x in v)
        if isinstance(v, list)
        else v
    )
    return ConfigDict(plain(values))
