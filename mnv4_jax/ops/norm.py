"""Batch normalisation in training, with a gradient of its own (Ioffe and Szegedy, ICML 2015, 3).

XLA:CPU reads an activation once for each sum over it; the C++ of kernels.cc computes two in one
read, which saves a tenth of a training step. On other backends XLA fuses them itself. Autodiff
would also trace each of the few operations on channels three times, and XLA would compile more of
them: that was 0.5 s of the time to the first loss.
"""

import functools

import jax
import jax.numpy as jnp

from mnv4_jax.ops import kernels
from mnv4_jax.ops.conv import form_for


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(y, scale, bias, eps: float):
    """Normalises by the moments of the batch.

    Args:
      y: [..., C] float32 or float64.
      scale, bias: [C], same dtype.
      eps: added to the variance.

    Returns:
      (y normalised, times scale plus bias; mean [C]; biased variance [C]). The gradient is that of
      the first: none flows through the returned moments.
    """
    return _forward(y, scale, bias, eps)[0]


def _forward(y, scale, bias, eps):
    # Moments of y itself: XLA:CPU would write y - mean, or y minus any estimate of it, to memory,
    # and that was an eighth of the whole step.
    n = y.size // y.shape[-1]
    total, squares = _sums(y, y)
    mean = total / n
    # Rounding may make a constant channel negative.
    var = jnp.maximum(squares / n - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(var + eps)
    factor = scale * inverse
    normalised = y * factor + (bias - mean * factor)
    return (normalised, mean, var), (y, mean, inverse, scale)


def _backward(eps, residuals, cotangents):
    y, mean, inverse, scale = residuals
    dy, *_ = cotangents
    n = y.size // y.shape[-1]
    d_bias, products = _sums(dy, y)
    d_scale = (products - mean * d_bias) * inverse
    factor = scale * inverse
    slope = -factor * d_scale * inverse / n
    return dy * factor + y * slope - (factor * d_bias / n + slope * mean), d_scale, d_bias


batch_norm.defvjp(_forward, _backward)


def _sums(a, b):
    """a, b [..., C] -> (sum of a, sum of a * b) over all axes but channels, [C] each."""
    if form_for(a.dtype).kernels:
        return kernels.sums(a, b)
    axes = tuple(range(a.ndim - 1))
    return jnp.sum(a, axes), jnp.sum(a * b, axes)
