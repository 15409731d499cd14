"""What a run starts from: a checkpoint of its own, a file, or nothing that fits."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from input_pipeline.cli import UserError
from mnv4_jax.detector import saved
from mnv4_jax.models import classifier, timm_keys
from mnv4_jax.training import loop, start
from tests.mnv4_jax.training.test_loop import config_for, lines


@pytest.mark.slow
def test_init_from_takes_a_file_of_timms_names(picture_folder, tmp_path, capsys):
    """Without learning, what comes out is what was in the file; the Gabor channels are at zero."""
    config = config_for(picture_folder, **{"model.name": "mobilenetv4_conv_small"})
    config.gabor.mode = "none"
    tensors = timm_keys.to_timm(classifier.build(config, seed=5))
    del tensors["classifier.weight"], tensors["classifier.bias"]
    tensors["classifier.weight"] = np.zeros((1000, 1280), np.float32)
    tensors["classifier.bias"] = np.zeros(1000, np.float32)
    file = tmp_path / "imagenet.safetensors"
    save_file(tensors, file)
    fields = {"model.init_from": str(file), "train.learning_rate": 0.0, "train.steps": 1}
    fields |= {"model.name": "mobilenetv4_conv_small", "gabor.mode": "concat"}
    assert loop.run(config_for(picture_folder, **fields), str(tmp_path / "run")) == 0
    said = capsys.readouterr().out
    assert "the head has 1000 classes: it starts fresh with 2" in said
    assert f"starting from the weights of {file}" in said
    ours = timm_keys.to_timm(saved.load(tmp_path / "run", raw=True).model)
    np.testing.assert_array_equal(ours["blocks.0.0.conv.weight"], tensors["blocks.0.0.conv.weight"])
    stem = ours["conv_stem.weight"]
    np.testing.assert_array_equal(stem[:, :3], tensors["conv_stem.weight"])
    assert stem.shape[1] > 3 and not stem[:, 3:].any()

    with pytest.raises(UserError, match=r"config\.model\.init_from: .*imagenet\.pth: no such file"):
        fields["model.init_from"] = str(tmp_path / "imagenet.pth")
        loop.run(config_for(picture_folder, **fields), str(tmp_path / "run 2"))


def test_init_from_names_its_field_where_there_is_nothing(picture_folder, tmp_path):
    nowhere = {"model.init_from": str(tmp_path / "nowhere")}
    with pytest.raises(UserError, match=r"config\.model\.init_from: .*nowhere: no such folder"):
        loop.run(config_for(picture_folder, **nowhere), str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("model.name", "resnet", "one of mobilenetv4"), ("gabor.kernel_size", 4, "odd")],
)
def test_an_impossible_model_is_refused(picture_folder, tmp_path, field, value, message):
    config = config_for(picture_folder, **{"gabor.mode": "concat", field: value})
    with pytest.raises(UserError, match=f"config.{field}={value!r}.*{message}"):
        loop.run(config, str(tmp_path))


def test_a_run_that_trains_some_parameters_goes_on_from_its_checkpoint(picture_folder, tmp_path):
    fields = {"train.trainable": ("classifier",), "model.zero_init_head": False}
    for steps in (4, 8):
        config = config_for(picture_folder, **fields, **{"train.steps": steps})
        assert loop.run(config, str(tmp_path)) == 0
    early, late = (saved.load(tmp_path / "checkpoints" / str(at)) for at in (4, 8))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), early.weights, late.weights)
    for path, unmoved in jax.tree.leaves_with_path(same["params"]):
        assert unmoved != ("classifier" in str(path)), path
    config = config_for(picture_folder, **(fields | {"train.trainable": ()}))
    with pytest.raises(UserError, match=r"config\.train\.trainable=.*use that, or another"):
        loop.run(config, str(tmp_path))


def test_a_workdir_that_is_not_utf8_is_refused(picture_folder, tmp_path):
    with pytest.raises(UserError, match=r"is not UTF-8, which checkpoints need"):
        loop.run(config_for(picture_folder), f"{tmp_path}/\udcff")
    assert not list(tmp_path.iterdir())


def test_a_field_that_is_newer_than_the_run_had_its_default(picture_folder, tmp_path, capsys):
    assert loop.run(config_for(picture_folder, **{"train.steps": 2}), str(tmp_path)) == 0
    older = saved.load(tmp_path).meta["config"]
    del older["data"]["webp_prob"]
    config = config_for(picture_folder, **{"data.webp_prob": 0.5})
    start._warn_of_other_batches(config, older, print)
    assert "config.data.webp_prob=0.5 (was 0.0)" in capsys.readouterr().out


def test_a_transformer_keeps_the_size_of_its_positions(picture_folder, tmp_path):
    config = config_for(picture_folder, **{"model.name": "vit_tiny_patch16_224"})
    older = config.to_dict()
    config.data.image_size = 64
    with pytest.raises(UserError, match=r"config\.data\.image_size=64, but the run in .* has 32"):
        start._check_same_model(config, older, tmp_path)


@pytest.mark.slow
def test_a_split_state_is_saved_as_a_replicated_one(picture_folder, tmp_path):
    """Begun whole and gone on with split, or the other way: the same weights, to rounding."""
    ends = []
    for first, second in ((False, True), (True, False)):
        workdir = tmp_path / f"{first} {second}"
        for steps, split in ((4, first), (6, second)):
            fields = {"train.steps": steps, "train.shard_state": split}
            assert loop.run(config_for(picture_folder, **fields), str(workdir)) == 0
        losses = [line["loss"] for line in lines(workdir) if line["split"] == "train"]
        ends.append((losses, saved.load(workdir / "checkpoints" / "6", raw=True).weights))
    (expected, weights), (found, end) = ends
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    jax.tree.map(
        # Adam makes a small step of any rounding where there is no gradient.
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4),
        end,
        weights,
    )
