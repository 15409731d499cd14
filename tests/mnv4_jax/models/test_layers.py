"""BatchNorm and the stochastic layers against arithmetic done by hand in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from mnv4_jax.models.layers import BatchNorm, drop_path, dropout


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
