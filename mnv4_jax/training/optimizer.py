"""The optimizer, its learning rate and the moving average's decay, from the config."""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

FROZEN = "frozen"
_BLOCK = re.compile(r"\bblocks\.(\d+(?:\.\d+)?)\.")
_BEFORE = re.compile(
    r"gabor\.|backbone\.(conv_stem|bn1|patch_embed|cls_token|reg_token|pos_embed|norm_pre)\b"
)


def learning_rate(config: ConfigDict, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """Linear warm-up over `warmup_epochs` (at most half the run), then a cosine to zero."""
    warmup = min(round(config.train.warmup_epochs * steps_per_epoch), total_steps // 2)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.train.learning_rate,
        peak_value=config.train.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(total_steps, warmup + 1),
    )


def groups(config: ConfigDict, known: Sequence[str]) -> dict[str, str]:
    """{name of a parameter: its group}. All members of a group are updated alike.

    Weight decay applies to the kernels of convolutions and dense layers ("decayed"), not to biases,
    normalisation layers and the Gabor bank ("plain"). With `train.layer_decay` the name ends in the
    layer: "decayed 3". A parameter that no pattern of `train.trainable` names is FROZEN.

    Args:
      known: the dotted names of all parameters.
    """
    trainable, layers = tuple(config.train.trainable), layers_of(known)
    found = {}
    for name in known:
        found[name] = "decayed" if name.rsplit(".", 1)[-1] == "kernel" else "plain"
        if config.train.layer_decay != 1:
            found[name] += f" {max(layers.values()) - layers[name]}"
        if trainable and not any(names(pattern, name) for pattern in trainable):
            found[name] = FROZEN
    return found


def layers_of(known: Sequence[str]) -> dict[str, int]:
    """{name: its depth}: 0 before the blocks, 1 for the first block, … as timm counts."""
    places = {name: _BLOCK.search(name) for name in known}
    blocks = sorted({tuple(map(int, m[1].split("."))) for m in places.values() if m})
    depth = {}
    for name, match in places.items():
        if match:
            depth[name] = 1 + blocks.index(tuple(map(int, match[1].split("."))))
        else:
            depth[name] = 0 if _BEFORE.match(name) else 1 + len(blocks)
    return depth


def names(pattern: str, name: str) -> bool:
    """Whether the dotted `pattern` names the parameter `name`, or a module that contains it.

    Compares whole parts: "blocks.1" matches "backbone.blocks.1.conv.kernel" but not "…blocks.11…".
    A number may follow a word: "norm" matches "backbone.blocks.1.norm2.scale".
    """
    wanted, parts = pattern.split("."), name.split(".")
    fits = lambda want, part: part == want or (want.isalpha() and part.rstrip("0123456789") == want)  # noqa: E731
    return any(
        all(map(fits, wanted, parts[start:])) for start in range(len(parts) - len(wanted) + 1)
    )


def make_optimizer(
    config: ConfigDict, schedule: optax.Schedule | float
) -> optax.GradientTransformation:
    """Gradient clipping, then AdamW, for parameters held as {group: vector}."""
    clip = config.train.clip_norm
    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.scale_by_adam(),
        optax.add_decayed_weights(
            config.train.weight_decay,
            lambda params: {name: name.startswith("decayed") for name in params},
        ),
        optax.scale_by_learning_rate(schedule),
        optax.stateless(lambda updates, _: {g: _factor(config, g) * u for g, u in updates.items()}),
    )


def _factor(config: ConfigDict, group: str) -> float:
    """`train.layer_decay` once for every layer between this one and the head (Bao et al., BEiT)."""
    _, _, layers_above = group.partition(" ")
    return config.train.layer_decay ** int(layers_above or 0)


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
    """min(decay, (1 + t) / (10 + t)): a fixed decay would remember the initial weights too long."""
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))
