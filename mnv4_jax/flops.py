"""How much arithmetic a training step is, and what share of the device's best that makes."""

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mnv4_jax import step
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
    """FLOPs of one picture in training: forward, and twice that backward.

    Counted from the products of the traced network: 2 a multiply-add of every convolution and
    matrix product, in their plain form.
    """
    size = config.data.image_size
    graphdef, weights = step.graph(config), step.fresh_weights(config)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    with conv.use(conv.NATIVE):
        jaxpr = jax.make_jaxpr(lambda w, x: step.eval_step(w, x, graphdef=graphdef))(weights, image)
    return 3 * 2 * _multiply_adds(jaxpr.jaxpr)


def utilisation(flops_per_s: float, device: jax.Device) -> float:
    """Share of the device's peak, nan where that is not known.

    A network as small as this one is bound by memory, not by arithmetic: a few percent is its best.
    """
    kinds = [kind for kind in _PEAK if device.device_kind.startswith(kind)]
    return flops_per_s / _PEAK[max(kinds, key=len)] if kinds else math.nan


def _multiply_adds(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval, equation.outvars[0].aval
            out_axis = equation.params["dimension_numbers"].rhs_spec[0]
            total += math.prod(out.shape) * math.prod(kernel.shape) // kernel.shape[out_axis]
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval, equation.outvars[0].aval
            total += math.prod(out.shape) * math.prod(left.shape[i] for i in contracted)
        for value in equation.params.values():  # what is traced inside: pjit, custom_jvp, …
            if hasattr(value, "jaxpr"):
                total += _multiply_adds(value.jaxpr)
    return total
