"""Trains with something the product does not have, to see whether it should.

    python benchmarks/trials.py mixup --config=configs/small.py --workdir=runs/mixup [...]

After the trial's name, arguments are those of `mnv4_jax.main`. Results: docs/RESULTS.md.

    mixup   pictures and labels of each batch blended with its reverse, Beta(0.2, 0.2)
            (Zhang et al., arXiv:1710.09412)
    cutmix  a rectangle of each picture from the batch's reverse, labels by area, Beta(1, 1)
            (Yun et al., arXiv:1905.04899)
    sam     gradients at the weights' worst neighbour within 0.05: two passes a step
            (Foret et al., arXiv:2010.01412)
    blended self-supervised: whatever the labels say, half of the pictures get a patch of
            themselves, moved, blurred and in another light, and the network has to tell which; go
            on from its weights with model.init_from (after Shiohara and Yamasaki, arXiv:2204.08376)
    late    the network with a first stage that does not halve the resolution: four times the
            positions from there on, and four times the work
    look    a 3x3 convolution to 16 channels, BatchNorm and ReLU before the stem halves anything
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mnv4_jax import augment, main, step
from mnv4_jax.models import classifier
from mnv4_jax.models.mobilenetv4 import VARIANTS, ConvBlock, MobileNetV4

SAM_RADIUS = 0.05


def mixed_loss(params, stats, images, labels, key, *, graphdef, label_smoothing, mix):
    """`step.loss_fn` of a batch mixed with its own reverse."""
    key, mix_key = jax.random.split(key)
    images, share = mix(images, images[::-1], mix_key)
    hot = jax.nn.one_hot(labels, 2)
    model = nnx.merge(graphdef, params, stats, copy=True)
    logits = model(images, train=True, key=key)
    targets = optax.smooth_labels(share * hot + (1 - share) * hot[::-1], label_smoothing)
    loss = optax.softmax_cross_entropy(logits, targets).mean()
    return loss, (nnx.as_pure(nnx.state(model, nnx.BatchStat)), logits)


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


def sam_gradients(weights, images, labels, key, *, plain, **kwargs):
    """`step.gradients`, taken where the loss within SAM_RADIUS is largest to first order."""
    _, grads, _, _ = plain(weights, images, labels, key, **kwargs)
    scale = SAM_RADIUS / (optax.global_norm(grads) + 1e-12)
    worst = jax.tree.map(lambda w, g: w + scale * g, weights["params"], grads)
    return plain(weights | {"params": worst}, images, labels, key, **kwargs)


def blended_loss(params, stats, images, labels, key, *, plain, **kwargs):
    """`step.loss_fn` of pictures half of which are blended with themselves: 0 these, 1 the rest."""
    made_key, patch_key = jax.random.split(key)
    labels = jax.random.bernoulli(made_key, shape=labels.shape).astype(labels.dtype)
    patched = jax.vmap(patch_of_itself)(images, jax.random.split(patch_key, len(images)))
    images = jnp.where(labels[:, None, None, None] == 0, patched, images)
    return plain(params, stats, images, labels, key, **kwargs)


def patch_of_itself(image, key):
    place, strength, shift, gain = jax.random.split(key, 4)
    other = augment.gaussian_blur(image, jax.random.uniform(strength, minval=0.2, maxval=1.5))
    other = jnp.roll(other, jax.random.randint(shift, (2,), -3, 4), axis=(0, 1))
    other = other * jax.random.uniform(gain, (3,), minval=0.85, maxval=1.15)
    mask = augment.rectangle(place, image.shape[:2]).astype(image.dtype)[..., None]
    mask = augment.gaussian_blur(mask, jnp.float32(2))
    return jnp.clip(mask * other + (1 - mask) * image, 0, 1)


class LookingFirst(MobileNetV4):
    def __init__(self, variant, *, inputs, dtype, rng, **kwargs):
        super().__init__(variant, inputs=16, dtype=dtype, rng=rng, **kwargs)
        self.look = ConvBlock(inputs, 16, k=3, s=1, dtype=dtype, rng=rng)

    def features(self, x, *, train=False, key=None):
        return super().features(self.look(x, train=train), train=train, key=key)


def install(trial: str) -> None:
    """Puts the trial in the place of what the product does."""
    if trial == "late":
        plain = VARIANTS["mobilenetv4_conv_small"]
        first = plain.stages[0].replace("_s2_", "_s1_")
        late = dataclasses.replace(plain, stages=(first, *plain.stages[1:]))
        VARIANTS["mobilenetv4_conv_small"] = late
    elif trial == "look":
        classifier.MobileNetV4 = LookingFirst
    elif trial == "blended":
        step.loss_fn = functools.partial(blended_loss, plain=step.loss_fn)
    elif trial == "sam":
        step.gradients = functools.partial(sam_gradients, plain=step.gradients)
    else:
        step.loss_fn = functools.partial(mixed_loss, mix={"mixup": blend, "cutmix": paste}[trial])


if __name__ == "__main__":
    install(sys.argv.pop(1))
    main.run(main.main)
