"""The folded network answers as the plain one does."""

import jax
import numpy as np
import pytest
from flax import nnx

from mnv4_jax.models import classifier
from mnv4_jax.models import weights as weights_lib
from mnv4_jax.models.folded import Folded, folded
from mnv4_jax.ops import conv, kernels
from tests.tiny import tiny_config


@pytest.fixture(autouse=True)
def _as_on_one_device():
    if not kernels.available("kernels.cc") or not kernels.available("network.cc"):
        pytest.skip("no C++ compiler")
    with conv.use(conv.KERNEL_CPU):
        yield


def trained(name, **overrides):
    """A classifier whose statistics, biases and head are not those of the beginning."""
    model = classifier.build(tiny_config(**{"model.name": name, **overrides}), seed=0)
    rng = np.random.default_rng(1)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        value = variable[...]
        if path[-1] in ("mean", "bias"):
            variable.set_value(rng.normal(0, 0.3, value.shape).astype(value.dtype))
        elif path[-1] in ("var", "scale"):
            variable.set_value(rng.uniform(0.5, 1.5, value.shape).astype(value.dtype))
        elif path[-2:] == ("classifier", "kernel"):
            variable.set_value(rng.normal(0, 0.1, value.shape).astype(value.dtype))
    return model


def logits(model, images):
    graphdef, weights = weights_lib.split(model)
    step = jax.jit(lambda w, x: weights_lib.eval_step(w, x, graphdef=graphdef))
    return np.asarray(step(weights, images))


@pytest.mark.parametrize(
    ("name", "shape", "overrides"),
    [
        # Channels that fill no vector, sides that no stride divides, and one row for many threads.
        ("mobilenetv4_conv_small_035", (3, 75, 75), {}),
        ("mobilenetv4_conv_small_035", (1, 130, 130), {}),
        ("mobilenetv4_conv_small_050", (1, 33, 33), {"gabor.mode": "concat"}),
        ("mobilenetv4_conv_small", (2, 96, 96), {"gabor.mode": "enhance"}),
        ("mobilenetv4_conv_medium", (2, 64, 64), {}),
    ],
)
def test_the_folded_network_answers_as_the_plain_one(name, shape, overrides):
    model = trained(name, **overrides)
    images = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    fast = folded(model)
    assert isinstance(fast, Folded)
    want = logits(model, images)
    assert np.ptp(want) > 0.1
    np.testing.assert_allclose(logits(fast, images), want, rtol=1e-4, atol=1e-5)


def test_a_batch_has_the_answers_of_its_pictures():
    """One picture is shared out over the threads; of several, each thread has its own."""
    fast = folded(trained("mobilenetv4_conv_small_035"))
    assert isinstance(fast, Folded)
    images = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
    alone = np.concatenate([logits(fast, images[i : i + 1]) for i in range(len(images))])
    np.testing.assert_allclose(logits(fast, images), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("mobilenetv4_hybrid_medium", {}),
        ("vit_tiny_patch16_224", {"data.image_size": 32}),
        ("mobilenetv4_conv_small_035", {"model.dtype": "bfloat16"}),
        ("mobilenetv4_conv_small_035", {"model.dtype": "float64"}),
    ],
)
def test_other_networks_and_precisions_stay_as_they_are(name, overrides):
    with jax.enable_x64(overrides.get("model.dtype") == "float64"):
        model = classifier.build(tiny_config(**{"model.name": name, **overrides}), seed=0)
        assert folded(model) is model


def test_several_devices_have_the_plain_network():
    model = classifier.build(tiny_config(), seed=0)
    with conv.use(conv.PURE_CPU):
        assert folded(model) is model
