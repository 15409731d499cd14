"""Weights under timm's names and in PyTorch's layout, without PyTorch: pure functions on arrays.

A tensor's name is its path in the model with the last part renamed, so no table is needed. A Gabor
bank adds `gabor.weight`, its current taps; a learnable one also adds its five parameters.
"""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from input_pipeline.cli import UserError
from mnv4_jax.models import classifier, mobilenetv4, vit
from mnv4_jax.models import weights as weights_lib
from mnv4_jax.models.backbones import names

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_HEAD = ("classifier.weight", "classifier.bias", "head.weight", "head.bias")
# Depend on the front end, on the number of classes or on the size of the pictures.
_NOT_THE_NETWORK = (*_HEAD, "conv_stem.weight", "patch_embed.proj.weight", "pos_embed")
TAPS = "gabor.weight"
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}  # HWIO -> OIHW, [in, out] -> [out, in]
_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0)}


def to_timm(model: classifier.Classifier) -> dict[str, np.ndarray]:
    """Every parameter and statistic of `model`, each once, and its Gabor taps.

    Returns:
      {timm's key: array}; convolutions [out, in / groups, k, k], linear [out, in]. Without a bank
      these are the keys that `load_state_dict(strict=True)` needs (PyTorch does not need
      `num_batches_tracked`).
    """
    tensors = {
        timm_key(path): _transposed(np.asarray(value), _TO_TORCH)
        for path, value in _flat(weights_lib.split(model)[1]).items()
    }
    if model.gabor is not None:
        tensors[TAPS] = _transposed(np.asarray(model.gabor.weight()), _TO_TORCH)
    return tensors


def from_timm(
    model: classifier.Classifier, tensors: Mapping[str, np.ndarray], *, new_head: bool = False
) -> dict[str, nnx.State]:
    """The inverse of `to_timm`, byte for byte.

    Args:
      model: the model that the tensors must fit; `nnx.eval_shape` of one suffices.
      tensors: under timm's keys; ignores `num_batches_tracked`.
      new_head: keep the classifier of `model` if that of the tensors has another size.

    Returns:
      {"params", "stats"}: pure states.

    Raises:
      UserError: lists every key that is missing, unused or of the wrong shape.
    """
    tensors = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    weights = weights_lib.split(model)[1]
    values = _flat(weights)
    fresh = _HEAD if new_head and has_other_head(tensors) else ()
    tensors = {k: v for k, v in tensors.items() if k not in fresh}
    taps = tensors.pop(TAPS, None) if model.gabor is not None else None
    keys = {path: timm_key(path) for path in values}
    wanted = {k: torch_shape(values[p].shape) for p, k in keys.items() if k not in fresh}
    if "pos_embed" in tensors and "pos_embed" in wanted:
        tensors["pos_embed"] = _positions(tensors, wanted["pos_embed"])
    _check_keys(tensors, wanted)
    for path, key in keys.items():
        if key not in fresh:
            values[path] = jnp.asarray(_transposed(tensors[key], _FROM_TORCH), values[path].dtype)
    loaded = {
        name: nnx.from_flat_state([(p[1:], v) for p, v in values.items() if p[0] == name])
        for name in weights
    }
    if model.gabor is not None:
        _check_taps(model, loaded, taps)
    return loaded


def _positions(tensors: Mapping[str, np.ndarray], wanted: tuple[int, ...]) -> np.ndarray:
    """Position embeddings for pictures of the model's size, as timm resamples them on loading."""
    prefix = 0 if "reg_token" in tensors else 1
    side, rest = round((wanted[1] - prefix) ** 0.5), tensors["pos_embed"]
    if rest.shape == wanted or rest.ndim != 3 or rest.shape[2] != wanted[2]:
        return rest
    return np.asarray(vit.resample_positions(jnp.asarray(rest), (side, side), prefix=prefix))


def has_other_head(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the tensors have another number of classes than the project's two."""
    return head_classes(tensors) not in (None, len(classifier.LABELS))


def head_classes(tensors: Mapping[str, np.ndarray]) -> int | None:
    """The number of classes of the tensors; None without a head."""
    head = tensors.get("classifier.weight", tensors.get("head.weight"))
    return None if head is None else len(head)


def timm_key(path: Iterable[str | int]) -> str:
    """("params", "backbone", "blocks", 2, 0, "pw_exp", "bn", "scale") -> timm's key."""
    names = [str(name) for name in path if name not in ("params", "stats", "backbone")]
    return ".".join([*names[:-1], _LEAVES.get(names[-1], names[-1])])


def find_variant(config: ConfigDict, tensors: Mapping[str, np.ndarray]) -> str:
    """The row of the table whose shapes match the tensors, except for stem inputs and head.

    Raises:
      UserError: no row matches: lists how the nearest one differs; or the picture's side does not
        divide by the patch of a row that may.
    """
    shapes = {
        k: v.shape
        for k, v in tensors.items()
        if k not in _NOT_THE_NETWORK and not k.endswith("num_batches_tracked")
    }
    nearest = {}
    for name in _candidates(shapes):
        config = config.copy_and_resolve_references()
        config.model.name = name
        try:
            model = nnx.eval_shape(lambda: classifier.build(config, seed=0))  # noqa: B023
        except ValueError as error:
            raise UserError(str(error)) from None
        wanted = {
            timm_key(p): torch_shape(v.shape) for p, v in _flat(weights_lib.split(model)[1]).items()
        }
        wanted = {k: s for k, s in wanted.items() if k not in _NOT_THE_NETWORK}
        nearest[name] = _differences(shapes, wanted)
        if not nearest[name]:
            return name
    name = min(nearest, key=lambda n: len(nearest[n]))
    raise UserError(
        f"the weights are of no known model ({', '.join(names())}); beside {name}:"
        f" {'; '.join(nearest[name])}"
    )


def _candidates(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The rows that may fit; finds a transformer by its class token's width and its registers."""
    if "cls_token" not in shapes:
        return list(mobilenetv4.VARIANTS)
    fitting = [
        name
        for name, row in vit.VARIANTS.items()
        if row.width == shapes["cls_token"][-1] and (row.registers > 0) == ("reg_token" in shapes)
    ]
    return fitting or ["vit_tiny_patch16_224"]


def _check_keys(tensors, wanted):
    differences = _differences({k: v.shape for k, v in tensors.items()}, wanted)
    if differences:
        raise UserError(f"the weights do not fit the model: {'; '.join(differences)}")


def _differences(shapes, wanted):
    return [
        *(f"missing {k}" for k in wanted if k not in shapes),
        *(f"not used {k}" for k in shapes if k not in wanted),
        *(
            f"{k} is {list(shapes[k])}, must be {list(wanted[k])}"
            for k in wanted
            if k in shapes and tuple(shapes[k]) != tuple(wanted[k])
        ),
    ]


def _check_taps(model, weights, taps):
    """Checks that the taps match the bank's parameters; otherwise the file is of another model."""
    if taps is None:
        raise UserError(f"the weights do not fit the model: missing {TAPS}")
    expected = weights_lib.merge(weights_lib.split(model)[0], weights).gabor.weight()
    expected = _transposed(np.asarray(expected), _TO_TORCH)
    if taps.shape != expected.shape or not np.allclose(taps, expected, atol=1e-6):
        raise UserError(f"the weights do not fit the model: {TAPS} is not the bank of its settings")


def _flat(weights: Mapping[str, nnx.State]) -> dict[tuple, jax.Array]:
    """{("params" or "stats", *path): array}"""
    return {
        (name, *path): value
        for name, state in weights.items()
        for path, value in nnx.to_flat_state(state)
    }


def _transposed(array: np.ndarray, axes: Mapping[int, tuple[int, ...]]) -> np.ndarray:
    """`axes`: by number of dimensions; an array of another number stays as it is."""
    fitting = axes.get(array.ndim)
    return np.ascontiguousarray(array.transpose(fitting)) if fitting else array


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a parameter of this shape has in PyTorch."""
    return tuple(shape[axis] for axis in _TO_TORCH.get(len(shape), range(len(shape))))
