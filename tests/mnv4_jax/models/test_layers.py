"""BatchNorm and the stochastic layers against arithmetic done by hand in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv4_jax.models.layers import BatchNorm, attention, drop_path, dropout


def test_batch_norm_normalises_by_the_biased_and_remembers_the_unbiased_variance():
    x = np.random.default_rng(0).normal(3, 2, (2, 2, 3, 4))  # 12 values a channel: 9% apart
    norm = BatchNorm(4)
    norm.scale[...] = jnp.arange(1.0, 5)
    y = norm(jnp.asarray(x, jnp.float32), train=True)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5) * np.arange(1, 5), atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * var * 12 / 11, rtol=1e-5)


def test_batch_norm_evaluates_with_the_running_statistics_and_leaves_them():
    norm = BatchNorm(1)
    norm.mean[...], norm.var[...] = jnp.full(1, 2.0), jnp.full(1, 4.0)
    y = norm(jnp.full((1, 1, 1, 1), 6.0), train=False)
    np.testing.assert_allclose(y.ravel(), 4 / np.sqrt(4 + 1e-5))
    assert norm.mean[...] == 2 and norm.var[...] == 4


def test_batch_norm_keeps_float32_statistics_of_bfloat16_activations():
    x = 1000 + np.random.default_rng(0).normal(0, 8, (8, 8, 8, 1))
    norm = BatchNorm(1)
    y = norm(jnp.asarray(x, jnp.bfloat16), train=True)
    assert y.dtype == jnp.bfloat16 and norm.var[...].dtype == jnp.float32
    exact = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    np.testing.assert_allclose(norm.mean[...], 0.1 * exact.mean(), rtol=1e-6)


def test_drop_path_drops_whole_examples_and_keeps_the_expectation():
    x = jnp.ones((4000, 2, 2, 3))
    y = np.asarray(drop_path(x, 0.25, jax.random.key(0)))
    per_example = y.reshape(len(y), -1)
    assert (per_example == per_example[:, :1]).all()
    assert set(np.unique(per_example)) == {0.0, np.float32(1 / 0.75)}
    assert abs(y.mean() - 1) < 0.03


def test_dropout_keeps_the_expectation():
    y = np.asarray(dropout(jnp.ones((100, 400)), 0.2, jax.random.key(0)))
    assert abs((y == 0).mean() - 0.2) < 0.01 and abs(y.mean() - 1) < 0.01


@pytest.mark.parametrize("heads,shared", [(3, 3), (4, 1), (4, 2)])
@pytest.mark.parametrize("dtype,tolerance", [(np.float64, 1e-12), (jnp.bfloat16, 0.03)])
def test_attention_equals_its_definition(heads, shared, dtype, tolerance):
    """Against PyTorch in float64, gradients included."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    arrays = [
        rng.standard_normal(shape)
        for shape in ((2, 5, heads, 8), (2, 7, shared, 8), (2, 7, shared, 8))
    ]
    query, key, value = tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    key, value = (x.repeat_interleave(heads // shared, 2).transpose(1, 2) for x in (key, value))
    scores = query.transpose(1, 2) @ key.transpose(2, 3) / 8**0.5
    want = (scores.softmax(-1) @ value).transpose(1, 2)
    want.cos().sum().backward()
    with jax.enable_x64(True):
        arguments = [jnp.asarray(x, dtype) for x in arrays]
        got = jax.jit(attention)(*arguments)
        assert got.dtype == dtype
        np.testing.assert_allclose(np.asarray(got, float), want.detach(), atol=tolerance)
        gradients = jax.grad(lambda *x: jnp.cos(attention(*x)).sum(), argnums=(0, 1, 2))
        for ours, theirs in zip(jax.jit(gradients)(*arguments), tensors, strict=True):
            np.testing.assert_allclose(np.asarray(ours, float), theirs.grad, atol=3 * tolerance)
