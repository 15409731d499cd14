"""Trains with a method that the product does not have, to see whether it helps.

    python experiments/trials.py mixup --config=configs/small.py --workdir=runs/mixup [...]

The other arguments are those of `mnv4_jax.main`. Results: docs/RESULTS.md.

    mixup   pictures and labels of each batch blended with its reverse, Beta(0.2, 0.2)
            (Zhang et al., arXiv:1710.09412)
    cutmix  a rectangle of each picture from the batch's reverse, labels by area, Beta(1, 1)
            (Yun et al., arXiv:1905.04899)
    sam     gradients at the weights' worst neighbour within 0.05: two passes a step
            (Foret et al., arXiv:2010.01412)
    blended self-supervised: ignores the labels; half of the pictures get a patch of themselves,
            moved, blurred and in another light, and the network has to find which; then start from
            its weights with model.init_from (after Shiohara and Yamasaki, arXiv:2204.08376)
    late    the network with a first stage that does not halve the resolution: four times the
            positions from there on, and four times the work
    patch8  vit_tiny_patch16_224 with patches of 8 px
    apart   with train.adversary.method fgsm or pgd, attacked pictures have their own BatchNorm
            statistics, which are not kept: the running ones are of clean pictures (after Xie et
            al., arXiv:1911.09665)
    look    a 3x3 convolution to 16 channels, BatchNorm and ReLU at full resolution before the stem
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mnv4_jax import main
from mnv4_jax.models import mobilenetv4, vit
from mnv4_jax.models.mobilenetv4 import VARIANTS, ConvBlock, MobileNetV4
from mnv4_jax.ops import resample
from mnv4_jax.training import augment, objectives

SAM_RADIUS = 0.05


def mixed(model, batch, key, *, label_smoothing, mix):
    """The cross-entropy of a batch mixed with its own reverse."""
    key, mix_key = jax.random.split(key)
    images, share = mix(batch["image"], batch["image"][::-1], mix_key)
    hot = jax.nn.one_hot(batch["label"], 2)
    logits = model(images, train=True, key=key)
    targets = optax.smooth_labels(share * hot + (1 - share) * hot[::-1], label_smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean(), logits


def blend(images, others, key):
    share = jax.random.beta(key, 0.2, 0.2)
    return share * images + (1 - share) * others, share


def paste(images, others, key):
    area_key, place_key = jax.random.split(key)
    size = images.shape[1]
    half = jnp.sqrt(jax.random.uniform(area_key)) * size / 2
    distance = jnp.abs(jnp.arange(size)[:, None] - jax.random.uniform(place_key, (2,)) * size)
    inside = (distance[:, 0] < half)[:, None] & (distance[:, 1] < half)
    return jnp.where(inside[None, :, :, None], others, images), 1 - inside.mean()


def sharpness_aware(model, batch, key, *, plain):
    """The objective `plain` at its largest value within SAM_RADIUS, to first order."""
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

    def at(params):
        neighbour = nnx.merge(graphdef, params, stats, copy=True)
        loss, logits = plain(neighbour, batch, key)
        return loss, (logits, nnx.state(neighbour, nnx.BatchStat))

    # The C++ convolutions have no second derivative.
    constant = jax.tree.map(jax.lax.stop_gradient, params)
    grads, _ = jax.grad(at, has_aux=True)(constant)
    scale = SAM_RADIUS / (optax.global_norm(grads) + 1e-12)
    away = jax.tree.map(lambda g: scale * g, grads)
    loss, (logits, moved) = at(jax.tree.map(jnp.add, params, away))
    nnx.update(model, moved)
    return loss, logits


def blended(model, batch, key, *, plain):
    """`plain` on pictures of which half are blended with themselves: label 0 for these, else 1."""
    made_key, patch_key = jax.random.split(key)
    images = batch["image"]
    labels = jax.random.bernoulli(made_key, shape=(len(images),)).astype(jnp.int32)
    patched = jax.vmap(patch_of_itself)(images, jax.random.split(patch_key, len(images)))
    images = jnp.where(labels[:, None, None, None] == 0, patched, images)
    return plain(model, {**batch, "image": images, "label": labels}, key)


def patch_of_itself(image, key):
    place, strength, shift, gain = jax.random.split(key, 4)
    other = blurred(image, jax.random.uniform(strength, minval=0.2, maxval=1.5))
    other = jnp.roll(other, jax.random.randint(shift, (2,), -3, 4), axis=(0, 1))
    other = other * jax.random.uniform(gain, (3,), minval=0.85, maxval=1.15)
    mask = augment.rectangle(place, image.shape[:2]).astype(image.dtype)[..., None]
    mask = blurred(mask, jnp.float32(2))
    return jnp.clip(mask * other + (1 - mask) * image, 0, 1)


def blurred(image, sigma):
    rows, columns = (resample.gaussian(size, sigma)[None] for size in image.shape[:2])
    return resample.separable(image[None], rows, columns)[0]


class Apart(nnx.Module):
    """`model`, but in training the first `n` pictures do not share statistics with the rest."""

    def __init__(self, model, n):
        self.model = model
        self.n = n

    def __call__(self, x, *, train=False, key=None):
        if not train:
            return self.model(x)
        attacked = nnx.clone(self.model)(x[: self.n], train=True, key=key)
        clean = self.model(x[self.n :], train=True, key=key)
        return jnp.concatenate([attacked, clean])


class LookingFirst(MobileNetV4):
    def __init__(self, variant, *, inputs, dtype, rng, **kwargs):
        super().__init__(variant, inputs=16, dtype=dtype, rng=rng, **kwargs)
        self.look = ConvBlock(inputs, 16, k=3, s=1, dtype=dtype, rng=rng)

    def features(self, x, *, train=False, key=None):
        return super().features(self.look(x, train=train), train=train, key=key)


def install(trial: str) -> None:
    """Replaces parts of the product by the trial."""
    if trial == "late":
        plain = VARIANTS["mobilenetv4_conv_small"]
        first = plain.stages[0].replace("_s2_", "_s1_")
        late = dataclasses.replace(plain, stages=(first, *plain.stages[1:]))
        VARIANTS["mobilenetv4_conv_small"] = late
    elif trial == "look":
        mobilenetv4.MobileNetV4 = LookingFirst
    elif trial == "patch8":
        plain = vit.VARIANTS["vit_tiny_patch16_224"]
        vit.VARIANTS["vit_tiny_patch16_224"] = dataclasses.replace(plain, patch=8)
    elif trial == "apart":
        together = objectives.from_config
        objectives.from_config = lambda config, *args: apart(config, together(config, *args))
    else:
        objectives.from_config = functools.partial(objective, trial)


def apart(config, plain):
    n = round(config.train.adversary.share * config.train.batch_size)
    return lambda model, batch, key: plain(Apart(model, n), batch, key)


def objective(trial: str, config, steps_per_epoch: float):
    """The objective of `trial`."""
    smoothing = config.train.label_smoothing
    plain = functools.partial(objectives.cross_entropy, label_smoothing=smoothing)
    if trial == "blended":
        return functools.partial(blended, plain=plain)
    if trial == "sam":
        return functools.partial(sharpness_aware, plain=plain)
    mix = {"mixup": blend, "cutmix": paste}[trial]
    return functools.partial(mixed, label_smoothing=smoothing, mix=mix)


if __name__ == "__main__":
    install(sys.argv.pop(1))
    main.run(main.main)
