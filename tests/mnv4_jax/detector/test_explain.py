"""Grad-CAM against finite differences on a tiny network, and on one whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import small
from mnv4_jax.detector import explain
from mnv4_jax.models import classifier, vit
from tests import narrow
from tests.tiny import tiny_config


def tiny_head(features):
    """Pool, a hidden layer with a bend, two logits: no map of it is trivial."""
    rng = np.random.default_rng(0)
    w1, w2 = rng.normal(size=(5, 7)), rng.normal(size=(7, 2))
    return jnp.tanh(features.mean((1, 2)) @ w1) @ w2


def test_maps_equal_finite_differences():
    """Adding a constant to one channel moves the log-odds by h·w times the channel's weight."""
    features = np.random.default_rng(1).normal(size=(2, 3, 4, 5))
    maps = np.zeros((2, 3, 4))
    with jax.enable_x64(True):
        for channel in range(5):
            eps = 1e-4
            up, down = features.copy(), features.copy()
            up[..., channel] += eps
            down[..., channel] -= eps
            difference = np.asarray(tiny_head(up) - tiny_head(down))
            weight = (difference[:, 0] - difference[:, 1]) / (2 * eps) / (3 * 4)
            maps += weight[:, None, None] * features[..., channel]
        ours = explain.grad_cam(tiny_head, jnp.asarray(features))
    np.testing.assert_allclose(ours, maps, atol=1e-6)


def test_a_linear_head_is_explained_completely():
    """Behind average pooling and a linear layer the map sums to the log-odds."""
    features = np.random.default_rng(2).normal(size=(3, 4, 4, 6)).astype(np.float32)
    weights = np.random.default_rng(3).normal(size=(6, 2)).astype(np.float32)
    head = lambda x: x.mean((1, 2)) @ weights  # noqa: E731
    logits = head(features)
    maps = explain.grad_cam(head, jnp.asarray(features))
    np.testing.assert_allclose(maps.sum((1, 2)), logits[:, 0] - logits[:, 1], rtol=1e-4)


@pytest.fixture(scope="module")
def model() -> nnx.Module:
    """The smallest variant with weights drawn by numpy: initialising it takes JAX 13 s."""
    config = small.get_config()
    config.model.name = "mobilenetv4_conv_small_035"
    abstract = nnx.eval_shape(lambda: classifier.build(config, seed=0))
    graphdef, params, stats = nnx.split(abstract, nnx.Param, nnx.BatchStat)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: 0.3 * rng.normal(size=p.shape).astype(p.dtype), params)
    stats = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), stats)
    return nnx.merge(graphdef, params, stats)


def test_the_detector_explains_pictures_of_any_shape(model):
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    maps = explain.explain(model, images)
    assert maps.shape == (2, 2, 3)
    assert np.isfinite(maps).all()
    assert np.abs(maps).max() > 0


def narrow_detector(name):
    """(detector in float64 with random weights, a noise picture): a grid of four by four."""
    size = 4 * (vit.VARIANTS[name].patch if name in vit.VARIANTS else 8)
    config = tiny_config(**{"model.name": name, "data.image_size": size, "model.dtype": "float64"})
    built = classifier.build(config, seed=0)
    graphdef, params, stats = nnx.split(built, nnx.Param, nnx.BatchStat)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.2 * rng.normal(size=p.shape), nnx.as_pure(params))
    model = nnx.merge(graphdef, params, stats)
    return model, rng.integers(0, 256, (1, size, size, 3), np.uint8)


@pytest.mark.parametrize("name", [*narrow.TRANSFORMERS, narrow.HYBRID])
def test_maps_of_every_kind_of_network_equal_finite_differences(name):
    """For a transformer, on the patches' tokens; the class token and registers stay fixed."""
    with jax.enable_x64(True):
        model, images = narrow_detector(name)
        heat = explain.explain(model, images)
        features = jax.jit(model.features)(images / 255.0)
        tokens = isinstance(features, vit.Tokens)
        assert tokens == (name in narrow.TRANSFORMERS)
        grid = np.asarray(features.grid if tokens else features)

        @jax.jit
        def log_odds(grid):
            logits = model.head(features._replace(grid=grid) if tokens else grid)
            return logits[0, 0] - logits[0, 1]

        expected, eps = np.zeros(grid.shape[:3]), 1e-4
        for channel in range(grid.shape[3]):
            step = eps * (np.arange(grid.shape[3]) == channel)
            weight = (log_odds(grid + step) - log_odds(grid - step)) / (2 * eps)
            expected += float(weight) / (4 * 4) * grid[..., channel]
    assert heat.shape == (1, 4, 4)
    assert np.ptp(heat) > 1e-2
    np.testing.assert_allclose(heat, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", narrow.TRANSFORMERS)
def test_a_patch_changes_the_grid_most_in_its_own_place(name):
    with jax.enable_x64(True):
        model, images = narrow_detector(name)
        features = jax.jit(lambda x: model.features(x).grid)
        side = images.shape[1] // 4
        for row, column in ((0, 0), (1, 2), (3, 3)):
            other = images.copy()
            patch = other[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            patch[:] = 255 - patch
            change = np.abs(features(other / 255.0) - features(images / 255.0)).sum((0, 3))
            assert np.unravel_index(change.argmax(), change.shape) == (row, column)


def test_the_overlay_colours_what_spoke_for_each_class():
    picture = np.full((40, 40, 3), 100, np.uint8)
    painted = explain.overlay(picture, np.array([[1.0, 0.0], [0.0, -1.0]])).astype(int)
    assert painted.shape == picture.shape
    for corner, colour in (((0, 0), explain.FAKE_COLOUR), ((-1, -1), explain.REAL_COLOUR)):
        np.testing.assert_allclose(painted[corner], 0.25 * 100 + 0.75 * np.array(colour), atol=1)
    np.testing.assert_array_equal(painted[0, -1], [100, 100, 100])  # nothing spoke here


def test_a_map_of_zeros_leaves_the_picture_grey():
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    painted = explain.overlay(picture, np.zeros((2, 2)))
    assert (painted == painted[..., :1]).all()
