"""A detector as one StableHLO program, with weights and preprocessing, that needs only jax to run.

To run it there: `jax.export.deserialize(contents).call(pictures)`.
"""

import functools

import jax
import jax.export
import jax.numpy as jnp

from mnv4_jax.detector.detector import Detector
from mnv4_jax.models import weights as weights_lib
from mnv4_jax.ops import conv

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo(detector: Detector, *, pixels: str = "uint8") -> bytes:
    """Serialises pictures -> p_fake for every one of PLATFORMS, computing in float32.

    Args:
      detector: the pictures must have the side of its transform, S.
      pixels: "uint8", 0 to 255, or "float32", 0 to 1.

    Returns:
      Bytes for `jax.export.deserialize`: [B, S, S, 3] pixels, RGB, any B -> [B] float32,
      calibrated.
    """
    size = detector.transform.size
    graphdef, weights = weights_lib.split(detector.model)
    weights = jax.tree.map(jnp.float32, weights)

    def p_fake(weights, pictures, *, form):
        model = weights_lib.merge(graphdef, weights)
        model.dtype = jnp.float32  # even if trained in bfloat16
        images = pictures / jnp.float32(255) if pixels == "uint8" else pictures
        with conv.use(form):
            return jax.nn.softmax(model(images) / detector.temperature)[:, 0]

    def every_platform(pictures):
        return jax.lax.platform_dependent(
            weights,
            pictures,
            cpu=functools.partial(p_fake, form=conv.PURE_CPU),
            default=functools.partial(p_fake, form=conv.NATIVE),
        )

    (batch,) = jax.export.symbolic_shape("batch")
    pictures = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.dtype(pixels))
    return jax.export.export(jax.jit(every_platform), platforms=PLATFORMS)(pictures).serialize()
