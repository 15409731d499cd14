"""MobileNetV4 in evaluation mode as one C++ call (ops/network.cc), for XLA:CPU.

BatchNorm is folded into the kernels once. Then a thread takes a picture through all convolutions,
which add bias and shortcut and apply ReLU where they write a result.
"""

import itertools
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

_BUFFERS = range(kernels.BUFFERS, kernels.BUFFERS + 3)  # a block's input, a layer's, its output
_ALIGNED = 16  # floats, a cache line, which no vector of a kernel should cross


class _Step(NamedTuple):
    """A layer of network.cc, wherever it stands."""

    kind: int
    inputs: int
    outputs: int
    k: int = 1
    stride: int = 1
    relu: bool = False
    first: bool = True  # of its block
    adds: bool = False  # the block's input to its result


def folded(model: Classifier) -> "Classifier | Folded":
    """The same classifier for evaluation, a `Folded` one where that is faster: float32 on a single
    CPU, of convolutions alone, where the C++ can be built. Else `model` itself."""
    return Folded(model) if _foldable(model) else model


def _foldable(model: Classifier) -> bool:
    backbone = model.backbone
    return (
        isinstance(backbone, MobileNetV4)
        and not any(isinstance(b, MobileAttention) for stage in backbone.blocks for b in stage)
        and model.dtype == backbone.conv_stem.kernel[...].dtype == jnp.float32
        and form_for(jnp.float32).kernels
        and kernels.available("network.cc")
    )


class Folded(nnx.Module):
    """A classifier in evaluation mode; `weights` [N] holds the kernels and biases of all layers."""

    def __init__(self, model: Classifier):
        self.front = nnx.merge(*nnx.split(model))  # for its `inputs`
        self.front.backbone = None
        layers = [*_layers(model.backbone)]
        if model.gabor is None:
            mean, std = (np.asarray(values) for values in model.normalisation)
            factors = np.concatenate([1 / (255 * std), -mean / std])
            layers.insert(0, (_Step(kernels.BYTES, 3, 3), factors))
        steps, arrays = zip(*layers, strict=True)
        arrays = [np.pad(x, (0, -len(x) % _ALIGNED)).astype(np.float32) for x in arrays]
        self.steps = steps
        self.starts = (0, *itertools.accumulate(map(len, arrays[:-1])))
        self.weights = nnx.Param(np.concatenate(arrays))

    def __call__(self, images):
        """[B, H, W, 3] uint8 -> [B, 2] logits: fake, real."""
        x = images if self.front.gabor is None else self.front.inputs(images)
        return _network(x, self.weights[...], self.steps, self.starts)


def _layers(backbone: MobileNetV4) -> Iterator[tuple[_Step, np.ndarray]]:
    """Each layer, with its kernel and bias as network.cc reads them."""

    def layer(conv, norm, **rest):
        k, _, inputs, outputs = conv.kernel.shape
        kind = kernels.DENSE if conv.groups == 1 else kernels.DEPTHWISE
        inputs = inputs if kind == kernels.DENSE else outputs
        step = _Step(kind, inputs, outputs, k, conv.stride, **rest)
        return step, _laid_out(step, *_without_norm(conv, norm))

    yield layer(backbone.conv_stem, backbone.bn1, relu=True)
    for stage in backbone.blocks:
        for block in stage:
            convolutions = block.convolutions()
            last = len(convolutions) - 1
            for i, (conv, norm, relu) in enumerate(convolutions):
                adds = block.residual and i == last
                yield layer(conv, norm, relu=relu, first=i == 0, adds=adds)
    channels = backbone.conv_head.kernel.shape[2]
    yield _Step(kernels.MEAN, channels, channels), np.zeros(0)
    yield layer(backbone.conv_head, backbone.norm_head, relu=True)
    kernel, bias = (
        np.asarray(x[...]) for x in (backbone.classifier.kernel, backbone.classifier.bias)
    )
    step = _Step(kernels.DENSE, *kernel.shape)
    yield step, _laid_out(step, kernel, bias)


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
    if step.kind == kernels.DENSE:
        columns = kernels.panel()
        missing = -len(bias) % columns
        kernel = np.pad(kernel.reshape(-1, len(bias)), ((0, 0), (0, missing)))
        kernel = kernel.reshape(len(kernel), -1, columns).transpose(1, 0, 2)
        bias = np.pad(bias, (0, missing))
    return np.concatenate([kernel.ravel(), bias])


def _network(
    x: jax.Array, weights: jax.Array, steps: Sequence[_Step], starts: Sequence[int]
) -> jax.Array:
    """x [B, H, W, C] through `steps`, whose weights begin at `starts` -> [B, classes]."""
    batch, h, w, _ = x.shape
    layers, sizes = [], dict.fromkeys(_BUFFERS, 0)
    place = block = kernels.INPUT
    for step, start in zip(steps, starts, strict=True):
        if step.first:
            block = place
        out = next(i for i in _BUFFERS if i not in (place, block))
        layer = kernels.Layer(
            kind=step.kind,
            source=place,
            add=block if step.adds else -1,
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
        if step.kind == kernels.MEAN:
            layer = layer._replace(stride=max(h, w), out=kernels.MEANS)
            h, w = 1, batch
        else:
            h, w = (h - 1) // step.stride + 1, (w - 1) // step.stride + 1
            sizes[out] = max(sizes[out], h * w * step.outputs)
        layers.append(layer)
        place = layer.out
    layers[-1] = layers[-1]._replace(out=kernels.RESULT)
    return kernels.network(x, weights, layers, list(sizes.values()), (batch, steps[-1].outputs))
