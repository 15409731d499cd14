"""Vision transformers against timm's: the same numbers both ways, the same logits."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from input_pipeline import demo
from input_pipeline.cli import UserError
from input_pipeline.decode import decode
from mnv4_jax.models import classifier, timm_keys, vit
from mnv4_jax.models.init_from import transfer
from mnv4_jax.models.weights import abstract, split
from tests import narrow
from tests.tiny import tiny_config

timm = pytest.importorskip("timm", reason="the extra `torch` is missing")
torch = pytest.importorskip("torch", reason="the extra `torch` is missing")
pytestmark = pytest.mark.torch
from tests import narrow_timm  # noqa: E402, F401  registers its networks

ROWS = [name for name in vit.VARIANTS if name not in narrow.TRANSFORMERS]
SMALL = [name for name in ROWS if "large" not in name and "base" not in name]
# DINOv2's large rows are its small ones, wider and deeper, and need 10 GB and four minutes each:
# the first test below was run on both by hand on 2026-11-28, and passed.
LARGE = ["vit_base_patch16_224", "vit_large_patch14_clip_224"]


def config_of(name, size=112, **overrides):
    overrides = {"model.name": name, "data.image_size": size, **overrides}
    return tiny_config(**overrides)


def of_timm(name, size, *, positions=1):
    """timm's network with weights that leave nothing at its initial zero or one.

    `positions` is the scale of their embeddings: at 0.05, bilinear resampling kept the bound.
    """
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=2, img_size=size, dynamic_img_size=True).eval()
    with torch.no_grad():
        for key, value in network.named_parameters():
            value.normal_(0, 0.2 if "gamma" in key else 0.05)
            if key == "pos_embed":
                value.mul_(positions / 0.05)
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


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, state, x):
    return nnx.merge(graphdef, state, copy=True).backbone(x)


def compare(network, theirs, model, ours):
    """The logits of timm's network and of our backbone: [B, H, W, 3], normalised, for each."""
    with torch.no_grad():
        theirs = network(torch.from_numpy(theirs).permute(0, 3, 1, 2)).numpy()
    graphdef, state = nnx.split(model)
    ours = np.asarray(_logits(graphdef, nnx.as_pure(state), ours))
    limit = 1e-4 * max(1, np.abs(theirs).max())
    assert np.abs(theirs[0] - theirs[1]).max() > 10 * limit  # the pictures are told apart
    assert np.abs(ours - theirs).max() <= limit


def close(network, model, size):
    """On noise and on a drawn portrait."""
    noise = np.random.default_rng(size).normal(size=(size, size, 3))
    portrait = cv2.imdecode(np.frombuffer(demo.draw_jpeg(7, size)[0], np.uint8), cv2.IMREAD_COLOR)
    portrait = cv2.resize(portrait, (size, size)) / 127.5 - 1
    x = np.stack([noise, portrait]).astype(np.float32)
    compare(network, x, model, x)


@pytest.fixture(
    scope="module", params=[*SMALL, *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)]
)
def row(request):
    """(patch in px, timm's network, ours): built once for the tests of a row."""
    name = request.param
    patch = vit.VARIANTS[name].patch
    network = of_timm(name, 7 * patch)
    return patch, network, ours_of(network, name, 7 * patch)


def test_the_logits_are_timms_at_two_sizes(row, request):
    patch, network, model = row
    close(network, model, 7 * patch)
    close(network, model, 5 * patch)  # positions are resampled, shrunk
    if request.node.callspec.params["row"] in SMALL:
        close(network, model, 9 * patch)  # and enlarged


@pytest.fixture(scope="module")
def photographs(image_sets):
    """Four faces: RGB, uint8."""
    folder = image_sets / "rvf10k" / "Test" / "Real"
    if not folder.is_dir():
        pytest.skip("no rvf10k in MNV4_DATA")
    files = sorted(folder.iterdir())
    return [decode(files[i].read_bytes()) for i in np.linspace(0, len(files) - 1, 4).astype(int)]


def test_the_logits_of_photographs_are_timms_at_two_sizes(row, photographs, request):
    """Normalised by each side on its own."""
    patch, network, model = row
    name = request.node.callspec.params["row"]
    # timm's weights of that name without a tag are fine-tuned ones, with a mean of 0.5.
    tag = ".openai" if "clip" in name else ""
    cfg = timm.get_pretrained_cfg(name + tag)
    mean, std = np.array(cfg.mean), np.array(cfg.std)
    for size in (7 * patch, 5 * patch):
        pixels = np.stack(
            [cv2.resize(p, (size, size), interpolation=cv2.INTER_AREA) for p in photographs]
        )
        pixels = (pixels / 255).astype(np.float32)
        for x in (pixels[:2], pixels[2:]):  # as many as above: compiled already
            compare(network, ((x - mean) / std).astype(np.float32), model, model.inputs(x))


@pytest.mark.parametrize(
    ("name", "trained", "size"),
    [
        ("vit_tiny_patch16_224", 112, 144),
        ("vit_narrow", 224, 256),
        ("vit_narrow_clip", 224, 252),
        ("vit_narrow_dinov2", 518, 224),
        ("vit_narrow_registers", 518, 224),
        ("vit_narrow_registers", 224, 252),
    ],
)
def test_weights_of_another_size_are_resampled_on_loading(name, trained, size):
    """What timm.create_model(img_size=256) makes of weights of 224 px."""
    small = of_timm(name, trained)
    large = timm.create_model(name, num_classes=2, img_size=size).eval()
    state = timm.models.vision_transformer.checkpoint_filter_fn(small.state_dict(), large)
    large.load_state_dict(state)
    close(large, ours_of(small, name, size), size)


@pytest.mark.parametrize(
    ("name", "trained", "size"),
    [
        ("vit_narrow", 224, 256),
        ("vit_narrow_clip", 224, 252),
        ("vit_narrow_dinov2", 518, 224),
        ("vit_narrow_registers", 518, 224),
    ],
)
def test_pictures_of_another_size_get_timms_logits(name, trained, size):
    network = of_timm(name, trained)
    close(network, ours_of(network, name, trained), size)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SMALL else pytest.mark.slow) for n in ROWS]
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


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", *narrow.TRANSFORMERS])
def test_one_step_of_sgd_moves_the_weights_as_in_pytorch(name):
    size, rate, limit = 7 * vit.VARIANTS[name].patch, 5, 1e-4
    network = of_timm(name, size, positions=0.05)  # larger ones leave less gradient
    model = ours_of(network, name, size)
    before = tensors_of(network)
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
        np.testing.assert_allclose(after[key], value, rtol=0, atol=limit, err_msg=key)
        assert np.abs(value - before[key]).max() > 10 * limit, f"{key} moves too little to tell"


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
