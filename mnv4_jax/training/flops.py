"""Counts the FLOPs of a training step, and their share of the device's peak."""

import math
from collections.abc import Iterator

import jax
import jax.extend
import jax.numpy as jnp
from ml_collections import ConfigDict

from mnv4_jax.models import weights as weights_lib
from mnv4_jax.ops import conv

# Dense bfloat16 FLOP/s of one device by `device_kind`, from the vendors' data sheets.
_PEAK = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def per_image(config: ConfigDict) -> float:
    """FLOPs of training on one picture: the forward pass, and twice as many for the backward pass.

    Counts 2 FLOPs for each multiply-add of every convolution and matrix product of the traced
    network, with convolutions in XLA's native form.
    """
    size = config.data.image_size
    graphdef, weights = weights_lib.abstract(config)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    with conv.use(conv.NATIVE):
        jaxpr = jax.make_jaxpr(lambda w, x: weights_lib.eval_step(w, x, graphdef=graphdef))(
            weights, image
        )
    return 3 * 2 * work(jaxpr.jaxpr)


def peak(device: jax.Device) -> float:
    """The device's dense bfloat16 FLOP/s, nan if unknown."""
    kinds = [kind for kind in _PEAK if device.device_kind.startswith(kind)]
    return _PEAK[max(kinds, key=len)] if kinds else math.nan


def utilisation(flops_per_s: float, device: jax.Device) -> float:
    """Share of the device's peak, nan if that is unknown.

    A network as small as this one is limited by memory, not by arithmetic: expect a few percent.
    """
    return flops_per_s / peak(device)


def equations(jaxpr) -> Iterator:
    """Every equation of a jaxpr, including those of inner jaxprs. Of branches, as attention has one
    for each platform, only those of the one with the most work."""
    for equation in jaxpr.eqns:
        yield equation
        inner = list(jax.extend.core.jaxprs_in_params(equation.params))
        if equation.primitive.name == "cond":
            inner = [max(inner, key=work)]
        for part in inner:
            yield from equations(part)


def work(jaxpr) -> int:
    """Multiply-adds of all convolutions and matrix products of a jaxpr."""
    return sum(map(multiply_adds, equations(jaxpr)))


def multiply_adds(equation) -> int:
    """Multiply-adds of one convolution or matrix product; 0 for anything else."""
    out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        return out * math.prod(kernel) // kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return out * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 0
