"""The forms of `data.cache` train on the same batches."""

import shutil

import jax
import numpy as np
import pytest

from input_pipeline.sources import open_source
from mnv4_jax.runtime.mesh import make_mesh
from mnv4_jax.training import loop
from mnv4_jax.training.pictures import TrainPictures, crops
from tests.mnv4_jax.training.test_loop import config_for, lines


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MNV4_CACHE", str(tmp_path / "cache"))


def opened(folder, said, start=0, **fields):
    config = config_for(folder, **fields)
    source = open_source(str(folder), "Train")
    return TrainPictures(
        config, source, make_mesh(), start=start, on_bad=lambda *_: None, say=said.append
    )


def images(pictures, n):
    found = []
    for _ in range(n):
        batch, arrays = next(pictures)
        assert set(arrays) == {"image", "label", "position"}
        assert len(arrays["image"].sharding.device_set) == 4
        np.testing.assert_array_equal(arrays["label"], batch["label"])
        found.append(np.asarray(arrays["image"]))
    pictures.close()
    return np.stack(found)


@pytest.mark.parametrize("form", ["host", "device", "auto"])
def test_every_form_gives_the_same_pictures(picture_folder, form):
    said = []
    expected = images(opened(picture_folder, said, **{"data.cache": "none"}), 20)
    assert not said
    np.testing.assert_array_equal(
        images(opened(picture_folder, said, **{"data.cache": form}), 20), expected
    )
    # 48 pictures in batches of 8: six steps to an epoch.
    moved = [line for line in said if line.startswith("all pictures are in device memory")]
    assert len(moved) == (form == "device")  # "auto" leaves a CPU's memory alone
    again = opened(picture_folder, [], 7, **{"data.cache": form})
    np.testing.assert_array_equal(images(again, 13), expected[7:])


def test_a_picture_that_can_be_read_too_late_is_not_black(picture_folder, tmp_path):
    """It has no pixels on the device."""
    shutil.copytree(picture_folder, tmp_path / "set")
    file = min((tmp_path / "set/Train/Real").iterdir())
    good = file.read_bytes()
    file.write_bytes(b"broken")
    expected = images(opened(tmp_path / "set", [], **{"data.cache": "none"}), 20)
    said = []
    pictures = opened(tmp_path / "set", said, **{"data.cache": "device"})
    found = []
    for _ in range(20):
        found.append(np.asarray(next(pictures)[1]["image"]))
        if any(line.startswith("all pictures are in device memory") for line in said):
            file.write_bytes(good)
    pictures.close()
    assert file.read_bytes() == good
    np.testing.assert_array_equal(np.stack(found), expected)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"data.zoom": (0.7, 1.0)}, "data.zoom, data.blended"),
        ({"data.blended": 0.5}, "data.zoom, data.blended"),
        ({"data.webp_prob": 0.5}, "data.webp_prob change them"),
    ],
)
def test_what_cannot_be_done_on_the_device_stays_on_the_host_and_is_said(
    picture_folder, fields, why
):
    said = []
    expected = images(opened(picture_folder, [], **fields, **{"data.cache": "none"}), 8)
    found = images(opened(picture_folder, said, **fields, **{"data.cache": "device"}), 8)
    np.testing.assert_array_equal(found, expected)
    assert any(why in line for line in said)


def test_pictures_that_do_not_fit_the_device_stay_on_the_host(picture_folder, monkeypatch):
    monkeypatch.setattr("mnv4_jax.training.pictures._free_bytes", lambda device: 1000)
    said = []
    images(opened(picture_folder, said, **{"data.cache": "device"}), 8)
    assert "do not fit in 0.0 GiB of device memory" in said[-1]


@pytest.mark.slow
def test_a_run_is_the_same_with_every_form(picture_folder, tmp_path):
    """Weights and metrics too, over an epoch's end and a resume."""
    written = {}
    for form in ("none", "host", "device"):
        workdir = tmp_path / form
        for steps in (6, 9):
            config = config_for(picture_folder, **{"data.cache": form, "train.steps": steps})
            config.train.learning_rate = 1e-3
            assert loop.run(config, str(workdir)) == 0
        kept = ("step", "split", "loss", "auc", "grad_norm")
        written[form] = [{k: line.get(k) for k in kept} for line in lines(workdir)]
        written[form].append(lines(workdir, "digests.jsonl"))
    assert written["none"] == written["host"] == written["device"]


def test_crops_are_cut_where_they_should(picture_folder):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 9, 3), dtype=np.uint8)
    places = np.array([[2, 0, 4], [0, 3, 1]], np.int32)
    out = np.asarray(jax.jit(crops, static_argnames="size")(pixels, places, size=5))
    for (index, top, left), crop in zip(places, out, strict=True):
        np.testing.assert_array_equal(crop, pixels[index, top : top + 5, left : left + 5])
