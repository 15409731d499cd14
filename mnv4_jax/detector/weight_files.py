"""Weights from files of other software: timm's, PyTorch's, and what `convert --to=torch` wrote."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
from flax import nnx
from ml_collections import ConfigDict

from input_pipeline.cli import UserError
from mnv4_jax.detector.boxed import as_config
from mnv4_jax.models import classifier, timm_keys

# Names in a header of `to_torch`. Other software writes a "config" too, in a form of its own.
_OURS = {"config", "gabor", "calibration"}


class Weights(NamedTuple):
    """`weights` {"params", "stats"} of the model that `config` describes."""

    config: ConfigDict
    weights: dict[str, nnx.State]
    calibration: dict[str, Any] | None


def is_file(name: str) -> bool:
    """Whether `name` names a file of weights or a repository, rather than a run."""
    return name.startswith("hf:") or name.endswith((".safetensors", ".pth", ".pt"))


def load(weights: str, otherwise: ConfigDict, say: Callable[[str], None]) -> Weights:
    """The weights of a file or of hf:OWNER/REPOSITORY.

    A file of `convert --to=torch` contains its config and calibration. For any other file, the
    shapes tell the variant, there is no Gabor bank, and a head of other than two classes starts
    fresh.

    Args:
        otherwise: the other fields of the config, for a file without one.
        say: called with a line that says what starts fresh.

    Raises:
        UserError: it cannot be read, or is of another model; the message begins with `weights`.
    """
    tensors, header = read(weights)
    try:
        return _fitted(tensors, header, otherwise, say)
    except UserError as error:
        raise UserError(f"{weights}: {error}") from None


def _fitted(tensors, header, otherwise, say) -> Weights:
    if "config" in header:
        config = as_config(header["config"])
    else:
        config = otherwise.copy_and_resolve_references()
        config.gabor.mode = "none"
        config.model.name = timm_keys.find_variant(config, tensors)
        if timm_keys.has_other_head(tensors):
            classes, labels = timm_keys.head_classes(tensors), len(classifier.LABELS)
            say(f"the head has {classes} classes: it starts fresh with {labels}")
    model = classifier.build(config, seed=config.seed)
    imported = timm_keys.from_timm(model, tensors, new_head="config" not in header)
    return Weights(config, imported, header.get("calibration"))


def read(weights: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and, if `to_torch` wrote one, the header of a file or of hf:OWNER/REPOSITORY."""
    if weights.startswith("hf:"):
        path = _download(weights.removeprefix("hf:"))
    else:
        path = pathlib.Path(weights).expanduser()
    if not path.is_file():
        raise UserError(f"{weights}: no such file")
    if path.suffix in (".pth", ".pt"):
        return _read_pickle(path), {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, TypeError) as error:  # TypeError: bfloat16
        raise UserError(f"{weights}: not a safetensors file: {error}") from None
    header = {}
    if metadata.keys() >= _OURS:
        header = {key: json.loads(text) for key, text in metadata.items() if key != "format"}
    return tensors, header


def _read_pickle(path: pathlib.Path) -> dict[str, np.ndarray]:
    """A state_dict, plain or wrapped by timm's training script."""
    try:
        import torch
    except ImportError:
        raise UserError(f"{path}: {missing_extra('torch')}") from None
    try:
        # weights_only: a pickle may otherwise run any code
        state: Mapping = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch each raise their own types
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(f"{path}: not a file of weights alone: {reason}") from None
    state = state.get("state_dict", state) if isinstance(state, Mapping) else {}
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no state_dict")
    # NumPy has no bfloat16.
    return {
        name: (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
        for name, value in state.items()
    }


def _download(repository: str) -> pathlib.Path:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"hf:{repository}: {missing_extra('torch')}") from None
    try:
        return pathlib.Path(huggingface_hub.hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # from the hub, HTTP or the network
        reason = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        raise UserError(f"hf:{repository}: cannot be fetched: {reason}") from None


def missing_extra(extra: str) -> str:
    return f"needs the extra `{extra}`: pip install 'mnv4_jax[{extra}]'"
