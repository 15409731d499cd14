"""MobileNetV4 (Qin et al. 2024, arXiv:2404.10518): every variant is a row of the table at the top.

Block strings and attribute names are timm's, so a parameter's path here matches its key there;
`mnv4_jax/models/timm_keys.py` relies on this.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mnv4_jax.models.layers import (
    BatchNorm,
    Conv,
    ConvNorm,
    LayerScale,
    Linear,
    attention,
    drop_path,
    dropout,
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """`stages` holds block strings: kind, then fields as below, each a letter and a number.

    cn: convolution; er: fused inverted bottleneck; uir: universal inverted bottleneck; mqa: mobile
    multi-query attention. r: repeats; k: kernel (of a uir: its middle depthwise one, 0 for none;
    of an mqa: the one that shrinks keys and values); a: a uir's starting depthwise kernel, 0 for
    none; s: stride of the first repeat; e: expansion; c: output channels; h: heads; d: channels of
    a head; v: stride of keys and values.
    """

    stem: int  # channels, not multiplied by `width`
    stages: tuple[str, ...]
    width: float = 1.0
    features: int = 1280
    layer_scale: bool = False  # whether a uir, like an mqa, ends with a factor per channel


_SMALL = (
    "cn_r1_k3_s2_c32 cn_r1_k1_s1_c32",
    "cn_r1_k3_s2_c96 cn_r1_k1_s1_c64",
    "uir_r1_a5_k5_s2_e3_c96 uir_r4_a0_k3_s1_e2_c96 uir_r1_a3_k0_s1_e4_c96",
    "uir_r1_a3_k3_s2_e6_c128 uir_r1_a5_k5_s1_e4_c128 uir_r1_a0_k5_s1_e4_c128"
    " uir_r1_a0_k5_s1_e3_c128 uir_r2_a0_k3_s1_e4_c128",
    "cn_r1_k1_s1_c960",
)
_MEDIUM = (
    "er_r1_k3_s2_e4_c48",
    "uir_r1_a3_k5_s2_e4_c80 uir_r1_a3_k3_s1_e2_c80",
    "uir_r1_a3_k5_s2_e6_c160 uir_r2_a3_k3_s1_e4_c160 uir_r1_a3_k5_s1_e4_c160"
    " uir_r1_a3_k3_s1_e4_c160 uir_r1_a3_k0_s1_e4_c160 uir_r1_a0_k0_s1_e2_c160"
    " uir_r1_a3_k0_s1_e4_c160",
    "uir_r1_a5_k5_s2_e6_c256 uir_r1_a5_k5_s1_e4_c256 uir_r2_a3_k5_s1_e4_c256"
    " uir_r1_a0_k0_s1_e4_c256 uir_r1_a3_k0_s1_e4_c256 uir_r1_a3_k5_s1_e2_c256"
    " uir_r1_a5_k5_s1_e4_c256 uir_r2_a0_k0_s1_e4_c256 uir_r1_a5_k0_s1_e2_c256",
    "cn_r1_k1_s1_c960",
)
_LARGE = (
    "er_r1_k3_s2_e4_c48",
    "uir_r1_a3_k5_s2_e4_c96 uir_r1_a3_k3_s1_e4_c96",
    "uir_r1_a3_k5_s2_e4_c192 uir_r3_a3_k3_s1_e4_c192 uir_r1_a3_k5_s1_e4_c192"
    " uir_r5_a5_k3_s1_e4_c192 uir_r1_a3_k0_s1_e4_c192",
    "uir_r4_a5_k5_s2_e4_c512 uir_r1_a5_k0_s1_e4_c512 uir_r1_a5_k3_s1_e4_c512"
    " uir_r2_a5_k0_s1_e4_c512 uir_r1_a5_k3_s1_e4_c512 uir_r1_a5_k5_s1_e4_c512"
    " uir_r3_a5_k0_s1_e4_c512",
    "cn_r1_k1_s1_c960",
)
_HYBRID_MEDIUM = (
    "er_r1_k3_s2_e4_c48",
    "uir_r1_a3_k5_s2_e4_c80 uir_r1_a3_k3_s1_e2_c80",
    "uir_r1_a3_k5_s2_e6_c160 uir_r1_a0_k0_s1_e2_c160 uir_r1_a3_k3_s1_e4_c160"
    " uir_r1_a3_k5_s1_e4_c160 mqa_r1_k3_h4_s1_v2_d64_c160 uir_r1_a3_k3_s1_e4_c160"
    " mqa_r1_k3_h4_s1_v2_d64_c160 uir_r1_a3_k0_s1_e4_c160 mqa_r1_k3_h4_s1_v2_d64_c160"
    " uir_r1_a3_k3_s1_e4_c160 mqa_r1_k3_h4_s1_v2_d64_c160 uir_r1_a3_k0_s1_e4_c160",
    "uir_r1_a5_k5_s2_e6_c256 uir_r1_a5_k5_s1_e4_c256 uir_r2_a3_k5_s1_e4_c256"
    " uir_r1_a0_k0_s1_e2_c256 uir_r1_a3_k5_s1_e2_c256 uir_r1_a0_k0_s1_e2_c256"
    " uir_r1_a0_k0_s1_e4_c256 mqa_r1_k3_h4_s1_v1_d64_c256 uir_r1_a3_k0_s1_e4_c256"
    " mqa_r1_k3_h4_s1_v1_d64_c256 uir_r1_a5_k5_s1_e4_c256 mqa_r1_k3_h4_s1_v1_d64_c256"
    " uir_r1_a5_k0_s1_e4_c256 mqa_r1_k3_h4_s1_v1_d64_c256 uir_r1_a5_k0_s1_e4_c256",
    "cn_r1_k1_s1_c960",
)
VARIANTS = {
    "mobilenetv4_conv_small_035": Variant(32, _SMALL, width=0.35),
    "mobilenetv4_conv_small_050": Variant(32, _SMALL, width=0.5),
    "mobilenetv4_conv_small": Variant(32, _SMALL),
    "mobilenetv4_conv_medium": Variant(32, _MEDIUM),
    "mobilenetv4_conv_large": Variant(24, _LARGE),
    "mobilenetv4_hybrid_medium": Variant(32, _HYBRID_MEDIUM, layer_scale=True),
}


class MobileNetV4(nnx.Module):
    """Pictures to logits: stem, stages of blocks, global average, head, linear classifier.

    Args:
      variant: a row of the table.
      inputs: channels of the pictures.
      classes: number of logits.
      drop_rate: dropout before the classifier.
      drop_path_rate: stochastic depth: from 0 in the first block, in equal steps, to almost this
        in the last, as in timm.
      zero_init_head: the classifier starts at zero, and the loss at log(classes).
      zero_init_residual: the last scale of every block with a residual starts at zero.
      dtype: of the parameters.
    """

    def __init__(
        self,
        variant: Variant,
        *,
        inputs=3,
        classes=2,
        drop_rate=0.0,
        drop_path_rate=0.0,
        zero_init_head=False,
        zero_init_residual=False,
        dtype=jnp.float32,
        rng: np.random.Generator,
    ):
        specs = [parse_stage(stage) for stage in variant.stages]
        count = sum(len(stage) for stage in specs)
        self.drop_rate = drop_rate
        self.conv_stem = Conv(inputs, variant.stem, 3, stride=2, dtype=dtype, rng=rng)
        self.bn1 = BatchNorm(variant.stem, dtype=dtype)
        channels = variant.stem
        stages, index = [], 0
        for stage in specs:
            blocks = []
            for kind, spec in stage:
                outputs = divisible(spec.pop("c") * variant.width)
                if kind == "uir":
                    spec["layer_scale"] = variant.layer_scale
                block = _BLOCKS[kind](channels, outputs, **spec, dtype=dtype, rng=rng)
                block.drop_path_rate = drop_path_rate * index / count
                if zero_init_residual and block.residual:
                    block.last_scale.set_value(np.zeros_like(block.last_scale[...]))
                blocks.append(block)
                channels, index = outputs, index + 1
            stages.append(nnx.List(blocks))
        self.blocks = nnx.List(stages)
        self.conv_head = Conv(channels, variant.features, 1, dtype=dtype, rng=rng)
        self.norm_head = BatchNorm(variant.features, dtype=dtype)
        self.classifier = Linear(
            variant.features, classes, zero_init=zero_init_head, dtype=dtype, rng=rng
        )

    def __call__(self, x, *, train: bool = False, key=None):
        """[B, H, W, inputs] float, normalised -> [B, classes] logits, float32 at least.

        `key` feeds dropout and stochastic depth: in training it is needed where a rate is above 0.
        """
        return self.classify(self.features(x, train=train, key=key), train=train, key=key)

    def features(self, x, *, train: bool = False, key=None):
        """[B, H, W, inputs] -> [B, H/32, W/32, C]: the output of the last stage."""
        x = nnx.relu(self.bn1(self.conv_stem(x), train=train))
        index = 0
        for stage in self.blocks:
            for block in stage:
                y = block(x, train=train)
                if train and block.residual and block.drop_path_rate:
                    y = drop_path(y, block.drop_path_rate, jax.random.fold_in(key, index))
                x = x + y if block.residual else y
                index += 1
        return x

    def classify(self, x, *, train: bool = False, key=None):
        """[B, h, w, C] features -> [B, classes] logits."""
        dtype = x.dtype
        x = jnp.mean(x.astype(jnp.promote_types(dtype, jnp.float32)), axis=(1, 2), keepdims=True)
        x = self.norm_head(self.conv_head(x.astype(dtype)), train=train)
        x = nnx.relu(x)[:, 0, 0]
        if train and self.drop_rate:
            # The blocks' keys are numbered from 0; this is the next.
            x = dropout(x, self.drop_rate, jax.random.fold_in(key, sum(map(len, self.blocks))))
        return self.classifier(x)


class ConvBlock(nnx.Module):
    """A convolution with BatchNorm and ReLU."""

    residual = False

    def __init__(self, inputs, outputs, *, k, s, dtype, rng):
        self.conv = Conv(inputs, outputs, k, stride=s, dtype=dtype, rng=rng)
        self.bn1 = BatchNorm(outputs, dtype=dtype)

    def convolutions(self):
        """(convolution, BatchNorm, whether ReLU follows) of each, in order."""
        return [(self.conv, self.bn1, True)]

    def __call__(self, x, *, train: bool):
        return _through(self.convolutions(), x, train)


class FusedInvertedBottleneck(nnx.Module):
    """A full convolution that expands, and a 1x1 one that projects."""

    def __init__(self, inputs, outputs, *, k, s, e, dtype, rng):
        expanded = divisible(inputs * e)
        self.residual = inputs == outputs and s == 1
        self.conv_exp = Conv(inputs, expanded, k, stride=s, dtype=dtype, rng=rng)
        self.bn1 = BatchNorm(expanded, dtype=dtype)
        self.conv_pwl = Conv(expanded, outputs, 1, dtype=dtype, rng=rng)
        self.bn2 = BatchNorm(outputs, dtype=dtype)

    @property
    def last_scale(self) -> nnx.Param:
        return self.bn2.scale

    def convolutions(self):
        """As `ConvBlock.convolutions`."""
        return [(self.conv_exp, self.bn1, True), (self.conv_pwl, self.bn2, False)]

    def __call__(self, x, *, train: bool):
        return _through(self.convolutions(), x, train)


class UniversalInvertedBottleneck(nnx.Module):
    """1x1 expansion and projection, with a depthwise convolution before, between, both or neither.

    The middle one has the stride, or the starting one if there is no middle one.
    """

    def __init__(self, inputs, outputs, *, a, k, s, e, layer_scale, dtype, rng):
        expanded = divisible(inputs * e)
        kw = {"dtype": dtype, "rng": rng}
        self.residual = inputs == outputs and s == 1
        start = {"stride": 1 if k else s, "groups": inputs, "relu": False}
        self.dw_start = ConvNorm(inputs, inputs, a, **start, **kw) if a else None
        self.pw_exp = ConvNorm(inputs, expanded, 1, **kw)
        middle = {"stride": s, "groups": expanded}
        self.dw_mid = ConvNorm(expanded, expanded, k, **middle, **kw) if k else None
        self.pw_proj = ConvNorm(expanded, outputs, 1, relu=False, **kw)
        self.layer_scale = LayerScale(outputs, dtype=dtype) if layer_scale else None

    @property
    def last_scale(self) -> nnx.Param:
        return self.pw_proj.bn.scale

    def convolutions(self):
        """As `ConvBlock.convolutions`; without the last factor."""
        parts = filter(None, (self.dw_start, self.pw_exp, self.dw_mid, self.pw_proj))
        return [(part.conv, part.bn, part.relu) for part in parts]

    def __call__(self, x, *, train: bool):
        x = _through(self.convolutions(), x, train)
        return self.layer_scale(x) if self.layer_scale else x


def _through(convolutions, x, train: bool):
    for conv, norm, relu in convolutions:
        x = norm(conv(x), train=train)
        x = nnx.relu(x) if relu else x
    return x


class MobileAttention(nnx.Module):
    """BatchNorm, multi-query attention (paper, section 4.2) and a learned factor per channel."""

    def __init__(self, inputs, outputs, *, k, h, s, v, d, dtype, rng):
        assert s == 1  # no row shrinks its queries
        self.residual = inputs == outputs
        self.norm = BatchNorm(inputs, dtype=dtype)
        self.attn = MultiQueryAttention(
            inputs, outputs, heads=h, width=d, kernel=k, stride=v, dtype=dtype, rng=rng
        )
        self.layer_scale = LayerScale(outputs, dtype=dtype)

    @property
    def last_scale(self) -> nnx.Param:
        return self.layer_scale.gamma

    def __call__(self, x, *, train: bool):
        return self.layer_scale(self.attn(self.norm(x, train=train), train=train))


class MultiQueryAttention(nnx.Module):
    """Every position has `heads` queries; all share keys and values, [H/s, W/s] each."""

    def __init__(self, inputs, outputs, *, heads, width, kernel, stride, dtype, rng):
        kw = {"dtype": dtype, "rng": rng}
        self.heads = heads
        self.query = Projection(inputs, heads * width, **kw)
        self.key = Projection(inputs, width, kernel=kernel, stride=stride, **kw)
        self.value = Projection(inputs, width, kernel=kernel, stride=stride, **kw)
        self.output = Projection(heads * width, outputs, **kw)

    def __call__(self, x, *, train: bool):
        """[B, H, W, in] -> [B, H, W, out]."""
        batch, height, columns, _ = x.shape
        query = self.query(x, train=train).reshape(batch, height * columns, self.heads, -1)
        key, value = (
            y.reshape(batch, -1, 1, y.shape[-1])
            for y in (self.key(x, train=train), self.value(x, train=train))
        )
        attended = attention(query, key, value)
        return self.output(attended.reshape(batch, height, columns, -1), train=train)


class Projection(nnx.Module):
    """A 1x1 convolution; if `stride` is above 1, a depthwise one before it downsamples.

    Kernels are drawn from Xavier's uniform distribution, as timm's.
    """

    def __init__(self, inputs, outputs, *, kernel=1, stride=1, dtype, rng):
        self.shrinks = stride > 1
        if self.shrinks:
            self.down_conv = Conv(
                inputs, inputs, kernel, stride=stride, groups=inputs, dtype=dtype, rng=rng
            )
            _draw_xavier(self.down_conv, rng)
            self.norm = BatchNorm(inputs, dtype=dtype)
        self.proj = Conv(inputs, outputs, 1, dtype=dtype, rng=rng)
        _draw_xavier(self.proj, rng)

    def __call__(self, x, *, train: bool):
        if self.shrinks:
            x = self.norm(self.down_conv(x), train=train)
        return self.proj(x)


def _draw_xavier(conv: Conv, rng: np.random.Generator) -> None:
    kernel = conv.kernel[...]
    height, width, inputs, outputs = kernel.shape
    bound = np.sqrt(6 / (height * width * (inputs + outputs)))
    conv.kernel.set_value(rng.uniform(-bound, bound, kernel.shape).astype(kernel.dtype))


_BLOCKS = {
    "cn": ConvBlock,
    "er": FusedInvertedBottleneck,
    "uir": UniversalInvertedBottleneck,
    "mqa": MobileAttention,
}


def parse_stage(stage: str) -> list[tuple[str, dict[str, int]]]:
    """ "uir_r2_k3_s2_c8" -> [("uir", {"k": 3, "s": 2, "c": 8}), ("uir", {… "s": 1 …})]."""
    blocks = []
    for string in stage.split():
        kind, *fields = string.split("_")
        spec = {field[0]: int(field[1:]) for field in fields}
        repeats = spec.pop("r")
        blocks += [(kind, spec | ({} if i == 0 else {"s": 1})) for i in range(repeats)]
    return blocks


def divisible(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and never less than 90% of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
