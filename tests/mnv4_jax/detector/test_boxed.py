import jax
import numpy as np
import pytest
from safetensors import safe_open

from input_pipeline.cli import UserError
from input_pipeline.sources import open_source
from mnv4_jax.detector import boxed, saved
from mnv4_jax.detector.detector import Detector
from mnv4_jax.measure import calibration
from mnv4_jax.models.classifier import to_float


def logits_of(checkpoint, pictures):
    return np.asarray(checkpoint.model(to_float(pictures)))


@pytest.fixture
def box(run, tmp_path):
    """The calibrated fixture, packed."""
    file = tmp_path / "box" / "detector.safetensors"
    boxed.write(file, saved.load(run))
    return file


def test_a_packed_detector_answers_as_its_checkpoint(run, box, capsys):
    checkpoint, packed = saved.load(run), boxed.read(box)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    expected, found = logits_of(checkpoint, pictures), logits_of(packed, pictures)
    np.testing.assert_allclose(found, expected, atol=5e-3 * np.abs(expected).max())
    assert packed.calibration == checkpoint.calibration
    same = {"data.dir": packed.config.data.dir}
    checkpoint.config.update_from_flattened_dict(same)
    assert packed.config.to_dict() == checkpoint.config.to_dict()
    assert packed.labels == checkpoint.labels
    assert "research and evaluation" in capsys.readouterr().err


def test_a_packed_detector_names_its_sets_and_not_their_places(run, tmp_path):
    loaded = saved.load(run)
    loaded.meta["config"]["data"]["dir"] = "/home/somebody/faces,/data/photos"
    boxed.write(tmp_path / "detector.safetensors", loaded)
    assert b"somebody" not in (tmp_path / "detector.safetensors").read_bytes()
    assert boxed.read(tmp_path / "detector.safetensors").config.data.dir == "faces,photos"


def test_kernels_take_two_bytes_a_number_and_statistics_four(run, box):
    weights = jax.tree.leaves(saved.load(run).weights)
    with safe_open(box, "numpy") as file:
        stored = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert stored == sum(np.size(x) * (2 if np.ndim(x) >= 2 else 4) for x in weights)


def test_a_cut_file_is_one_line(box):
    box.write_bytes(box.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"no detector in the box .*--checkpoint=DIR"):
        boxed.read(box)


def test_the_box_has_no_raw_weights():
    with pytest.raises(UserError, match="--raw: the detector in the box has averaged weights"):
        saved.load(None, raw=True)


@pytest.mark.skipif(not boxed.FILE.exists(), reason="no detector was shipped yet")
def test_the_detector_in_the_box_answers_without_a_checkpoint(portraits):
    assert boxed.FILE.stat().st_size <= 6_000_000
    detector = Detector()
    files = sorted((portraits / "Test" / "Real").glob("*.jpg"))
    p = detector(files)
    assert ((p > 0) & (p < 1)).all()
    loaded = boxed.read()
    assert set(detector.thresholds) == {f"{r:g}" for r in calibration.FALSE_ALARM_RATES}
    assert loaded.meta["metrics"]["auc"] > 0.7


def test_a_detector_older_than_a_field_of_training_still_answers(run, portraits, tmp_path):
    loaded = saved.load(run)
    for field in ("zoom", "blended", "weights", "balance", "jpeg_prob", "downscale_prob"):
        del loaded.meta["config"]["data"][field]
    boxed.write(tmp_path / "old.safetensors", loaded)
    old = boxed.read(tmp_path / "old.safetensors")
    source = open_source(str(portraits), "Test")
    scores = [Detector.of(checkpoint).logits(source) for checkpoint in (loaded, old)]
    np.testing.assert_allclose(scores[1].logits, scores[0].logits, atol=0.02)
