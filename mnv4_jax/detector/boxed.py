"""The shipped detector: one file that comes with the package and loads without Orbax."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from flax import nnx
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from input_pipeline.cli import UserError
from mnv4_jax.models import weights as weights_lib

FILE = pathlib.Path(__file__).parents[1] / "shipped" / "detector.safetensors"
NAME = "shipped"  # its name in a flag or field
_NOTE = "using the detector in the box, for research and evaluation only: see docs/MODEL_CARD.md"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A saved detector.

    `model` is a `classifier.Classifier` with its weights; `calibration` is
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
        """{"params", "stats"}: pure states, as `weights.eval_step` takes them."""
        return weights_lib.split(self.model)[1]


def write(file: pathlib.Path, loaded: Checkpoint) -> None:
    """`loaded` as safetensors: kernels in float16, everything else in float32, `meta` as JSON."""
    tensors = {
        name: np.asarray(value, np.float16 if np.ndim(value) >= 2 else np.float32)
        for name, value in _flat(loaded.weights).items()
    }
    meta = {**loaded.meta, "calibration": loaded.calibration, "step": loaded.step}
    meta.pop("crc32", None)  # it is of the float32 values
    # The data's paths are private; the model card names the sets.
    config = {**meta["config"], "data": {**meta["config"]["data"]}}
    folders = config["data"]["dir"].split(",")
    config["data"]["dir"] = ",".join(pathlib.PurePath(folder).name for folder in folders)
    meta["config"] = config
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, {"meta": json.dumps(meta)})


def read(file: pathlib.Path = FILE) -> Checkpoint:
    """The detector in `file`, in float32; prints one line on stderr about its permitted use.

    Raises:
      UserError: there is no such file, or `write` did not make it.
    """
    try:
        with safe_open(file, "numpy") as opened:
            meta = json.loads(opened.metadata()["meta"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise UserError(
            f"no detector in the box ({file}: {error}): install the package again, or name one"
            " with --checkpoint=DIR"
        ) from None
    print(_NOTE, file=sys.stderr)
    config = as_config(meta["config"])
    graphdef, like = weights_lib.abstract(config)
    weights = {
        kind: nnx.from_flat_state(
            (path, tensors[_name(kind, path)].astype(np.float32))
            for path, _ in nnx.to_flat_state(state)
        )
        for kind, state in like.items()
    }
    return Checkpoint(
        path=epath.Path(file),
        step=meta["step"],
        config=config,
        model=nnx.merge(graphdef, weights["params"], weights["stats"]),
        labels=tuple(meta["labels"]),
        calibration=meta["calibration"],
        meta=meta,
    )


def as_config(values: Mapping[str, Any]) -> ConfigDict:
    """A ConfigDict from its JSON values: lists become tuples again."""
    plain = lambda v: (  # noqa: E731
        {k: plain(x) for k, x in v.items()}
        if isinstance(v, Mapping)
        else tuple(plain(x) for x in v)
        if isinstance(v, list)
        else v
    )
    return ConfigDict(plain(values))


def _flat(weights: Mapping[str, nnx.State]) -> dict[str, Any]:
    return {
        _name(kind, path): value
        for kind, state in weights.items()
        for path, value in nnx.to_flat_state(state)
    }


def _name(kind: str, path: tuple) -> str:
    return ".".join([kind, *map(str, path)])
