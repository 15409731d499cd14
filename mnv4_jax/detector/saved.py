"""A detector on disk: the items of a checkpoint, and how to find, check and load one."""

import functools
import json
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from input_pipeline.cli import UserError
from mnv4_jax.detector import boxed
from mnv4_jax.detector.boxed import Checkpoint, as_config
from mnv4_jax.models import backbones, classifier
from mnv4_jax.models import weights as weights_lib

_T = TypeVar("_T")


class Damaged(Exception):
    """Proof that a checkpoint is not what was saved."""


# TensorStore's errors for a value that cannot be decoded, a truncated file, a missing file.
_DAMAGE = ("DATA_LOSS:", "OUT_OF_RANGE:", "NOT_FOUND:")


def read_intact(folder: epath.Path, items: Sequence[str], read: Callable[[], _T]) -> _T:
    """Returns `read()`, which reads `items` of the checkpoint in `folder`.

    Raises:
      Damaged: the checkpoint was found damaged twice in a row.
      UserError: it cannot be read, but nothing proves damage: a permission, no memory, too many
        open files, a lost mount.
    """
    for attempt in (1, 2):
        try:
            return read()
        except UserError:
            raise
        except Exception as error:  # Orbax, TensorStore and JSON each raise their own types
            try:
                # List the folder first: if the mount is lost, "not found" proves nothing.
                proof = _missing(folder, items) or _proof(error)
            except OSError as unlisted:
                error, proof = unlisted, None
            if not proof:
                raise UserError(
                    f"cannot read checkpoint {folder}: {_first_line(error)}; nothing was changed:"
                    " remove the cause and run the same command again"
                ) from error
            if attempt == 2:
                raise Damaged(proof) from error
    raise AssertionError("unreachable")


def _proof(error: BaseException | None) -> str | None:
    while error is not None:
        text = _first_line(error)
        undecodable = isinstance(error, Damaged | json.JSONDecodeError | UnicodeDecodeError)
        if undecodable or text.startswith(_DAMAGE):
            return text
        error = error.__cause__ or error.__context__
    return None


def _missing(folder: epath.Path, items: Sequence[str]) -> str | None:
    """The first file missing from a checkpoint, or None. Raises OSError for an unreadable folder.

    Lists the folders, since a lack of permission also looks like "does not exist".
    """
    there = {path.name for path in folder.iterdir()}
    for item in (*items, "meta"):
        index = "metadata" if item == "meta" else "_METADATA"
        if item not in there:
            return f"{item} is missing"
        if index not in {path.name for path in (folder / item).iterdir()}:
            return f"{item}/{index} is missing"
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def to_save(step: int, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> ocp.args.Composite:
    """A checkpoint's items; `meta` describes the others."""
    meta = {**meta, "data_position": step}  # the number of the next global batch
    if jax.process_count() == 1:  # with several, Orbax may write a copy that differs in a last bit
        meta["crc32"] = {name: _crc32(item) for name, item in arrays.items()}
    return ocp.args.Composite(
        **{name: ocp.args.StandardSave(item) for name, item in arrays.items()},
        meta=ocp.args.JsonSave(meta),
    )


def _crc32(item: Any) -> dict[str, int]:
    """Checksums of the bytes of all arrays, by dtype: TensorStore checks only its indices."""
    sums: dict[str, int] = {}
    if not all(getattr(x, "is_fully_addressable", True) for x in jax.tree.leaves(item)):
        return sums  # split over several processes: none has all of it
    for array in map(np.asarray, jax.tree.leaves(item)):
        sums[array.dtype.name] = zlib.crc32(array.tobytes(), sums.get(array.dtype.name, 0))
    return sums


def check_crc32(name: str, item: Any, meta: Mapping[str, Any]) -> None:
    """Raises Damaged if `item` is not what was saved. Not every checkpoint has checksums.

    An array restored in another dtype (float64 without JAX_ENABLE_X64) cannot be compared.
    """
    saved = meta.get("crc32", {}).get(name, {})
    if saved and any(saved.get(dtype, crc) != crc for dtype, crc in _crc32(item).items()):
        raise Damaged(f"the {name} are not those that were saved")


def make_meta(
    config: ConfigDict, *, calibration=None, metrics=None, evaluation_due: bool = False
) -> dict[str, Any]:
    """The description of a checkpoint, as JSON values.

    `evaluation_due`: the run was stopped before it could evaluate these weights; the next start
    evaluates them.
    """
    mean, std = backbones.normalisation(config.model.name)
    return {
        "config": json.loads(config.to_json_best_effort()),
        "labels": list(classifier.LABELS),
        "normalisation": {"mean": list(mean), "std": list(std)},
        "calibration": calibration,
        "metrics": metrics,
        "evaluation_due": evaluation_due,
        "versions": {"jax": jax.__version__},
    }


def read_meta(step_folder: epath.Path) -> dict[str, Any]:
    return json.loads((step_folder / "meta" / "metadata").read_text())


def save_calibration(step_folder: str | epath.Path, calibration: Mapping[str, Any]) -> None:
    """Replaces the calibration in a checkpoint; atomic on a file system."""
    file = epath.Path(step_folder) / "meta" / "metadata"
    meta = json.loads(file.read_text()) | {"calibration": dict(calibration)}
    new = file.with_name("metadata.new")
    new.write_text(json.dumps(meta))
    new.replace(file)


def find(path: str | epath.Path) -> list[epath.Path]:
    """The step folders that `path` may mean, the preferred one first.

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
    except (FileNotFoundError, ValueError, KeyError):
        return -1.0


def load(path: str | epath.Path | None, *, raw: bool = False) -> Checkpoint:
    """The detector at `path`; see `find` for what `path` may be.

    Args:
      path: a local folder or one that etils can open (gs://…); None: the shipped detector.
      raw: use the weights as trained, not their moving average; calibration is None then.

    Raises:
      UserError: no checkpoint, none intact, or one that cannot be read.
    """
    if path is None:
        if raw:
            raise UserError("--raw: the detector in the box has averaged weights only")
        return boxed.read()
    candidates = find(path)
    item = "weights" if raw else "ema"
    for folder in candidates:
        try:
            return read_intact(folder, [item], functools.partial(_load, folder, item))
        except Damaged as reason:
            print(f"checkpoint {folder} is damaged: {reason}", file=sys.stderr)
    raise UserError(f"--checkpoint={path}: no intact checkpoint among {len(candidates)}")


def _load(folder: epath.Path, item: str) -> Checkpoint:
    meta = read_meta(folder)
    config = as_config(meta["config"])
    graphdef, like = weights_lib.abstract(config)
    # Load to this process's first device, whatever devices the training used.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
    with ocp.StandardCheckpointer() as checkpointer:
        weights = checkpointer.restore(folder / item, like)
    check_crc32(item, weights, meta)
    return Checkpoint(
        path=folder,
        step=int(folder.name) if folder.name.isdecimal() else 0,
        config=config,
        model=nnx.merge(graphdef, weights["params"], weights["stats"]),
        labels=tuple(meta["labels"]),
        # The calibration was fitted for the average.
        calibration=meta["calibration"] if item == "ema" else None,
        meta=meta,
    )


def write_initial(
    workdir: str | epath.Path, config: ConfigDict, weights: dict[str, nnx.State]
) -> epath.Path:
    """Writes imported weights as a checkpoint at step 0, to start from or to evaluate."""
    folder = epath.Path(workdir).expanduser().absolute() / "checkpoints"
    items = to_save(0, {"weights": weights, "ema": weights}, make_meta(config))
    with ocp.CheckpointManager(folder) as manager:
        manager.save(0, args=items)
    return folder / "0"
