"""The layers of MobileNetV4, with PyTorch's conventions and timm's initial values.

A layer computes in the dtype of its input and casts its parameters to it. BatchNorm and the last
linear layer compute in float32 at least.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnv4_jax.ops import norm
from mnv4_jax.ops.conv import conv2d


class Conv(nnx.Module):
    """Convolution without bias, padded symmetrically by (k - 1) // 2.

    `kernel` [k, k, in / groups, out], drawn from N(0, 2 / fan_out) as timm's `_init_weight_goog`.
    """

    def __init__(self, inputs, outputs, k, *, stride=1, groups=1, dtype=jnp.float32, rng):
        self.stride = stride
        self.groups = groups
        std = math.sqrt(2.0 / (k * k * outputs // groups))
        shape = (k, k, inputs // groups, outputs)
        self.kernel = nnx.Param((std * rng.standard_normal(shape)).astype(dtype))

    def __call__(self, x):
        """[B, H, W, in] -> [B, (H - 1) // stride + 1, (W - 1) // stride + 1, out]."""
        kernel = self.kernel[...].astype(x.dtype)
        return conv2d(x, kernel, stride=self.stride, groups=self.groups)


class BatchNorm(nnx.Module):
    """`torch.nn.BatchNorm2d`: eps 1e-5, momentum 0.1, float32 statistics.

    It normalises by the biased variance of the batch and keeps a running average of the unbiased
    one, as PyTorch does; flax's own layer keeps the biased one, and the two drift apart on the
    small maps at the end of the network.
    """

    EPS = 1e-5
    MOMENTUM = 0.1  # weight of the new batch

    def __init__(self, features, *, dtype=jnp.float32):
        self.scale = nnx.Param(np.ones(features, dtype))
        self.bias = nnx.Param(np.zeros(features, dtype))
        self.mean = nnx.BatchStat(np.zeros(features, dtype))
        self.var = nnx.BatchStat(np.ones(features, dtype))

    def __call__(self, x, *, train: bool):
        """[B, H, W, C] -> the same; with `train` it also updates the running statistics."""
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        scale, bias = self.scale[...].astype(y.dtype), self.bias[...].astype(y.dtype)
        if train:
            y, mean, var = norm.batch_norm(y, scale, bias, self.EPS)
            n = x.size // x.shape[-1]
            self._move(self.mean, mean)
            self._move(self.var, var * (n / max(n - 1, 1)))
        else:
            factor = scale * jax.lax.rsqrt(self.var[...] + self.EPS)
            y = y * factor + (bias - self.mean[...] * factor)
        return y.astype(x.dtype)

    def _move(self, running, value):
        value = jax.lax.stop_gradient(value).astype(running[...].dtype)
        # `running[...] = ` would ask the traced value for its sharding. JAX raises an error there,
        # and building its text took half of the time to trace a step.
        running.set_value((1 - self.MOMENTUM) * running[...] + self.MOMENTUM * value)


class ConvNorm(nnx.Module):
    """Convolution, BatchNorm and, if asked for, ReLU; `conv` and `bn` as timm's ConvNormAct."""

    def __init__(
        self, inputs, outputs, k, *, stride=1, groups=1, relu=True, dtype=jnp.float32, rng
    ):
        self.conv = Conv(inputs, outputs, k, stride=stride, groups=groups, dtype=dtype, rng=rng)
        self.bn = BatchNorm(outputs, dtype=dtype)
        self.relu = relu

    def __call__(self, x, *, train: bool):
        x = self.bn(self.conv(x), train=train)
        return nnx.relu(x) if self.relu else x


class Linear(nnx.Module):
    """Affine layer in float32 at least: `kernel` [in, out], `bias` [out].

    The kernel is drawn from U(-1/sqrt(in), 1/sqrt(in)), PyTorch's default; the bias is zero. timm's
    own initial classifier spans 1/sqrt(in + out) of a routing net and starts with logits of order
    10.
    """

    def __init__(self, inputs, outputs, *, zero_init=False, dtype=jnp.float32, rng):
        bound = 0.0 if zero_init else 1 / math.sqrt(inputs)
        kernel = rng.uniform(-bound, bound, (inputs, outputs))
        self.kernel = nnx.Param(kernel.astype(dtype))
        self.bias = nnx.Param(np.zeros(outputs, dtype))

    def __call__(self, x):
        """[B, in] -> [B, out]."""
        kernel, bias = self.kernel[...], self.bias[...]
        x = x.astype(jnp.promote_types(x.dtype, kernel.dtype))
        return jnp.dot(x, kernel, precision=jax.lax.Precision.HIGHEST) + bias


class LayerScale(nnx.Module):
    """A learned factor per channel, which starts at 1e-5."""

    def __init__(self, width, *, dtype):
        self.gamma = nnx.Param(np.full(width, 1e-5, dtype))

    def __call__(self, x):
        return x * self.gamma[...].astype(x.dtype)


def attention(query, key, value):
    """Softmax attention; `jax.nn.dot_product_attention` where that is fast.

    XLA:CPU writes each of its transposes to memory, and the weights again when normalising them.
    On CPU this code divides the sums instead, which takes 0.5 of the time forward and 0.75 with
    gradients (vit_tiny at 224 px).

    Args:
      query: [B, T, N, D]. key, value: [B, S, K, D], K dividing N.

    Returns:
      [B, T, N, D].
    """
    return jax.lax.platform_dependent(
        query, key, value, cpu=_cpu_attention, default=jax.nn.dot_product_attention
    )


def _cpu_attention(query, key, value):
    (batch, count, heads, width), shared = query.shape, key.shape[2]
    # Treat heads that share a key as more queries of it: [B, K, T * N / K, D].
    query = query.reshape(batch, count, shared, -1, width).transpose(0, 2, 1, 3, 4)
    query = query.reshape(batch, shared, -1, width) * width**-0.5
    key, value = (x.transpose(0, 2, 1, 3) for x in (key, value))
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    dot = functools.partial(jnp.einsum, preferred_element_type=dtype)
    scores = dot("bktd,bksd->bkts", query, key)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = dot("bkts,bksd->bktd", weights.astype(value.dtype), value)
    mixed = (mixed / weights.sum(-1, keepdims=True)).astype(value.dtype)
    mixed = mixed.reshape(batch, shared, count, -1, width).transpose(0, 2, 1, 3, 4)
    return mixed.reshape(batch, count, heads, width)


def drop_path(x, rate: float, key):
    """Stochastic depth: zeroes whole examples of x [B, ...] and scales the others up."""
    kept = jax.random.bernoulli(key, 1 - rate, (x.shape[0], *[1] * (x.ndim - 1)))
    return jnp.where(kept, x / (1 - rate), 0)


def dropout(x, rate: float, key):
    """Zeroes elements of x [B, C] with probability `rate` and scales the others up."""
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
