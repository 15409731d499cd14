"""Starts from the weights of another run or of ImageNet, with any front end."""

import numpy as np
from flax import nnx

from input_pipeline.cli import UserError
from mnv4_jax.models.vit import resample_positions

_STEMS = (("backbone", "conv_stem", "kernel"), ("backbone", "patch_embed", "proj", "kernel"))
_HEADS = (("backbone", "classifier"), ("backbone", "head"))
_POSITIONS = ("backbone", "pos_embed")


def transfer(
    params: nnx.State, stats: nnx.State, source_params: nnx.State, source_stats: nnx.State
) -> tuple[nnx.State, nnx.State, list[str]]:
    """Replaces fresh weights by those of the source, where it has them.

    A head of another size and Gabor parameters that the source lacks stay fresh. Additional input
    channels of the stem start at zero, so the network starts as the same function as the source.

    Args:
      params, stats: pure states of the model to start, as freshly initialised.
      source_params, source_stats: pure states to start from.

    Returns:
      (params, stats, notes): NumPy arrays, which need no device and no compilation; the notes say
      in words what was not simply copied.

    Raises:
      UserError: the source is another network; lists the parameters that differ.
    """
    notes: list[str] = []
    new_params = _copied(params, source_params, notes)
    new_stats = _copied(stats, source_stats, notes)
    return new_params, new_stats, notes


def _copied(state, source, notes):
    values, source = dict(nnx.to_flat_state(state)), dict(nnx.to_flat_state(source))
    wrong = [
        f"{'.'.join(map(str, path))} not in both"
        for path in values.keys() ^ source.keys()
        if path[0] != "gabor"
    ]
    for path in values.keys() & source.keys():
        fresh = values[path]
        given = np.asarray(source[path], fresh.dtype)
        if fresh.shape == given.shape:
            values[path] = given
        elif path in _STEMS and fresh.shape[3] == given.shape[3]:
            values[path] = _stem(path, fresh, given, notes)
        elif path == _POSITIONS and fresh.shape[2] == given.shape[2]:
            prefix = 0 if ("backbone", "reg_token") in values else 1
            side = round((fresh.shape[1] - prefix) ** 0.5)
            values[path] = np.asarray(resample_positions(given, (side, side), prefix=prefix))
            notes.append(f"{_name(path)} is resampled to {side} × {side} patches")
        elif path[:2] in _HEADS or path[0] == "gabor":
            notes.append(f"{_name(path)} {fresh.shape} starts fresh: the source's is {given.shape}")
        else:
            wrong.append(f"{_name(path)} is {given.shape}, must be {fresh.shape}")
    if wrong:
        raise UserError(f"the weights to start from are of another model: {'; '.join(wrong)}")
    for path in values.keys() ^ source.keys():
        where = "starts fresh: the source has none" if path in values else "of the source is unused"
        notes.append(f"{_name(path)} {where}")
    notes.sort()
    return nnx.from_flat_state(values.items())


def _stem(path, fresh, given, notes):
    """Both [k, k, inputs, features]; the inputs are red, green, blue and then Gabor responses."""
    ours, theirs = fresh.shape[2], given.shape[2]
    if ours > theirs:
        notes.append(f"{_name(path)}: {ours - theirs} further input channels start at zero")
        return np.pad(given, ((0, 0), (0, 0), (0, ours - theirs), (0, 0)))
    notes.append(f"{_name(path)}: {theirs - ours} input channels of the source are dropped")
    return given[:, :, :ours]


def _name(path):
    return ".".join(map(str, path))
