"""What a run starts from, in order of precedence:

1. the newest intact checkpoint in WORKDIR/checkpoints,
2. the weights of `model.init_from`,
3. fresh weights from `seed`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from input_pipeline.cli import UserError
from mnv4_jax import defaults
from mnv4_jax.config import fields
from mnv4_jax.detector import boxed, weight_files
from mnv4_jax.detector import saved as saved_lib
from mnv4_jax.models import weights as weights_lib
from mnv4_jax.models.init_from import transfer
from mnv4_jax.training.checkpoint import Checkpointer
from mnv4_jax.training.state import TrainState
from mnv4_jax.training.step import Program


def first_state(
    program: Program, checkpointer: Checkpointer, say: Callable[[str], None]
) -> tuple[TrainState, int, bool]:
    """The packed state to start from, its step, and whether that step's evaluation is still due.

    Raises:
      UserError: the checkpoints, or the weights to start from, do not fit the config.
    """
    config, packing = program.config, program.packing
    if found := checkpointer.latest_meta():
        _check_same_model(config, found[1]["config"], checkpointer.folder)
        _warn_of_other_batches(config, found[1]["config"], say)
        state, meta = checkpointer.restore(program.by_name())
        step = int(state.step)
        say(f"going on from step {step}, found in {checkpointer.folder}")
        packed = jax.jit(packing.pack_state, out_shardings=program.shardings())(state)
        return packed, step, meta.get("evaluation_due", False)
    weights = weights_lib.fresh_weights(config)
    if config.model.init_from:
        weights = _transferred(config, weights, say)
    return jax.jit(program.init, out_shardings=program.shardings())(weights), 0, False


def _transferred(config: ConfigDict, weights: dict[str, Any], say) -> dict[str, Any]:
    """`weights`, replaced where the checkpoint or file `model.init_from` has values."""
    path = config.model.init_from
    try:
        if weight_files.is_file(path):
            source, where = weight_files.load(path, config, say), path
        else:
            source = saved_lib.load(None if path == boxed.NAME else path)
            where = source.path
        params, stats, notes = transfer(
            weights["params"],
            weights["stats"],
            source.weights["params"],
            source.weights["stats"],
        )
    except UserError as error:
        raise UserError(f"config.model.init_from: {error}") from None
    say("\n".join([f"starting from the weights of {where}", *notes]))
    return {"params": params, "stats": stats}


def _check_same_model(config: ConfigDict, saved: Mapping[str, Any], folder: epath.Path) -> None:
    for field, (mine, theirs) in _changed(config, saved).items():
        # Frozen parameters have no moments in a checkpoint; a transformer learns positions.
        same = field in ("model.name", "train.trainable") or field.startswith("gabor.")
        if same or (field == "data.image_size" and config.model.name.startswith("vit_")):
            raise UserError(
                f"config.{field}={mine!r}, but the run in {folder} has {theirs!r}:"
                " use that, or another --workdir"
            )


def _warn_of_other_batches(config: ConfigDict, saved: Mapping[str, Any], say) -> None:
    # These fields do not change which pictures are in a batch.
    same = {"data.dir", "data.threads", "data.workers", "data.log_digests"}
    same |= {"data.cache", "data.cache_gib"}
    changed = [
        f"config.{field}={mine!r} (was {theirs!r})"
        for field, (mine, theirs) in _changed(config, saved).items()
        if field in ("seed", "train.batch_size")
        or (field.startswith("data.") and field not in same)
    ]
    if changed:
        say(f"warning: {', '.join(changed)}: from here on the batches are those of another run")


def _changed(config: ConfigDict, saved: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{"data.crop": (now, as saved), ...}: the fields of `config` with another value in `saved`."""
    # A field that is newer than the run had its default, which keeps the old behaviour.
    then = fields(defaults.get_config()) | fields(boxed.as_config(saved))
    return {f: (v, then[f]) for f, v in fields(config).items() if f in then and v != then[f]}
