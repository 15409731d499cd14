"""What training minimises. An objective is a plain function of a model and a batch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

from mnv4_jax.attacks.budget import cross_entropy as cross_entropy_of
from mnv4_jax.attacks.gradient import ascend

# (model, batch, key) -> (loss [], logits [B, 2]). The model is traced: calling it with `train=True`
# updates its BatchNorm statistics, and the step reads them from it afterwards.
# `batch` has "image" [B, H, W, 3] float in [0, 1], augmented, "label" [B] and "position" [B]; with
# `train.consistency` also "clean": the same pictures without the damage.
Objective = Callable[[nnx.Module, dict[str, jax.Array], Any], tuple[jax.Array, jax.Array]]


def from_config(config: ConfigDict, steps_per_epoch: float = 1.0) -> Objective:
    """The objective that `config.train` describes."""
    train, attack = config.train, config.train.adversary
    smoothing = train.label_smoothing
    if train.consistency:
        return functools.partial(consistent, label_smoothing=smoothing, weight=train.consistency)
    if attack.method == "none":
        return functools.partial(cross_entropy, label_smoothing=smoothing)
    warmup = attack.warmup_epochs * steps_per_epoch * train.batch_size
    return functools.partial(
        trades if attack.method == "trades" else adversarial,
        label_smoothing=smoothing,
        attack=Attack(
            method=attack.method,
            budget=attack.budget / 255,
            steps=attack.steps,
            step_size=attack.step_size or 2.5 / attack.steps,
            share=attack.share,
            weight=attack.weight,
            warmup_pictures=max(1.0, warmup),
        ),
    )


def cross_entropy(
    model: nnx.Module, batch: dict[str, jax.Array], key: Any, *, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """The mean cross-entropy of a batch in training mode, with smoothed labels.

    Args:
      key: PRNG key of dropout and stochastic depth.

    Returns:
      (loss [], logits [B, 2]).
    """
    logits = model(batch["image"], train=True, key=key)
    return _smoothed(logits, batch["label"], label_smoothing).mean(), logits


def consistent(
    model: nnx.Module,
    batch: dict[str, jax.Array],
    key: Any,
    *,
    label_smoothing: float,
    weight: float,
) -> tuple[jax.Array, jax.Array]:
    """The cross-entropy of both views of a picture, damaged and clean, plus `weight` times
    KL(clean || damaged). Only the damaged view gets a gradient from the KL term.

    Stability training of Zheng et al. (CVPR 2016), eq. 9, with the labels on both views. Both go
    through the model together, so BatchNorm has one set of statistics. The returned logits are
    those of the damaged view.
    """
    both = jnp.concatenate([batch["image"], batch["clean"]])
    logits = model(both, train=True, key=key)
    damaged, clean = jnp.split(logits, 2)
    labels = jnp.concatenate([batch["label"]] * 2)
    target = jax.lax.stop_gradient(jax.nn.log_softmax(clean))
    apart = _divergence(target, jax.nn.log_softmax(damaged)).mean()
    return _smoothed(logits, labels, label_smoothing).mean() + weight * apart, damaged


def _smoothed(logits: jax.Array, labels: jax.Array, label_smoothing: float) -> jax.Array:
    """[B, 2], [B] -> [B]: cross-entropies with smoothed labels."""
    hot = jax.nn.one_hot(labels, 2, dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(hot, label_smoothing))


@dataclasses.dataclass(frozen=True)
class Attack:
    """How pictures are attacked in training."""

    method: str  # "fgsm", "pgd" or "trades"
    budget: float  # a share of full scale, reached after `warmup_pictures`
    steps: int  # of "pgd" and "trades"
    step_size: float  # a share of the budget
    share: float  # of a batch that is attacked
    weight: float  # of the attacked pictures' part of the loss
    warmup_pictures: float

    def target(self, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """(images [n, H, W, 3], budget [n, 1, 1, 1]): the pictures to attack, which are the first
        `share` of `batch`, and their budgets, which grow linearly from 0 with the position in the
        run."""
        n = max(1, round(self.share * len(batch["image"])))
        images, position = batch["image"][:n], batch["position"][:n]
        grown = jnp.minimum(1.0, (position + 1).astype(jnp.float32) / self.warmup_pictures)
        return images, (self.budget * grown)[:, None, None, None].astype(images.dtype)


def adversarial(
    model: nnx.Module,
    batch: dict[str, jax.Array],
    key: Any,
    *,
    label_smoothing: float,
    attack: Attack,
) -> tuple[jax.Array, jax.Array]:
    """The cross-entropy of a batch after attacking its first `attack.share` (Madry et al.,
    ICLR 2018).

    The attack sees the model in evaluation mode. Attacked and clean pictures go through the model
    together, and BatchNorm has one set of statistics for both.

    "fgsm" is a single step from noise of twice the budget, which is not cut back to it: N-FGSM of
    de Jorge et al. (NeurIPS 2022), which does not overfit catastrophically as FGSM does.
    """
    key, attack_key = jax.random.split(key)
    images, budget = attack.target(batch)
    n, frozen = len(images), _without_gradients(model)
    loss = lambda x: cross_entropy_of(frozen(x), batch["label"][:n])  # noqa: E731
    if attack.method == "fgsm":
        noise = jax.random.uniform(attack_key, images.shape, images.dtype, -2, 2)
        start = images + budget * noise
        gradient = jax.grad(lambda x: jnp.sum(loss(x)))(start)
        attacked = jnp.clip(start + budget * jnp.sign(gradient), 0, 1)
    else:
        attacked = ascend(
            loss, images, budget, attack_key, steps=attack.steps, step_size=attack.step_size
        )
    mixed = jnp.concatenate([attacked, batch["image"][n:]])
    logits = model(mixed, train=True, key=key)
    losses = _smoothed(logits, batch["label"], label_smoothing)
    weights = jnp.where(jnp.arange(len(losses)) < n, attack.weight, 1.0).astype(losses.dtype)
    return jnp.sum(weights * losses) / jnp.sum(weights), logits


def trades(
    model: nnx.Module,
    batch: dict[str, jax.Array],
    key: Any,
    *,
    label_smoothing: float,
    attack: Attack,
) -> tuple[jax.Array, jax.Array]:
    """The clean cross-entropy, plus `attack.weight` times how far an attack can move the answer.

    TRADES of Zhang et al. (ICML 2019), eq. 5: the attack maximises the divergence
    KL(clean || attacked), and training minimises it.
    """
    key, attack_key = jax.random.split(key)
    images, budget = attack.target(batch)
    frozen = _without_gradients(model)
    before = jax.nn.log_softmax(frozen(images))
    attacked = ascend(
        lambda x: _divergence(before, jax.nn.log_softmax(frozen(x))),
        images, budget, attack_key, steps=attack.steps, step_size=attack.step_size,
    )  # fmt: skip
    both = jnp.concatenate([batch["image"], attacked])
    logits = model(both, train=True, key=key)
    clean, moved = logits[: len(batch["image"])], logits[len(batch["image"]) :]
    loss = _smoothed(clean, batch["label"], label_smoothing).mean()
    apart = _divergence(jax.nn.log_softmax(clean[: len(images)]), jax.nn.log_softmax(moved)).mean()
    return loss + attack.weight * apart, clean


def _without_gradients(model: nnx.Module) -> nnx.Module:
    """A copy of `model` whose parameters are constants to the training step's gradient.

    Stopping the gradient at the attacked pictures is too late: JAX would already differentiate the
    gradient inside the attack, and the C++ convolutions have no second derivative.
    """
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(jax.lax.stop_gradient, state))


def _divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """[B, 2], [B, 2] -> [B]: KL(p || q) in nats."""
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
