"""The complete state of a run, as one value."""

import dataclasses
import functools
from typing import Any

import jax


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "bad_in_a_row", "bad_steps", "weights", "ema", "opt_state"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run needs to resume; `step` is also its position in the data.

    Weights, averages and moments are trees of named arrays. Between calls of the jitted step they
    are the vectors of a `Packing` instead.
    """

    step: jax.Array  # int32 [], batches consumed
    bad_in_a_row: jax.Array  # int32 [], latest steps in a row without a finite loss or gradient
    bad_steps: jax.Array  # int32 [], all such steps of the run
    weights: dict[str, Any]  # {"params", "stats"}
    ema: dict[str, Any]  # their moving average
    opt_state: Any  # its moments have the structure of weights["params"]
