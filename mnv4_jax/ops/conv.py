"""Convolutions in the form that is fast on the current backend.

XLA:CPU runs grouped convolutions some ten times slower than PyTorch does, and their gradients
slower still. On CPU, `conv2d` calls the C++ of kernels.cc. If that cannot be built or the batch is
on several devices, it computes shifted products (depthwise), or patches times a matrix (small dense
kernels). On accelerators it uses the native operation. `reference` is the plain form that all
others are tested against.
"""

import contextlib
import contextvars
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from mnv4_jax.ops import kernels


@dataclasses.dataclass(frozen=True)
class Form:
    """How convolutions and what goes with them compute."""

    depthwise: str = "native"  # "shifted": a sum of shifted products; "kernel": C++
    pointwise: str = "native"  # "dot": a matrix product
    dense: str = "native"  # "patches": the windows side by side, times a matrix; "kernel": C++
    kernels: bool = False  # C++ in norm.py, split.py, models/folded.py and gradients of matrices


NATIVE = Form()
PURE_CPU = Form(depthwise="shifted", pointwise="dot", dense="patches")
KERNEL_CPU = Form(depthwise="kernel", pointwise="dot", dense="kernel", kernels=True)

_FORM = contextvars.ContextVar("form", default=None)  # None: by backend


@contextlib.contextmanager
def use(form: Form):
    """Traces every operation inside the block in this form, on any backend.

    For export to a platform other than the tracing one, for tests and for benchmarks.
    """
    token = _FORM.set(form)
    try:
        yield
    finally:
        _FORM.reset(token)


def conv2d(x, kernel, *, stride: int = 1, padding: int | None = None, groups: int = 1):
    """Cross-correlation with symmetric zero padding, as `torch.nn.functional.conv2d`.

    Args:
      x: [B, H, W, Cin] float.
      kernel: [kh, kw, Cin / groups, Cout], same dtype.
      stride: of both axes.
      padding: zeros on every side; None is (k - 1) // 2, PyTorch's "same" for odd k.
      groups: 1, or Cin for a depthwise convolution (Cout = Cin).

    Returns:
      [B, (H + 2 padding - kh) // stride + 1, ..., Cout] in x's dtype.

    Raises:
      ValueError: for other groups.
    """
    kh, kw, _, features = kernel.shape
    channels = x.shape[-1]
    if groups not in (1, channels) or (groups > 1 and features != channels):
        raise ValueError(f"groups: 1 or Cin with Cout = Cin, not {groups} for {kernel.shape}")
    padding = (kh - 1) // 2 if padding is None else padding
    form = form_for(x.dtype)
    if groups > 1:
        if form.depthwise == "kernel":
            return kernels.depthwise(x, kernel[:, :, 0], stride, padding)
        if form.depthwise == "shifted":
            return _depthwise(x, kernel[:, :, 0], stride, padding)
    elif kh == kw == 1 and padding == 0:
        if form.pointwise == "dot":
            return _dot(x[:, ::stride, ::stride], kernel[0, 0])
    elif form.dense == "kernel":
        return kernels.dense(x, kernel, stride, padding)
    elif form.dense == "patches":
        return _dot(_patches(x, (kh, kw), stride, padding), kernel.reshape(-1, features))
    return reference(x, kernel, stride=stride, padding=padding, groups=groups)


def form_for(dtype) -> Form:
    """The form of the enclosing `use` block, else the fast one for `dtype` on this backend."""
    if given := _FORM.get():
        return given
    if jax.default_backend() != "cpu":
        return NATIVE
    # XLA cannot split a C++ call over devices: with several it would gather the whole batch on each
    fits = jax.device_count() == 1 and dtype == jnp.float32
    return KERNEL_CPU if fits and kernels.available("kernels.cc") else PURE_CPU


def reference(x, kernel, *, stride: int = 1, padding: int | None = None, groups: int = 1):
    """The same as `conv2d`, by XLA's own convolution."""
    padding = (kernel.shape[0] - 1) // 2 if padding is None else padding
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _windows(x, k, stride, padding):
    """Yields (i, j, the input under tap i, j [B, Ho, Wo, C]), row by row.

    A strided window is a plain slice of one stride phase of the input: XLA would read a strided
    slice element by element.
    """
    h, w = ((n + 2 * padding - kk) // stride + 1 for n, kk in zip(x.shape[1:3], k, strict=True))
    s = stride
    rows, cols = h + (k[0] - 1) // s, w + (k[1] - 1) // s
    x = x[:, : rows * s - padding, : cols * s - padding]  # a stride may not use the last rows
    high = (rows * s - padding - x.shape[1], cols * s - padding - x.shape[2])
    x = jnp.pad(x, ((0, 0), (padding, high[0]), (padding, high[1]), (0, 0)))
    phases = x.reshape(x.shape[0], rows, s, cols, s, x.shape[3])
    for i in range(k[0]):
        for j in range(k[1]):
            phase = phases[:, :, i % s, :, j % s]
            yield i, j, phase[:, i // s : i // s + h, j // s : j // s + w]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, stride, padding):
    """x [B, H, W, C] with kernel [kh, kw, C], as a sum of shifted products."""
    wide = _accumulator(x)
    windows = _windows(x, kernel.shape[:2], stride, padding)
    y = sum(w.astype(wide) * kernel[i, j].astype(wide) for i, j, w in windows)
    return y.astype(x.dtype)


def _depthwise_bwd(stride, padding, residuals, dy):
    x, kernel = residuals
    wide = _accumulator(dy)
    taps = [
        jnp.sum(w.astype(wide) * dy.astype(wide), axis=(0, 1, 2))
        for _, _, w in _windows(x, kernel.shape[:2], stride, padding)
    ]
    dkernel = jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)
    return _depthwise_dx(dy, kernel, x.shape, stride, padding), dkernel


def _accumulator(x):
    """Sums of bfloat16 are taken in float32."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _depthwise_dx(dy, kernel, shape, stride, padding):
    """Gradient to the input. Each of its stride phases is a correlation of dy with the taps of that
    phase; the phases are then interleaved."""
    kh, kw = kernel.shape[:2]
    s, wide = stride, _accumulator(dy)
    rows, cols = -(-(shape[1] + padding) // s), -(-(shape[2] + padding) // s)
    reach = ((kh - 1) // s, (kw - 1) // s)
    # dy[o] meets padded input row o * s + i, which is row o + i // s of phase i % s
    high = [max(0, n - o) for n, o in zip((rows, cols), dy.shape[1:3], strict=True)]
    dy = jnp.pad(dy, ((0, 0), (reach[0], high[0]), (reach[1], high[1]), (0, 0)))
    phases = []
    for a in range(s):
        for b in range(s):
            phase = jnp.zeros((), wide)
            for i in range(a, kh, s):
                for j in range(b, kw, s):
                    top, left = reach[0] - i // s, reach[1] - j // s
                    phase += dy[:, top : top + rows, left : left + cols].astype(wide) * kernel[
                        i, j
                    ].astype(wide)
            phase = jnp.broadcast_to(phase, (dy.shape[0], rows, cols, dy.shape[3]))
            phases.append(phase.astype(dy.dtype))
    dx = jnp.stack(phases, axis=3).reshape(dy.shape[0], rows, cols, s, s, dy.shape[3])
    dx = dx.transpose(0, 1, 3, 2, 4, 5).reshape(dy.shape[0], rows * s, cols * s, dy.shape[3])
    return dx[:, padding : padding + shape[1], padding : padding + shape[2]]


_depthwise.defvjp(lambda x, k, stride, pad: (_depthwise(x, k, stride, pad), (x, k)), _depthwise_bwd)


def _patches(x, k, stride, padding):
    """[B, H, W, C] -> [B, Ho, Wo, kh * kw * C]: every window, flat."""
    return jnp.concatenate([w for _, _, w in _windows(x, k, stride, padding)], axis=-1)


def matmul(x, matrix):
    """x [..., K] times [K, N] -> [..., N], in the form that is fast on this backend."""
    return _dot(x, matrix) if form_for(x.dtype).pointwise == "dot" else x @ matrix


def _dot(x, matrix):
    """x [..., K] times [K, N] -> [..., N], over flat rows.

    If the product sums over several axes, XLA:CPU first copies the gradient into a transposed
    array, which takes a third of its time. So the rows are flattened. Autodiff of the flat product
    transposes too, and in a transformer that copy sums the residual stream anew in every layer:
    half of a training step. So the gradient is written here.
    """
    return _matmul(x.reshape(-1, x.shape[-1]), matrix).reshape(*x.shape[:-1], matrix.shape[1])


@jax.custom_vjp
def _matmul(x, matrix):
    return lax.dot_general(x, matrix, (((1,), (0,)), ((), ())))


def _matmul_bwd(residuals, dy):
    x, matrix = residuals
    dx = lax.dot_general(dy, matrix, (((1,), (1,)), ((), ())))
    if form_for(dy.dtype).kernels:
        return dx, kernels.product_dk(x, dy)
    return dx, lax.dot_general(x, dy, (((0,), (0,)), ((), ())))


_matmul.defvjp(lambda x, matrix: (_matmul(x, matrix), (x, matrix)), _matmul_bwd)
