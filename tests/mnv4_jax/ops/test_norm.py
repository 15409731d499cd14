"""Batch normalisation and its gradient equal the formula of the paper, derived by autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv4_jax.ops import conv, kernels, norm

SHAPES = [(2, 3, 5, 1), (1, 1, 1, 7), (3, 7, 9, 40), (2, 33, 35, 45)]  # the last: three tasks
EPS = 1e-5


def formula(y, scale, bias):
    axes = tuple(range(y.ndim - 1))
    mean, var = y.mean(axes), y.var(axes)
    return (y - mean) / jnp.sqrt(var + EPS) * scale + bias, mean, var


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", [conv.KERNEL_CPU, conv.NATIVE], ids=["kernel", "native"])
def test_batch_norm_is_the_formula_of_the_paper(shape, form):
    if form.kernels and not kernels.available("kernels.cc"):
        pytest.skip("no C++ compiler")
    rng = np.random.default_rng(0)
    y, dy = rng.standard_normal((2, *shape), np.float32)
    y += 1
    scale, bias = rng.standard_normal((2, shape[-1]), np.float32)

    def with_gradients(function, *args):
        _, pullback = jax.vjp(lambda *args: function(*args)[0], *args)
        return *function(*args), *pullback(dy)

    def ours(y, scale, bias):
        return norm.batch_norm(y, scale, bias, EPS)

    with conv.use(form):
        # A function of its own: what is traced once for a function is not traced again.
        program = jax.jit(lambda *args: with_gradients(ours, *args)).lower(y, scale, bias)
    assert ("mnv4_sums" in program.as_text()) == form.kernels
    got = program.compile()(y, scale, bias)
    want = with_gradients(formula, y, scale, bias)
    names = ("normalised", "mean", "var", "d_y", "d_scale", "d_bias")
    for name, value, expected in zip(names, got, want, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=3e-4, err_msg=name)


def test_no_gradient_flows_through_the_moments():
    y, one = jnp.arange(6.0).reshape(1, 2, 3, 1), jnp.ones(1)
    moments = lambda y: sum(x.sum() for x in norm.batch_norm(y, one, one, EPS)[1:])  # noqa: E731
    np.testing.assert_array_equal(jax.grad(moments)(y), np.zeros_like(y))
