"""The whole detector: pixels in [0, 1] to two logits. Normalise, filter, backbone."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mnv4_jax.models import backbones
from mnv4_jax.models.gabor import GaborBank

LABELS = ("fake", "real")  # logits[:, 0] is fake


def build(config: ConfigDict, *, seed: int) -> "Classifier":
    """The detector that `config.model` and `config.gabor` describe, with fresh weights.

    The weights are NumPy arrays, drawn by NumPy: the same on every backend, and without compiling a
    program for each of a hundred shapes, which took longer than the first epoch of the demo set.

    Raises:
      ValueError: an unknown `model.name` or an impossible Gabor bank.
    """
    return Classifier(config, rng=np.random.default_rng(seed))


def param_dtype(config: ConfigDict):
    """float64 if `model.dtype` says so (needs jax_enable_x64), else float32."""
    return jnp.float64 if config.model.dtype == "float64" else jnp.float32


def compute_dtype(config: ConfigDict):
    """ "auto" is bfloat16 on accelerators and float32 on CPU, where bfloat16 is emulated."""
    if config.model.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.model.dtype)


def to_float(images: jax.Array, dtype=jnp.float32) -> jax.Array:
    """[..., 3] uint8 pixels -> float in [0, 1]."""
    return images.astype(dtype) / 255


class Classifier(nnx.Module):
    """nnx.Param and nnx.BatchStat hold every array, so `nnx.split` by them leaves nothing over."""

    def __init__(self, config: ConfigDict, *, rng: np.random.Generator):
        dtype = param_dtype(config)
        backbones.check(config.model.name)
        self.normalisation = backbones.normalisation(config.model.name)
        self.dtype = compute_dtype(config)
        filtered = config.gabor.mode != "none"
        self.gabor = GaborBank(config.gabor, dtype=dtype) if filtered else None
        self.backbone = backbones.make(
            config,
            inputs=3 + (self.gabor.channels if self.gabor else 0),
            classes=len(LABELS),
            dtype=dtype,
            rng=rng,
        )

    def __call__(self, images, *, train: bool = False, key=None):
        """Logits of pictures.

        Args:
          images: [B, H, W, 3] uint8, or float in [0, 1], RGB.
          train: BatchNorm uses the batch and updates its running statistics; applies dropout and
            stochastic depth.
          key: PRNG key of the last two.

        Returns:
          [B, 2] fake, real; float32, or float64 with `model.dtype` float64.
        """
        return self.backbone(self.inputs(images), train=train, key=key)

    def features(self, images):
        """[B, H, W, 3] pictures -> the last spatial features, in evaluation mode: the last stage's
        output [B, h, w, C], or a transformer's `Tokens`."""
        return self.backbone.features(self.inputs(images))

    def head(self, features):
        """The output of `features` -> [B, 2] logits."""
        return self.backbone.classify(features)

    def inputs(self, images):
        """[B, H, W, 3] pictures -> [B, H, W, 3 + K] in the dtype of computation."""
        if images.dtype == jnp.uint8:
            images = to_float(images, jnp.promote_types(self.dtype, jnp.float32))
        gabor = self.gabor
        if gabor is not None:
            responses = gabor.gain * gabor.responses(images)
            if gabor.mode == "enhance":
                images = images + jnp.mean(responses, axis=-1, keepdims=True)
        mean, std = (jnp.asarray(values, images.dtype) for values in self.normalisation)
        x = (images - mean) / std
        if gabor is not None and gabor.mode == "concat":
            x = jnp.concatenate([x, responses], axis=-1)
        return x.astype(self.dtype)
