"""The C++ sums of BatchNorm equal the plain ones, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv4_jax.models.layers import BatchNorm
from mnv4_jax.ops import conv, kernels, norm

SHAPES = [(2, 3, 5, 1), (1, 1, 1, 7), (3, 7, 9, 40), (2, 33, 35, 45)]  # the last: three tasks


@pytest.fixture(autouse=True)
def _compiler():
    if not kernels.available():
        pytest.skip("no C++ compiler")


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_equal_numpy(shape):
    y = np.random.default_rng(0).standard_normal(shape, np.float32) + 3
    with conv.use(conv.KERNEL_CPU):
        program = jax.jit(norm.moments).lower(y)
    assert "mnv4_sums" in program.as_text()
    got = program.compile()(y)
    wide = y.astype(np.float64)
    np.testing.assert_allclose(got[0], wide.sum((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(got[1], np.square(wide).sum((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_by_kernels_equals_the_plain_one(shape):
    """Through a whole layer in training, so that every gradient of both functions takes part."""
    rng = np.random.default_rng(1)
    y, dy = rng.standard_normal((2, *shape), np.float32)
    scale, bias = rng.standard_normal((2, shape[-1]), np.float32)

    def run(y, scale, bias):
        layer = BatchNorm(shape[-1])
        layer.scale.set_value(scale)
        layer.bias.set_value(bias)
        out = layer(y, train=True)
        return out, layer.mean[...], layer.var[...]

    def with_gradients(y, scale, bias):
        out, pullback = jax.vjp(run, y, scale, bias)
        return *out, *pullback((dy, jnp.ones(shape[-1]), jnp.ones(shape[-1])))

    results = {}
    for name, form in (("kernels", conv.KERNEL_CPU), ("plain", conv.NATIVE)):
        with conv.use(form):
            # A function of its own: what is traced once for a function is not traced again.
            program = jax.jit(lambda *args: with_gradients(*args)).lower(y, scale, bias)
        assert ("mnv4_sums" in program.as_text()) == (name == "kernels")
        results[name] = program.compile()(y, scale, bias)
    names = ("out", "mean", "var", "d_y", "d_scale", "d_bias")
    for name, got, want in zip(names, *results.values(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-4, err_msg=name)
