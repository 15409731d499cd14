"""MobileNetV4 in evaluation mode as two C++ calls, for XLA:CPU: its convolutions, and its head.

BatchNorm is folded into the kernels once. Then a thread takes a picture through all convolutions
(ops/network.cc), which add bias and shortcut and apply ReLU where they write a result.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnv4_jax.models.classifier import Classifier
from mnv4_jax.models.layers import BatchNorm, Conv
from mnv4_jax.models.mobilenetv4 import MobileAttention, MobileNetV4
from mnv4_jax.ops import kernels
from mnv4_jax.ops.conv import form_for

_INPUT, _RESULT, _NONE = 0, 1, -1  # places of activations; from 2 on they are buffers


class _Step(NamedTuple):
    """A convolution and what follows it."""

    k: int
    stride: int
    depthwise: bool
    inputs: int
    outputs: int
    relu: bool
    first: bool = True  # of its block
    adds: bool = False  # the block's input to its result

    @property
    def size(self) -> int:
        """Floats of its kernel and bias, as `_laid_out` returns them."""
        if self.depthwise:
            return self.outputs * (self.k**2 + 1)
        filled = self.outputs + -self.outputs % kernels.panel()
        return filled * (self.k**2 * self.inputs + 1)


def folded(model: Classifier) -> Classifier:
    """The same classifier for evaluation, its backbone a `Folded` one where that is faster: float32
    on a single CPU, of convolutions alone, where the C++ can be built. Else `model` itself."""
    if not _foldable(model):
        return model
    copy = nnx.merge(*nnx.split(model))
    copy.backbone = Folded(model.backbone)
    return copy


def _foldable(model: Classifier) -> bool:
    backbone = model.backbone
    return (
        isinstance(backbone, MobileNetV4)
        and not any(isinstance(b, MobileAttention) for stage in backbone.blocks for b in stage)
        and model.dtype == backbone.conv_stem.kernel[...].dtype == jnp.float32
        and form_for(jnp.float32).network == "kernel"
        and kernels.available("network.cc")
    )


class Folded(nnx.Module):
    """`backbone` in evaluation mode; `weights` [N] holds the kernels and biases of all layers."""

    def __init__(self, backbone: MobileNetV4):
        convolutions = list(_convolutions(backbone))
        head, classifier = backbone.conv_head, backbone.classifier
        self.steps = tuple(step for *_, step in convolutions)
        self.head_steps = (
            _step(head, relu=True),
            _Step(1, 1, False, *classifier.kernel.shape, False),
        )
        folded = [_without_norm(conv, norm) for conv, norm, _ in convolutions]
        folded.append(_without_norm(head, backbone.norm_head))
        folded.append((np.asarray(classifier.kernel[...]), np.asarray(classifier.bias[...])))
        steps = self.steps + self.head_steps
        arrays = [_laid_out(step, *pair) for step, pair in zip(steps, folded, strict=True)]
        self.weights = nnx.Param(np.concatenate(arrays).astype(np.float32))

    def __call__(self, x, *, train: bool = False, key=None):
        """[B, H, W, inputs] float32, normalised -> [B, classes] logits."""
        features = _network(x, self.weights[...], self.steps, start=0)
        pooled = jnp.mean(features, axis=(1, 2))[None, None]  # the batch as a row of one picture
        start = sum(step.size for step in self.steps)
        return _network(pooled, self.weights[...], self.head_steps, start)[0, 0]


def _convolutions(backbone: MobileNetV4) -> Iterator[tuple[Conv, BatchNorm, _Step]]:
    yield backbone.conv_stem, backbone.bn1, _step(backbone.conv_stem, relu=True)
    for stage in backbone.blocks:
        for block in stage:
            convolutions = block.convolutions()
            last = len(convolutions) - 1
            for i, (conv, norm, relu) in enumerate(convolutions):
                adds = block.residual and i == last
                yield conv, norm, _step(conv, relu=relu, first=i == 0, adds=adds)


def _step(conv: Conv, **rest) -> _Step:
    k, _, _, outputs = conv.kernel.shape
    inputs = outputs if conv.groups > 1 else conv.kernel.shape[2]
    return _Step(k, conv.stride, conv.groups > 1, inputs, outputs, **rest)


def _without_norm(conv: Conv, norm: BatchNorm) -> tuple[np.ndarray, np.ndarray]:
    """The kernel and bias that do what a convolution and its BatchNorm do."""
    scale, bias, mean, var = (
        np.asarray(x[...]) for x in (norm.scale, norm.bias, norm.mean, norm.var)
    )
    factor = scale / np.sqrt(var + norm.EPS)
    return np.asarray(conv.kernel[...]) * factor, bias - mean * factor


def _laid_out(step: _Step, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Kernel and bias as network.cc reads them: a dense kernel [k, k, Cin, Cout] as panels of
    columns, [Cout / panel, k * k * Cin, panel], the last one filled up with zeros."""
    if not step.depthwise:
        columns = kernels.panel()
        missing = -len(bias) % columns
        kernel = np.pad(kernel.reshape(-1, len(bias)), ((0, 0), (0, missing)))
        kernel = kernel.reshape(len(kernel), -1, columns).transpose(1, 0, 2)
        bias = np.pad(bias, (0, missing))
    return np.concatenate([kernel.ravel(), bias])


def _network(x: jax.Array, weights: jax.Array, steps: Sequence[_Step], start: int) -> jax.Array:
    """x [B, H, W, C] through `steps`, whose weights begin at `start`."""
    batch, h, w, channels = x.shape
    layers, sizes, place, block = [], {}, _INPUT, _INPUT
    for step in steps:
        if step.first:
            block = place
        out = next(i for i in (2, 3, 4) if i not in (place, block))
        layers.append(
            kernels.Layer(
                depthwise=step.depthwise,
                source=place,
                add=block if step.adds else _NONE,
                out=out,
                h=h,
                w=w,
                c=step.inputs,
                k=step.k,
                stride=step.stride,
                n=step.outputs,
                relu=step.relu,
                weights=start,
            )
        )
        start += step.size
        h, w, channels = (h - 1) // step.stride + 1, (w - 1) // step.stride + 1, step.outputs
        sizes[out] = max(sizes.get(out, 0), h * w * channels)
        place = out
    layers[-1] = layers[-1]._replace(out=_RESULT)
    sizes = [sizes.get(i, 0) for i in (2, 3, 4)]
    return kernels.network(x, weights, layers, sizes, (batch, h, w, channels))
