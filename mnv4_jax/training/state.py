"""All that a run needs to go on, as one value."""

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
    """All that a run needs to go on, besides its data position, which is `step`.

    Weights, averages and moments are trees of named arrays. Only between calls of the jitted step
    are they the vectors of a `Packing`.
    """

    step: jax.Array  # int32 [], batches consumed
    bad_in_a_row: jax.Array  # int32 [], steps without a finite loss or gradient, up to now
    bad_steps: jax.Array  # int32 [], all of them
    weights: dict[str, Any]  # {"params", "stats"}
    ema: dict[str, Any]  # the same, averaged
    opt_state: Any  # its moments have the structure of weights["params"]
