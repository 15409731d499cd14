"""The computations of a run: its initial state and its training step.

Pure functions: no I/O, no printing, no Python state. The loop jits them; tests call them directly.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from mnv4_jax.models import classifier
from mnv4_jax.models import weights as weights_lib
from mnv4_jax.runtime.mesh import batch_sharding, replicated, split_where_possible
from mnv4_jax.training import objectives
from mnv4_jax.training import optimizer as optimizer_lib
from mnv4_jax.training.augment import vary
from mnv4_jax.training.packing import Packing, dotted
from mnv4_jax.training.state import TrainState


class Program:
    """The computations of one run. Its states are packed, see `packing`.

    Args:
      config: checked, see `config.parse_flags`.
      mesh: the devices that share a batch.
      schedule: the learning rate, by step or constant.
      objective: what to minimise; by default what the config describes.

    Raises:
      ValueError: no such model, or an impossible Gabor bank.
    """

    def __init__(
        self,
        config: ConfigDict,
        mesh: Mesh,
        schedule: optax.Schedule | float,
        objective: objectives.Objective | None = None,
    ):
        self.config, self.mesh = config, mesh
        self.graphdef, self.like = weights_lib.abstract(config)
        known = [dotted(path) for path, _ in jax.tree.leaves_with_path(self.like["params"])]
        self._check_names(tuple(config.train.trainable), known)
        self.is_split = config.train.shard_state and mesh.size > 1
        self.packing = Packing(
            self.like,
            optimizer_lib.groups(config, known).__getitem__,
            multiple=mesh.size if self.is_split else 1,
        )
        self.optimizer = optimizer_lib.make_optimizer(config, schedule)
        self.objective = objective or objectives.from_config(config)

    @staticmethod
    def _check_names(patterns: tuple[str, ...], known: list[str]) -> None:
        for pattern in patterns:
            if not any(optimizer_lib.names(pattern, name) for name in known):
                raise ValueError(
                    f"train.trainable: {pattern!r} names no parameter; there are {known[0]},"
                    f" {known[len(known) // 2]}, {known[-1]} and others"
                )

    def shardings(self) -> TrainState:
        """Shardings of the packed state. With `train.shard_state` every device holds its part of
        each vector between steps, as in ZeRO-3 (Rajbhandari et al., SC 2020)."""
        state = jax.eval_shape(self.init, self.like)
        split = batch_sharding(self.mesh) if self.is_split else replicated(self.mesh)
        return jax.tree.map(lambda x: split if x.ndim else replicated(self.mesh), state)

    def by_name(self) -> TrainState:
        """Shapes, dtypes and shardings of the state by name, which is what a checkpoint holds."""
        state = jax.eval_shape(lambda w: self.packing.unpack_state(self.init(w)), self.like)

        def place(x):
            split = split_where_possible(x.shape, self.mesh)
            sharding = split if self.is_split else replicated(self.mesh)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return jax.tree.map(place, state)

    def _placed(self, vectors: dict[str, jax.Array], sharding) -> dict[str, jax.Array]:
        if not self.is_split:
            return vectors
        return jax.lax.with_sharding_constraint(vectors, sharding(self.mesh))

    def init(self, weights: dict[str, Any]) -> TrainState:
        """The initial state of a run with the named `weights`."""
        zero = jnp.zeros((), jnp.int32)
        vectors = self.packing.pack(weights)
        return TrainState(
            step=zero,
            bad_in_a_row=zero,
            bad_steps=zero,
            weights=vectors,
            # A copy: one buffer cannot be donated twice.
            ema=jax.tree.map(jnp.copy, self.packing.averaged(vectors)),
            opt_state=self.optimizer.init(self.packing.params(vectors)),
        )

    def step(
        self, state: TrainState, batch: dict[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Damage, augment, normalise, forward, backward, update, average.

        Args:
          state: the state before; donate it.
          batch: "image" [B, H, W, 3] uint8, "label" [B] int32, "position" [B] uint32.

        Returns:
          The state after, and {"loss": [], "logits": [B, 2], "grad_norm": [], "bad_in_a_row": [],
          "bad_steps": []}. If loss or gradient is not finite, weights, statistics, EMA and
          optimizer state are unchanged; only the counters change.
        """
        config, packing = self.config, self.packing
        images = classifier.to_float(batch["image"], classifier.param_dtype(config))
        views = {"image": vary(images, batch["position"], config)}
        if config.train.consistency:
            views["clean"] = vary(images, batch["position"], config, damaged=False)
        loss, grads, stats, logits = gradients(
            packing.unpack(self._placed(state.weights, replicated)),
            batch | views,
            jax.random.fold_in(jax.random.key(config.seed + 1), state.step),
            objective=self.objective,
            graphdef=self.graphdef,
            batch_norm=config.model.batch_norm,
            mesh=self.mesh,
        )
        # The gradients of frozen parameters are not used, so XLA does not compute them.
        grads = packing.params(packing.pack({"params": grads}))
        grads = self._placed(grads, batch_sharding)
        params = packing.params(state.weights)
        grad_norm = optax.global_norm(grads)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, params)
        weights = optax.apply_updates(params, updates) | packing.pack({"stats": stats})
        decay = optimizer_lib.ema_decay(state.step - state.bad_steps, config.train.ema_decay)
        ema = jax.tree.map(
            lambda e, w: (e + (1 - decay) * (w - e)).astype(e.dtype), state.ema, weights
        )
        weights = state.weights | weights

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


def gradients(
    weights: dict[str, Any],
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    objective: objectives.Objective,
    graphdef: nnx.GraphDef,
    batch_norm: str,
    mesh: Mesh,
) -> tuple[jax.Array, Any, Any, jax.Array]:
    """Loss, gradients, new BatchNorm statistics and logits of one global batch.

    With global BatchNorm the result is that of a single device, and XLA inserts the collectives
    (two for each BatchNorm, one for the gradients). With local BatchNorm every device computes its
    part alone, and one all-reduce averages everything that must agree.

    Args:
      weights: {"params", "stats"} by name.
      batch: as an `Objective` takes it.
    """

    def loss_fn(params, stats, batch, key):
        model = nnx.merge(graphdef, params, stats, copy=True)
        loss, logits = objective(model, batch, key)
        return loss, (nnx.as_pure(nnx.state(model, nnx.BatchStat)), logits)

    def compute(weights, batch, key):
        (loss, (stats, logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            weights["params"], weights["stats"], batch, key
        )
        return loss, grads, stats, logits

    if batch_norm == "global":
        return compute(weights, batch, key)

    def local(weights, batch, key):
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        loss, grads, stats, logits = compute(weights, batch, key)
        return *jax.lax.pmean((loss, grads, stats), "data"), logits

    # check_vma=False: otherwise the gradients of replicated parameters arrive already summed. The
    # pmean above would leave them too large by the number of devices, and Adam would hide that.
    replicated, split = PartitionSpec(), PartitionSpec("data")
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(replicated, split, replicated),
        out_specs=(replicated, replicated, replicated, split),
        check_vma=False,
    )(weights, batch, key)
