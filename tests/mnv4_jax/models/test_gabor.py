"""The bank against OpenCV: kernels, responses, and what the modes do with them."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnv4_jax.models import classifier
from mnv4_jax.models.gabor import GaborBank, gabor_kernels
from mnv4_jax.models.vit import IMAGENET
from tests.golden import formula
from tests.tiny import tiny_config

IMAGES = formula.pictures(2, 40).astype(np.float32) / 255


def bank(**overrides):
    return GaborBank(tiny_config(**{f"gabor.{k}": v for k, v in overrides.items()}).gabor)


def opencv_taps(ksize, theta, sigma, lambd, gamma, psi):
    kernel = cv2.getGaborKernel((ksize, ksize), sigma, theta, lambd, gamma, psi, cv2.CV_64F)
    kernel -= kernel.mean()
    return kernel / np.abs(kernel).sum()


def opencv_responses(picture, filters, quadrature=False):
    """[H, W, 3] float32 -> [H, W, K], each filter by cv2.filter2D with its default border."""
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float64)
    respond = lambda f: cv2.filter2D(luma, cv2.CV_64F, opencv_taps(7, *f))  # noqa: E731
    if quadrature:
        shifted = [(*f[:4], f[4] + np.pi / 2) for f in filters]
        pairs = zip(filters, shifted, strict=True)
        return np.stack([np.hypot(respond(a), respond(b)) for a, b in pairs], -1)
    return np.stack([respond(f) for f in filters], -1)


def test_kernels_are_opencvs():
    rng = np.random.default_rng(0)
    filters = rng.uniform([0, 1, 2, 0.3, -3], [3.2, 4, 9, 1.5, 3], (20, 5)).astype(np.float32)
    ours = np.asarray(gabor_kernels(9, *filters.T))
    for k, (theta, sigma, lambd, gamma, psi) in enumerate(filters):
        theirs = cv2.getGaborKernel((9, 9), sigma, theta, lambd, gamma, psi, cv2.CV_64F)
        np.testing.assert_allclose(ours[:, :, k], theirs, atol=1e-5)
    # Some phase must tell a kernel from the one turned by 180 degrees.
    assert np.abs(ours - ours[::-1, ::-1]).max() > 0.1


@pytest.mark.parametrize("response", ["real", "magnitude"])
def test_responses_are_those_of_filter2d(response):
    filters = bank(response=response, psi=0.4, gamma=0.7)
    ours = np.asarray(filters.responses(jnp.asarray(IMAGES)))
    for picture, responses in zip(IMAGES, ours, strict=True):
        oracle = opencv_responses(picture, filters.filters, response == "magnitude")
        np.testing.assert_allclose(responses, oracle, atol=1e-5)
    assert ours.shape[-1] == 8 and ours.std() > 1e-3


def test_flat_skin_answers_nothing():
    flat = jnp.full((1, 16, 16, 3), 0.83)
    for psi in (0.0, 0.7):
        assert np.abs(bank(response="real", psi=psi).responses(flat)).max() < 1e-6
        assert np.abs(bank(response="magnitude", psi=psi).responses(flat)).max() < 2e-6


def test_a_filter_answers_to_its_own_orientation_and_wavelength():
    filters = bank(wavelengths=(2.5, 4.0), response="magnitude")
    x = np.arange(32)
    for k, (theta, _, lambd, *_) in enumerate(filters.filters):
        phase = 2 * np.pi / lambd * (x[None] * np.cos(theta) + x[:, None] * np.sin(theta))
        grating = np.repeat(0.5 + 0.4 * np.cos(phase)[None, :, :, None], 3, -1)
        strength = np.asarray(filters.responses(jnp.asarray(grating, jnp.float32))).mean((0, 1, 2))
        assert strength.argmax() == k


def test_concat_puts_the_responses_beside_the_normalised_channels():
    config = tiny_config(**{"gabor.mode": "concat"})
    model = nnx.eval_shape(lambda: classifier.build(config, seed=0))
    inputs = np.asarray(model.inputs(jnp.asarray(IMAGES)))
    assert model.backbone.conv_stem.kernel.shape[2] == inputs.shape[-1] == 3 + 8
    normalised = (IMAGES - np.array(IMAGENET[0])) / np.array(IMAGENET[1])
    np.testing.assert_allclose(inputs[..., :3], normalised, atol=1e-5)
    responses = opencv_responses(IMAGES[1], model.gabor.filters, quadrature=True)
    np.testing.assert_allclose(inputs[1, ..., 3:], config.gabor.gain * responses, atol=1e-3)


def test_enhance_blends_the_mean_response_into_the_three_channels():
    config = tiny_config(**{"gabor.mode": "enhance", "gabor.gain": 2.0})
    model = nnx.eval_shape(lambda: classifier.build(config, seed=0))
    responses = opencv_responses(IMAGES[0], model.gabor.filters, quadrature=True)
    enhanced = IMAGES[0] + 2.0 * responses.mean(-1, keepdims=True)
    expected = (enhanced - np.array(IMAGENET[0])) / np.array(IMAGENET[1])
    np.testing.assert_allclose(model.inputs(jnp.asarray(IMAGES))[0], expected, atol=1e-4)


@pytest.mark.parametrize("response", ["real", "magnitude"])
def test_a_learnable_bank_trains_five_parameters_a_filter_and_not_the_taps(response):
    with jax.enable_x64(True):
        _check_the_learnable_bank(response)


def _check_the_learnable_bank(response):
    # At psi = 0 the imaginary part has taps of 0, where sum |tap| = 1 has a kink.
    config = tiny_config(**{"gabor.response": response, "gabor.psi": 0.3}).gabor
    fixed = GaborBank(config, dtype=jnp.float64)
    config.learnable = True
    learnable = GaborBank(config, dtype=jnp.float64)
    assert not jax.tree.leaves(nnx.state(fixed))
    graphdef, params = nnx.split(learnable)
    shapes = {path[0]: value.shape for path, value in nnx.to_flat_state(params)}
    assert shapes == dict.fromkeys(("theta", "sigma", "lambd", "gamma", "psi"), (8,))
    np.testing.assert_array_equal(fixed.weight(), learnable.weight())

    params = nnx.to_pure_dict(params)
    energy = jax.jit(
        lambda p: jnp.mean(nnx.merge(graphdef, nnx.State(p)).responses(jnp.asarray(IMAGES)) ** 2)
    )
    for name, grads in jax.grad(energy)(params).items():
        step = np.zeros(8)
        step[3] = 1e-4
        up, down = (params | {name: params[name] + sign * step} for sign in (1, -1))
        numeric = (energy(up) - energy(down)) / 2e-4
        np.testing.assert_allclose(grads[3], numeric, rtol=1e-4)


def test_magnitude_has_a_finite_gradient_on_flat_skin():
    filters = bank(response="magnitude")
    grads = jax.grad(lambda x: filters.responses(x).sum())(jnp.full((1, 16, 16, 3), 0.5))
    assert np.isfinite(grads).all()


@pytest.mark.parametrize(
    ("field", "value"), [("kernel_size", 8), ("kernel_size", 1), ("wavelengths", ())]
)
def test_an_impossible_bank_is_an_error_that_names_the_field(field, value):
    with pytest.raises(ValueError, match=rf"gabor\..*{field}"):
        bank(**{field: value})
