"""A bank of Gabor filters in front of the network, in OpenCV's convention and spelling.

Forged faces differ from photographs in fine, oriented traces: resampling, blending seams, missing
sensor noise. The bank extracts them before the network's first stride discards them.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mnv4_jax.ops.conv import conv2d

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as cv2.COLOR_RGB2GRAY
PARAMETERS = ("theta", "sigma", "lambd", "gamma", "psi")


def gabor_kernels(ksize: int, theta, sigma, lambd, gamma, psi):
    """`cv2.getGaborKernel((ksize, ksize), sigma, theta, lambd, gamma, psi)` for every filter.

    With x' = x cos(theta) + y sin(theta), y' = -x sin(theta) + y cos(theta):
    exp(-(x'^2 + gamma^2 y'^2) / (2 sigma^2)) cos(2 pi x' / lambd + psi). OpenCV's array is this
    turned by 180 degrees: its element [0, 0] is the value at x = y = ksize // 2.

    Args:
      ksize: odd, px.
      theta, sigma, lambd, gamma, psi: [K]; rad, px, px, 1, rad.

    Returns:
      [ksize, ksize, K] in their dtype.
    """
    offset = (ksize // 2 - jnp.arange(ksize)).astype(theta.dtype)
    x, y = offset[None, :, None], offset[:, None, None]
    along = x * jnp.cos(theta) + y * jnp.sin(theta)
    across = -x * jnp.sin(theta) + y * jnp.cos(theta)
    envelope = jnp.exp(-(along**2 + (gamma * across) ** 2) / (2 * sigma**2))
    return envelope * jnp.cos(2 * jnp.pi * along / lambd + psi)


def taps(ksize: int, theta, sigma, lambd, gamma, psi):
    """`gabor_kernels` with their mean removed (flat skin gives 0) and sum |tap| = 1."""
    kernels = gabor_kernels(ksize, theta, sigma, lambd, gamma, psi)
    kernels = kernels - jnp.mean(kernels, axis=(0, 1))
    return kernels / jnp.maximum(jnp.sum(jnp.abs(kernels), axis=(0, 1)), 1e-12)


class GaborBank(nnx.Module):
    """Filters the luma of pictures in [0, 1].

    `config` is the section `gabor` of an experiment:
      mode: "concat" adds the responses to the three normalised channels as further inputs of the
        stem; "enhance" adds their mean to all three channels before normalisation. For "none" the
        caller makes no bank.
      response: "real", or "magnitude" of a quadrature pair (psi and psi + 90 degrees).
      learnable: the five parameters of every filter are trained (not the taps); else they are
        constants of the graph.
      kernel_size: px, odd.
      orientations: how many, evenly over 180 degrees from theta = 0 (vertical stripes).
      wavelengths: tuple, `lambd` in px; Nyquist is 2. The bank is orientations x wavelengths.
      sigma_ratio: sigma = sigma_ratio * lambd; 0.56 is a bandwidth of one octave.
      gamma: aspect of the envelope; below 1 it stretches along the stripes.
      psi: phase, rad; 0 responds to lines, pi / 2 to edges.
      gain: factor on the responses. Their standard deviation is 0.003 to 0.02 on photographs of
        faces; that of the normalised channels is 1.
    """

    def __init__(self, config: ConfigDict, *, dtype=jnp.float32):
        if config.kernel_size % 2 == 0 or config.kernel_size < 3:
            raise ValueError(f"gabor.kernel_size={config.kernel_size}: must be odd, 3 or more")
        if config.orientations < 1 or not config.wavelengths:
            raise ValueError("gabor.orientations, gabor.wavelengths: at least one each")
        self.mode = config.mode
        self.response = config.response
        self.ksize = config.kernel_size
        self.gain = config.gain
        self.dtype = dtype
        self.filters = tuple(
            (
                math.pi * i / config.orientations,
                config.sigma_ratio * lambd,
                lambd,
                config.gamma,
                config.psi,
            )
            for lambd in config.wavelengths
            for i in range(config.orientations)
        )
        self.learnable = config.learnable
        if self.learnable:
            for name, values in self._constants().items():
                setattr(self, name, nnx.Param(values))

    @property
    def channels(self) -> int:
        """The number of channels that it adds to a picture's three."""
        return len(self.filters) if self.mode == "concat" else 0

    def weight(self):
        """[ksize, ksize, 1, K] current taps; for "magnitude" 2K, the real parts first."""
        values = self._constants()
        if self.learnable:
            values = {name: getattr(self, name)[...] for name in PARAMETERS}
        weight = taps(self.ksize, **values)
        if self.response == "magnitude":
            values["psi"] = values["psi"] + jnp.pi / 2
            weight = jnp.concatenate([weight, taps(self.ksize, **values)], axis=-1)
        return weight[:, :, None]

    def responses(self, images):
        """[B, H, W, 3] in [0, 1] -> [B, H, W, K] in `dtype`, as `cv2.filter2D` of the luma.

        Borders are reflected (BORDER_REFLECT_101): zero padding would be the strongest edge.
        """
        luma = sum(images[..., c : c + 1].astype(self.dtype) * w for c, w in enumerate(LUMA))
        pad = self.ksize // 2
        luma = jnp.pad(luma, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
        # Full precision: in bfloat16 or TF32 the taps do not sum to zero; flat skin would respond.
        with jax.default_matmul_precision("highest"):
            y = conv2d(luma, self.weight(), padding=0)
        if self.response == "magnitude":
            real, imaginary = jnp.split(y, 2, axis=-1)
            y = jnp.sqrt(real**2 + imaginary**2 + 1e-12)  # differentiable on flat skin too
        return y

    def _constants(self) -> dict[str, np.ndarray]:
        columns = zip(*self.filters, strict=True)
        return {n: np.asarray(c, self.dtype) for n, c in zip(PARAMETERS, columns, strict=True)}
