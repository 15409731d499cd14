"""Vision transformers (Dosovitskiy et al., ICLR 2021), exactly as in timm.

Rows of a table: the plain ones, CLIP's (a norm before the blocks), and DINOv2's (LayerScale, and
registers of Darcet et al., ICLR 2024). Module and parameter names are timm's.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnv4_jax.models.layers import LayerScale, Linear, attention, drop_path, dropout
from mnv4_jax.ops.conv import matmul

_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row. `normalisation`: (mean, std), of pixels in [0, 1], of its pretrained weights."""

    patch: int  # px
    width: int
    depth: int
    heads: int
    normalisation: tuple = _HALF
    pre_norm: bool = False  # also: no bias in the patch embedding, eps 1e-5
    layer_scale: bool = False
    registers: int = 0  # with some, the class token has no position


VARIANTS = {
    "vit_tiny_patch16_224": Variant(16, 192, 12, 3),
    "vit_small_patch16_224": Variant(16, 384, 12, 6),
    "vit_base_patch16_224": Variant(16, 768, 12, 12),
    "vit_large_patch14_clip_224": Variant(14, 1024, 24, 16, _CLIP, pre_norm=True),
    "vit_small_patch14_dinov2": Variant(14, 384, 12, 6, IMAGENET, layer_scale=True),
    "vit_large_patch14_dinov2": Variant(14, 1024, 24, 16, IMAGENET, layer_scale=True),
    "vit_small_patch14_reg4_dinov2": Variant(
        14, 384, 12, 6, IMAGENET, layer_scale=True, registers=4
    ),
    "vit_large_patch14_reg4_dinov2": Variant(
        14, 1024, 24, 16, IMAGENET, layer_scale=True, registers=4
    ),
}


class Tokens(NamedTuple):
    """Input of the last block: patches in their positions, and tokens without a position."""

    grid: jax.Array  # [B, h, w, C]
    prefix: jax.Array  # [B, 1 + registers, C], the class token first


class VisionTransformer(nnx.Module):
    """Pictures to logits: patches, blocks of attention, a norm, a classifier of the class token.

    Args:
      variant: a row of the table.
      image_size: px, the side of training's pictures; positions are learned for it. For other
        sizes, `resample_positions` resamples them.
      inputs: channels of the pictures.
      classes: number of logits.
      drop_rate: dropout before the classifier.
      drop_path_rate: stochastic depth of the last block; earlier ones less, linearly.
      zero_init_head: the classifier starts at zero, and the loss at log(classes).
      dtype: of the parameters.

    Raises:
      ValueError: the patch does not divide `image_size`.
    """

    def __init__(
        self,
        variant: Variant,
        *,
        image_size: int,
        inputs: int = 3,
        classes: int = 2,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        zero_init_head: bool = False,
        dtype=jnp.float32,
        rng: np.random.Generator,
    ):
        if image_size % variant.patch:
            near = max(1, round(image_size / variant.patch)) * variant.patch
            raise ValueError(
                f"data.image_size={image_size}: the patch of {variant.patch} px does not divide it;"
                f" {near} would do"
            )
        width, make = variant.width, functools.partial(_normal, rng=rng, dtype=dtype)
        positions = (image_size // variant.patch) ** 2 + (variant.registers == 0)
        eps = 1e-5 if variant.pre_norm else 1e-6
        self.drop_rate = drop_rate
        self.has_pre_norm, self.registers = variant.pre_norm, variant.registers
        self.patch_embed = PatchEmbed(
            variant.patch, inputs, width, bias=not variant.pre_norm, dtype=dtype, rng=rng
        )
        self.cls_token = nnx.Param(make((1, 1, width)))
        if variant.registers:
            self.reg_token = nnx.Param(make((1, variant.registers, width)))
        self.pos_embed = nnx.Param(make((1, positions, width)))
        if variant.pre_norm:
            self.norm_pre = LayerNorm(width, eps=eps, dtype=dtype)
        self.blocks = nnx.List(
            Block(
                width,
                variant.heads,
                layer_scale=variant.layer_scale,
                eps=eps,
                drop_path_rate=drop_path_rate * index / max(1, variant.depth - 1),
                dtype=dtype,
                rng=rng,
            )
            for index in range(variant.depth)
        )
        self.norm = LayerNorm(width, eps=eps, dtype=dtype)
        self.head = Classifier(width, classes, zero_init=zero_init_head, dtype=dtype, rng=rng)

    def __call__(self, x, *, train: bool = False, key=None):
        """[B, H, W, inputs] float, normalised -> [B, classes] logits, float32 at least.

        `key` feeds dropout and stochastic depth: in training it is needed where a rate is above 0.
        """
        return self.classify(self.features(x, train=train, key=key), train=train, key=key)

    def features(self, x, *, train: bool = False, key=None) -> Tokens:
        """[B, H, W, inputs] -> the tokens that go into the last block.

        After the last block only the class token is used for the answer, not the patches.
        """
        x = self.patch_embed(x)
        batch, height, width, channels = x.shape
        cls = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (batch, 1, channels))
        positions = resample_positions(
            self.pos_embed[...], (height, width), prefix=int(self.registers == 0)
        ).astype(x.dtype)
        x = x.reshape(batch, height * width, channels)
        if self.registers:
            registers = self.reg_token[...].astype(x.dtype)
            registers = jnp.broadcast_to(registers, (batch, self.registers, channels))
            x = jnp.concatenate([cls, registers, x + positions], axis=1)
        else:
            x = jnp.concatenate([cls, x], axis=1) + positions
        if self.has_pre_norm:
            x = self.norm_pre(x)
        for index, block in enumerate(self.blocks[:-1]):
            x = block(x, train=train, key=_fold(key, index))
        prefix = 1 + self.registers
        return Tokens(x[:, prefix:].reshape(batch, height, width, channels), x[:, :prefix])

    def classify(self, tokens: Tokens, *, train: bool = False, key=None):
        """The output of `features` -> [B, classes] logits."""
        batch, channels = tokens.grid.shape[0], tokens.grid.shape[-1]
        x = jnp.concatenate([tokens.prefix, tokens.grid.reshape(batch, -1, channels)], axis=1)
        last = len(self.blocks) - 1
        x = self.blocks[last](x, train=train, key=_fold(key, last))
        x = self.norm(x[:, :1])[:, 0]
        if train and self.drop_rate:
            x = dropout(x, self.drop_rate, jax.random.fold_in(key, last + 1))
        return self.head(x)


class PatchEmbed(nnx.Module):
    """Linear embedding of non-overlapping patches."""

    def __init__(self, patch, inputs, width, *, bias, dtype, rng):
        self.proj = Projection(patch, inputs, width, bias=bias, dtype=dtype, rng=rng)

    def __call__(self, x):
        """[B, H, W, inputs] -> [B, H / patch, W / patch, width]."""
        return self.proj(x)


class Projection(nnx.Module):
    """A convolution whose stride is its size: `kernel` [patch, patch, in, out]."""

    def __init__(self, patch, inputs, width, *, bias, dtype, rng):
        self.kernel = nnx.Param(_normal((patch, patch, inputs, width), rng=rng, dtype=dtype))
        if bias:
            self.bias = nnx.Param(np.zeros(width, dtype))
        self.has_bias = bias

    def __call__(self, x):
        patch, _, inputs, width = self.kernel.shape
        batch, height, columns, _ = x.shape
        if height % patch or columns % patch:
            raise ValueError(f"pictures of {columns} × {height} px: {patch} must divide both sides")
        x = x.reshape(batch, height // patch, patch, columns // patch, patch, inputs)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(
            batch, height // patch, columns // patch, patch * patch * inputs
        )
        x = matmul(x, self.kernel[...].reshape(-1, width).astype(x.dtype))
        return x + self.bias[...].astype(x.dtype) if self.has_bias else x


class Block(nnx.Module):
    """Attention and a two-layer perceptron, each after a norm and with a residual connection."""

    def __init__(self, width, heads, *, layer_scale, eps, drop_path_rate, dtype, rng):
        kw = {"dtype": dtype, "rng": rng}
        self.drop_path_rate, self.layer_scale = drop_path_rate, layer_scale
        self.norm1 = LayerNorm(width, eps=eps, dtype=dtype)
        self.attn = Attention(width, heads, **kw)
        self.norm2 = LayerNorm(width, eps=eps, dtype=dtype)
        self.mlp = Mlp(width, 4 * width, **kw)
        if layer_scale:
            self.ls1, self.ls2 = LayerScale(width, dtype=dtype), LayerScale(width, dtype=dtype)

    def __call__(self, x, *, train: bool, key):
        """[B, N, C] -> the same."""
        for index, (norm, layer) in enumerate(((self.norm1, self.attn), (self.norm2, self.mlp))):
            y = layer(norm(x))
            if self.layer_scale:
                y = (self.ls1, self.ls2)[index](y)
            if train and self.drop_path_rate:
                y = drop_path(y, self.drop_path_rate, jax.random.fold_in(key, index))
            x = x + y
        return x


class Attention(nnx.Module):
    """Multi-head self-attention; query, key and value from one matrix."""

    def __init__(self, width, heads, *, dtype, rng):
        self.heads = heads
        self.qkv = Dense(width, 3 * width, dtype=dtype, rng=rng)
        self.proj = Dense(width, width, dtype=dtype, rng=rng)

    def __call__(self, x):
        batch, count, width = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.heads, width // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        return self.proj(attention(q, k, v).reshape(batch, count, width))


class Mlp(nnx.Module):
    """Two dense layers with an exact GELU between."""

    def __init__(self, width, hidden, *, dtype, rng):
        self.fc1 = Dense(width, hidden, dtype=dtype, rng=rng)
        self.fc2 = Dense(hidden, width, dtype=dtype, rng=rng)

    def __call__(self, x):
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Dense(nnx.Module):
    """`kernel` [in, out], `bias` [out], in the dtype of the input."""

    def __init__(self, inputs, outputs, *, dtype, rng):
        self.kernel = nnx.Param(_normal((inputs, outputs), rng=rng, dtype=dtype))
        self.bias = nnx.Param(np.zeros(outputs, dtype))

    def __call__(self, x):
        return matmul(x, self.kernel[...].astype(x.dtype)) + self.bias[...].astype(x.dtype)


class Classifier(Linear):
    """`Linear` with the initial values of the other layers here."""

    def __init__(self, inputs, classes, *, zero_init, dtype, rng):
        kernel = _normal((inputs, classes), rng=rng, dtype=dtype)
        self.kernel = nnx.Param(np.zeros_like(kernel) if zero_init else kernel)
        self.bias = nnx.Param(np.zeros(classes, dtype))


class LayerNorm(nnx.Module):
    """Normalises the last axis, in float32 at least."""

    def __init__(self, width, *, eps, dtype):
        self.scale = nnx.Param(np.ones(width, dtype))
        self.bias = nnx.Param(np.zeros(width, dtype))
        self.eps = eps

    def __call__(self, x):
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


def resample_positions(positions: jax.Array, grid: tuple[int, int], *, prefix: int) -> jax.Array:
    """Position embeddings for another grid, as timm's `resample_abs_pos_embed` makes them.

    Args:
      positions: [1, prefix + n * n, C].
      grid: the wanted rows and columns.
      prefix: the number of leading tokens without a position.

    Returns:
      [1, prefix + rows * columns, C]: bicubic (Keys, a = -0.5), with antialiasing when downscaling.
    """
    side = round((positions.shape[1] - prefix) ** 0.5)
    if grid == (side, side):
        return positions
    placed = positions[:, prefix:].reshape(side, side, -1)
    dtype = jnp.promote_types(placed.dtype, jnp.float32)
    placed = jax.image.resize(placed.astype(dtype), (*grid, placed.shape[-1]), "cubic")
    placed = placed.reshape(1, -1, positions.shape[-1]).astype(positions.dtype)
    return jnp.concatenate([positions[:, :prefix], placed], axis=1)


def _normal(shape, *, rng: np.random.Generator, dtype) -> np.ndarray:
    """N(0, 0.02²), truncated at two standard deviations."""
    return np.clip(0.02 * rng.standard_normal(shape), -0.04, 0.04).astype(dtype)


def _fold(key, index):
    return None if key is None else jax.random.fold_in(key, index)
