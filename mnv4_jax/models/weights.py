"""A model as graph definition and arrays: split, merged, freshly drawn, and applied to pictures."""

import jax
from flax import nnx
from ml_collections import ConfigDict

from mnv4_jax.models import classifier


def abstract(config: ConfigDict) -> tuple[nnx.GraphDef, dict[str, nnx.State]]:
    """(graphdef, {"params", "stats"} of `jax.ShapeDtypeStruct`) of the model of `config`."""
    return split(nnx.eval_shape(lambda: classifier.build(config, seed=0)))


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, nnx.State]]:
    """(graphdef, {"params", "stats"}) of a `Classifier`; `merge` undoes it."""
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, {"params": nnx.as_pure(params), "stats": nnx.as_pure(stats)}


def merge(graphdef: nnx.GraphDef, weights: dict[str, nnx.State]) -> nnx.Module:
    """The model with `weights` in it; copies their arrays during tracing."""
    return nnx.merge(graphdef, weights["params"], weights["stats"], copy=True)


def fresh_weights(config: ConfigDict) -> dict[str, nnx.State]:
    """{"params", "stats"} of NumPy arrays; depends only on the config and its seed."""
    model = classifier.build(config, seed=config.seed)
    return split(model)[1]


def eval_step(
    weights: dict[str, nnx.State], images: jax.Array, *, graphdef: nnx.GraphDef
) -> jax.Array:
    """[B, H, W, 3] uint8 pictures -> [B, 2] logits (fake, real), in evaluation mode."""
    return merge(graphdef, weights)(images)
