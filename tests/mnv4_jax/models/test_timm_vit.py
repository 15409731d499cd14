"""Vision transformers against timm's: the same numbers both ways, the same logits."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from input_pipeline import demo
from input_pipeline.cli import UserError
from mnv4_jax.detector import explain
from mnv4_jax.models import classifier, timm_keys, vit
from mnv4_jax.models.init_from import transfer
from mnv4_jax.models.weights import abstract, split
from tests.tiny import tiny_config

timm = pytest.importorskip("timm", reason="the extra `torch` is missing")
torch = pytest.importorskip("torch", reason="the extra `torch` is missing")
pytestmark = pytest.mark.torch

SMALL = [name for name in vit.VARIANTS if "large" not in name and "base" not in name]
# DINOv2's large rows are its small ones, wider and deeper, and need 10 GB and four minutes each:
# the first test below was run on both by hand on 2026-11-28, and passed.
LARGE = ["vit_base_patch16_224", "vit_large_patch14_clip_224"]


def config_of(name, size=112, **overrides):
    overrides = {"model.name": name, "data.image_size": size, **overrides}
    return tiny_config(**overrides)


def of_timm(name, size):
    """timm's network with weights that leave nothing at its initial zero or one."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=2, img_size=size, dynamic_img_size=True).eval()
    with torch.no_grad():
        for key, value in network.named_parameters():
            value.normal_(0, 0.2 if "gamma" in key else 0.05)
            if "norm" in key and key.endswith("weight"):
                value.add_(1)
    return network


def tensors_of(network):
    return {k: v.detach().numpy().copy() for k, v in network.state_dict().items()}


def ours_of(network, name, size):
    model = classifier.build(config_of(name, size), seed=0)
    loaded = timm_keys.from_timm(model, tensors_of(network))
    graphdef, _ = split(model)
    return nnx.merge(graphdef, loaded["params"], loaded["stats"])


def close(network, model, size):
    """On noise and on a drawn portrait."""
    noise = np.random.default_rng(size).normal(size=(size, size, 3))
    portrait = cv2.imdecode(np.frombuffer(demo.draw_jpeg(7, size)[0], np.uint8), cv2.IMREAD_COLOR)
    portrait = cv2.resize(portrait, (size, size)) / 127.5 - 1
    x = np.stack([noise, portrait]).astype(np.float32)
    with torch.no_grad():
        theirs = network(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    ours = np.asarray(jax.jit(lambda x: model.backbone(x))(x))
    limit = 1e-4 * max(1, np.abs(theirs).max())
    assert np.abs(theirs[0] - theirs[1]).max() > 10 * limit  # the pictures are told apart
    assert np.abs(ours - theirs).max() <= limit


@pytest.mark.parametrize(
    "name", [*SMALL, *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)]
)
def test_the_logits_are_timms_at_two_sizes(name):
    size = 7 * vit.VARIANTS[name].patch
    network = of_timm(name, size)
    model = ours_of(network, name, size)
    close(network, model, size)
    close(network, model, 5 * vit.VARIANTS[name].patch)  # positions are resampled, shrunk
    if name in SMALL:
        close(network, model, 9 * vit.VARIANTS[name].patch)  # and enlarged


def test_weights_of_another_size_are_resampled_on_loading():
    """What timm.create_model(img_size=256) makes of weights of 224 px."""
    small = of_timm("vit_tiny_patch16_224", 112)
    large = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=144).eval()
    state = timm.models.vision_transformer.checkpoint_filter_fn(small.state_dict(), large)
    large.load_state_dict(state)
    close(large, ours_of(small, "vit_tiny_patch16_224", 144), 144)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SMALL else pytest.mark.slow) for n in vit.VARIANTS]
)
def test_a_round_trip_returns_the_same_bytes(name):
    size = 7 * vit.VARIANTS[name].patch
    network = of_timm(name, size)
    tensors = tensors_of(network)
    back = timm_keys.to_timm(ours_of(network, name, size))
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        assert back[key].tobytes() == np.ascontiguousarray(value).tobytes(), key


def test_the_row_is_told_by_the_shapes_and_a_strange_one_is_an_error():
    config = config_of("mobilenetv4_conv_small", 224)
    for name in ("vit_tiny_patch16_224", "vit_small_patch14_dinov2"):
        tensors = tensors_of(of_timm(name, 112))
        assert timm_keys.find_variant(config, tensors) == name
    del tensors["blocks.3.attn.proj.bias"]
    with pytest.raises(UserError, match=r"missing blocks\.3\.attn\.proj\.bias"):
        timm_keys.find_variant(config, tensors)


def test_one_step_of_sgd_moves_the_weights_as_in_pytorch():
    name, size, rate = "vit_tiny_patch16_224", 112, 0.05
    network = of_timm(name, size)
    model = ours_of(network, name, size)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, size, size, 3)).astype(np.float32)
    labels = np.array([0, 1, 1, 0])
    logits = network(torch.from_numpy(x).permute(0, 3, 1, 2))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
    torch.optim.SGD(network.parameters(), lr=rate).step()

    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

    def loss(params):
        logits = nnx.merge(graphdef, params, stats).backbone(x)
        return -jax.nn.log_softmax(logits)[jnp.arange(4), labels].mean()

    params = jax.tree.map(lambda p, g: p - rate * g, params, jax.jit(jax.grad(loss))(params))
    after = timm_keys.to_timm(nnx.merge(graphdef, params, stats))
    for key, value in tensors_of(network).items():
        np.testing.assert_allclose(after[key], value, atol=1e-4, err_msg=key)


def test_a_gabor_bank_starts_at_zero_beside_weights_from_elsewhere():
    config = config_of("vit_tiny_patch16_224", **{"gabor.mode": "concat"})
    source = split(ours_of(of_timm("vit_tiny_patch16_224", 112), "vit_tiny_patch16_224", 112))[1]
    fresh = split(classifier.build(config, seed=0))[1]
    params, _, notes = transfer(fresh["params"], fresh["stats"], source["params"], source["stats"])
    kernel = params["backbone"]["patch_embed"]["proj"]["kernel"]
    assert kernel.shape[2] > 3
    np.testing.assert_array_equal(kernel[:, :, 3:], 0)
    np.testing.assert_array_equal(
        kernel[:, :, :3], source["params"]["backbone"]["patch_embed"]["proj"]["kernel"]
    )
    assert any("further input channels start at zero" in note for note in notes)


def test_a_patch_that_does_not_divide_the_picture_is_an_error():
    with pytest.raises(ValueError, match=r"data\.image_size=100: the patch of 16 px .*; 96 would"):
        abstract(config_of("vit_tiny_patch16_224", 100))


def test_the_map_of_a_transformer_is_its_gradient_on_the_grid():
    model = ours_of(of_timm("vit_tiny_patch16_224", 64), "vit_tiny_patch16_224", 64)
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    heat = explain.explain(model, images)
    assert heat.shape == (1, 4, 4)
    tokens = model.features(jnp.asarray(images, jnp.float32) / 255)
    direction = np.random.default_rng(1).normal(size=tokens.grid.shape).astype(np.float32)
    log_odds = lambda grid: jnp.diff(  # noqa: E731
        -model.head(tokens._replace(grid=grid))
    )[0, 0]
    step = 1e-2
    numeric = log_odds(tokens.grid + step * direction) - log_odds(tokens.grid - step * direction)
    analytic = (jax.grad(log_odds)(tokens.grid) * direction).sum()
    np.testing.assert_allclose(numeric / (2 * step), analytic, rtol=0.02, atol=1e-4)
    weights = jax.grad(log_odds)(tokens.grid).mean((1, 2))
    np.testing.assert_allclose(
        heat, -jnp.einsum("bhwc,bc->bhw", tokens.grid, -weights), rtol=1e-4, atol=1e-6
    )
