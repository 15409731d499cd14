"""`--raw` everywhere: a checkpoint whose average is another network than its weights."""

import json
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mnv4_jax import convert, evaluate, predict
from mnv4_jax.detector import saved, weight_files
from mnv4_jax.detector.detector import Detector
from mnv4_jax.measure import calibration


@pytest.fixture(scope="module")
def two_networks(run, tmp_path_factory):
    """(workdir, averaged alone, raw alone): step 0 with a calibration that is the average's."""
    loaded = saved.load(run)
    ema = loaded.weights
    weights = jax.tree.map(lambda x: 0.7 * np.asarray(x) + 0.01, ema)
    root = tmp_path_factory.mktemp("two")
    meta = saved.make_meta(loaded.config, calibration=loaded.calibration)
    with ocp.CheckpointManager(root / "both" / "checkpoints") as manager:
        manager.save(0, args=saved.to_save(0, {"weights": weights, "ema": ema}, meta))
    folder = saved.write_initial(root / "ema", loaded.config, ema)
    saved.save_calibration(folder, loaded.calibration)
    saved.write_initial(root / "raw", loaded.config, weights)
    return root / "both", root / "ema", root / "raw"


@pytest.fixture(scope="module")
def files(portraits):
    return sorted((portraits / "Test").glob("*/[0-9]*.jpg"))[::5]


def test_the_library_loads_the_average_with_its_calibration_or_the_weights_without(
    two_networks, files
):
    both, ema, raw = two_networks
    averaged, as_trained = Detector(both)(files), Detector(both, raw=True)(files)
    np.testing.assert_allclose(averaged, Detector(ema)(files), atol=1e-6)
    np.testing.assert_allclose(as_trained, Detector(raw)(files), atol=1e-6)
    assert np.abs(averaged - as_trained).max() > 1e-3
    assert Detector(both, raw=True).thresholds == {}
    assert Detector(both, raw=True).temperature == 1
    assert Detector(both).thresholds == saved.load(ema).calibration["thresholds"]


def test_predict(two_networks, files, monkeypatch, capsys):
    both, ema, raw = two_networks

    def ask(*flags):
        monkeypatch.setattr(sys, "argv", ["predict", "--json", *flags, *map(str, files)])
        predict.main()
        return [json.loads(line)["p_fake"] for line in capsys.readouterr().out.splitlines()]

    as_trained = ask(f"--checkpoint={both}", "--raw")
    np.testing.assert_allclose(as_trained, ask(f"--checkpoint={raw}"), atol=1e-6)
    np.testing.assert_allclose(ask(f"--checkpoint={both}"), ask(f"--checkpoint={ema}"), atol=1e-6)
    assert np.abs(np.subtract(as_trained, ask(f"--checkpoint={both}"))).max() > 1e-3


def test_evaluate(two_networks, portraits, monkeypatch, tmp_path):
    both, ema, raw = two_networks

    def loss(name, *flags):
        arguments = [f"--data={portraits}", f"--out={tmp_path / name}", "--robustness=0", *flags]
        monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
        evaluate.main()
        numbers = json.loads((tmp_path / name / "report.json").read_text())
        return numbers["log_loss"]["value"], numbers["weights"], numbers["calibration"]

    as_trained, said, none = loss("a", f"--checkpoint={both}", "--raw")
    assert (said, none) == ("as trained", None)
    assert as_trained == pytest.approx(loss("b", f"--checkpoint={raw}")[0], abs=1e-6)
    averaged, said, fitted = loss("c", f"--checkpoint={both}")
    assert said == "moving average (EMA)"
    assert fitted == saved.load(ema).calibration
    assert averaged == pytest.approx(loss("d", f"--checkpoint={ema}")[0], abs=1e-6)
    assert abs(averaged - as_trained) > 1e-4


def test_convert(two_networks, monkeypatch, tmp_path):
    both, ema, raw = two_networks

    def converted(name, *flags):
        out = tmp_path / name
        monkeypatch.setattr(sys, "argv", ["convert", "--to=torch", f"--out={out}", *flags])
        convert.main()
        return weight_files.read(str(out))

    (tensors, header) = converted("a", f"--checkpoint={both}", "--raw")
    (expected, _) = converted("b", f"--checkpoint={raw}")
    assert header["calibration"] is None
    for name in expected:
        np.testing.assert_array_equal(tensors[name], expected[name])
    (averaged, header) = converted("c", f"--checkpoint={both}")
    assert header["calibration"] == saved.load(ema).calibration
    assert any((averaged[name] != tensors[name]).any() for name in expected)


def test_the_calibration_that_is_applied_is_the_checkpoints(two_networks, files):
    """p_fake of the average is that of its logits, at the temperature that it carries."""
    both, _, _ = two_networks
    detector = Detector(both)
    calibrated = detector(files)
    detector.temperature = 1.0
    plain = detector(files)
    logits = np.stack([np.log(plain), np.log1p(-plain)], axis=1)
    fitted = saved.load(both).calibration["temperature"]
    np.testing.assert_allclose(calibrated, calibration.p_fake(logits, fitted), atol=1e-6)
    assert abs(fitted - 1) > 0.01
