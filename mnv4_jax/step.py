"""One training step and one evaluation step: pure functions of state and batch.

No I/O, no printing, no Python state. `train.py` jits them; tests call them without a loop.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from mnv4_jax.augment import augment, keys
from mnv4_jax.models import classifier


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "bad_in_a_row", "bad_steps", "weights", "ema", "opt_state"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run needs to go on, besides its data position, which is `step`.

    In a step, `weights` and `ema` are the vectors of `pack`; in a checkpoint, the named arrays of
    `unpack`.
    """

    step: jax.Array  # int32 [], batches consumed
    bad_in_a_row: jax.Array  # int32 [], steps without a finite loss or gradient, up to now
    bad_steps: jax.Array  # int32 [], all of them
    weights: dict[str, Any]
    ema: dict[str, Any]
    opt_state: Any


def abstract(config: ConfigDict) -> tuple[nnx.GraphDef, dict[str, nnx.State]]:
    """(graphdef, {"params", "stats"} of `jax.ShapeDtypeStruct`) of the model of `config`."""
    return split(nnx.eval_shape(lambda: classifier.build(config, seed=0)))


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, nnx.State]]:
    """(graphdef, {"params", "stats"}) of a `Classifier`; `merge` undoes it."""
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, {"params": nnx.as_pure(params), "stats": nnx.as_pure(stats)}


def merge(graphdef: nnx.GraphDef, weights: dict[str, nnx.State]) -> nnx.Module:
    """The model with `weights` in it; their arrays are copied where a trace is going on."""
    return nnx.merge(graphdef, weights["params"], weights["stats"], copy=True)


def fresh_weights(config: ConfigDict) -> dict[str, nnx.State]:
    """{"params", "stats"} of NumPy arrays, from `config.seed` alone."""
    model = classifier.build(config, seed=config.seed)
    return split(model)[1]


def pack(weights: dict[str, Any]) -> dict[str, jax.Array]:
    """{"params", "stats"} -> three vectors [N]: "kernels" (what decays), "others", "stats".

    As 250 arrays each, weights and EMA took a step 5 ms to pass in and out, and half of its compile
    time to update.
    """
    params = jax.tree.leaves(weights["params"])
    groups = {
        "kernels": [p for p in params if p.ndim >= 2],
        "others": [p for p in params if p.ndim < 2],
        "stats": jax.tree.leaves(weights["stats"]),
    }
    return {name: jnp.concatenate(list(map(jnp.ravel, arrays))) for name, arrays in groups.items()}


def unpack(vectors: dict[str, jax.Array], like: dict[str, nnx.State]) -> dict[str, nnx.State]:
    """Undoes `pack`; `like` has the shapes, see `abstract`."""
    taken = dict.fromkeys(vectors, 0)

    def take(name, shape):
        start = taken[name]
        taken[name] += shape.size
        return jax.lax.slice(vectors[name], (start,), (taken[name],)).reshape(shape.shape)

    return {
        "params": jax.tree.map(
            lambda x: take("kernels" if x.ndim >= 2 else "others", x), like["params"]
        ),
        "stats": jax.tree.map(lambda x: take("stats", x), like["stats"]),
    }


def init_state(
    weights: dict[str, nnx.State], optimizer: optax.GradientTransformation
) -> TrainState:
    """The state a run starts from with `weights`. Pure: for `jax.jit` and `jax.eval_shape`."""
    zero = jnp.zeros((), jnp.int32)
    vectors = pack(weights)
    return TrainState(
        step=zero,
        bad_in_a_row=zero,
        bad_steps=zero,
        weights=vectors,
        ema=jax.tree.map(jnp.copy, vectors),  # a copy: one buffer cannot be donated twice
        opt_state=optimizer.init(_params(vectors)),
    )


def packed(state: TrainState) -> TrainState:
    """`state` as a step takes it, from `state` as a checkpoint keeps it. Pure."""
    return dataclasses.replace(state, weights=pack(state.weights), ema=pack(state.ema))


def unpacked(state: TrainState, like: dict[str, nnx.State]) -> TrainState:
    """The other way round."""
    return dataclasses.replace(
        state, weights=unpack(state.weights, like), ema=unpack(state.ema, like)
    )


def _params(vectors: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: vectors[name] for name in ("kernels", "others")}


def learning_rate(config: ConfigDict, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """Linear warm-up over `warmup_epochs` (at most half the run), then a cosine to zero."""
    warmup = min(round(config.train.warmup_epochs * steps_per_epoch), total_steps // 2)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.train.learning_rate,
        peak_value=config.train.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(total_steps, warmup + 1),
    )


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW behind gradient clipping, for the vectors of `pack`; no weight decay on biases,
    BatchNorm and Gabor parameters ("others").
    """
    clip = config.train.clip_norm
    decayed = {"kernels": True, "others": False}
    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.scale_by_adam(),
        optax.add_decayed_weights(config.train.weight_decay, decayed),
        optax.scale_by_learning_rate(schedule),
    )


def to_float(images: jax.Array, dtype=jnp.float32) -> jax.Array:
    """[..., 3] uint8 pixels -> float in [0, 1]."""
    return images.astype(dtype) / 255


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
    """min(decay, (1 + t) / (10 + t)): a fixed decay would remember the initial weights too long."""
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))


def loss_fn(params, stats, images, labels, key, *, graphdef, label_smoothing):
    """Mean smoothed cross-entropy of a batch in training mode.

    Args:
      params, stats: pure nnx.States of the model.
      images: [B, H, W, 3] float in [0, 1]; labels: [B] int32, 0 fake, 1 real.
      key: PRNG key of dropout and stochastic depth.

    Returns:
      (loss, (new_stats, logits [B, 2])).
    """
    model = nnx.merge(graphdef, params, stats, copy=True)
    logits = model(images, train=True, key=key)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, 2, dtype=logits.dtype), label_smoothing)
    loss = optax.softmax_cross_entropy(logits, targets).mean()
    return loss, (nnx.as_pure(nnx.state(model, nnx.BatchStat)), logits)


def gradients(weights, images, labels, key, *, graphdef, config: ConfigDict, mesh: Mesh):
    """Loss, gradients, new BatchNorm statistics and logits of one global batch.

    With global BatchNorm this is what one device would compute, and XLA places the collectives
    (two for each BatchNorm, one for the gradients). With local BatchNorm every device computes its
    part alone and one all-reduce averages everything that must agree.
    """
    loss_and_grads = jax.value_and_grad(
        functools.partial(loss_fn, graphdef=graphdef, label_smoothing=config.train.label_smoothing),
        has_aux=True,
    )
    if config.model.batch_norm == "global":
        (loss, (stats, logits)), grads = loss_and_grads(
            weights["params"], weights["stats"], images, labels, key
        )
        return loss, grads, stats, logits

    def local(weights, images, labels, key):
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        (loss, (stats, logits)), grads = loss_and_grads(
            weights["params"], weights["stats"], images, labels, key
        )
        loss, grads, stats = jax.lax.pmean((loss, grads, stats), "data")
        return loss, grads, stats, logits

    # check_vma=False: with it on, the gradients of replicated parameters arrive already summed, and
    # the pmean above would leave them too large by the number of devices, which Adam hides.
    replicated, split = PartitionSpec(), PartitionSpec("data")
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(replicated, split, split, replicated),
        out_specs=(replicated, replicated, replicated, split),
        check_vma=False,
    )(weights, images, labels, key)


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    model: tuple[nnx.GraphDef, dict[str, nnx.State]],
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    mesh: Mesh,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Augment, normalise, forward, backward, update, average.

    Args:
      state: the state before; donate it.
      batch: "image" [B, H, W, 3] uint8, "label" [B] int32, "position" [B] uint32.
      model: of `abstract`.

    Returns:
      The state after, and {"loss": [], "logits": [B, 2], "grad_norm": [], "bad_in_a_row": [],
      "bad_steps": []}. Where loss or gradient is not finite, weights, statistics, EMA and optimizer
      state are those of before; only the counters move.
    """
    graphdef, like = model
    dtype = classifier.param_dtype(config)
    images = augment(
        to_float(batch["image"], dtype), keys(config.seed, batch["position"]), config.augment
    )
    dropout_key = jax.random.fold_in(jax.random.key(config.seed + 1), state.step)
    loss, grads, stats, logits = gradients(
        unpack(state.weights, like), images, batch["label"], dropout_key,
        graphdef=graphdef, config=config, mesh=mesh,
    )  # fmt: skip
    new = pack({"params": grads, "stats": stats})
    grads, params = _params(new), _params(state.weights)
    grad_norm = optax.global_norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    weights = optax.apply_updates(params, updates) | {"stats": new["stats"]}
    decay = ema_decay(state.step - state.bad_steps, config.train.ema_decay)
    ema = jax.tree.map(lambda e, w: (e + (1 - decay) * (w - e)).astype(e.dtype), state.ema, weights)

    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)  # noqa: E731
    bad = 1 - finite.astype(jnp.int32)
    state = TrainState(
        step=state.step + 1,
        bad_in_a_row=(state.bad_in_a_row + 1) * bad,
        bad_steps=state.bad_steps + bad,
        weights=keep(weights, state.weights),
        ema=keep(ema, state.ema),
        opt_state=keep(opt_state, state.opt_state),
    )
    metrics = {
        "loss": loss,
        "logits": logits,
        "grad_norm": grad_norm,
        "bad_in_a_row": state.bad_in_a_row,
        "bad_steps": state.bad_steps,
    }
    return state, metrics


def eval_step(
    weights: dict[str, nnx.State], images: jax.Array, *, graphdef: nnx.GraphDef, dtype=jnp.float32
) -> jax.Array:
    """[B, H, W, 3] uint8 pictures -> [B, 2] logits (fake, real), in evaluation mode."""
    model = merge(graphdef, weights)
    return model(to_float(images, dtype))
