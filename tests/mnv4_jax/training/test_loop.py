"""The loop end to end, on the shipped config, shrunk."""

import json
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest
from etils import epath

from input_pipeline import sources
from input_pipeline.cli import UserError
from input_pipeline.order import order
from input_pipeline.sources import FileSource
from mnv4_jax.config import eval_transform
from mnv4_jax.detector import saved, scoring
from mnv4_jax.runtime.mesh import make_mesh
from mnv4_jax.training import loop, writers
from mnv4_jax.training.digests import Digests
from tests.tiny import four_block_config


def config_for(folder, **overrides):
    return four_block_config(
        **{
            "data.dir": str(folder),
            "data.image_size": 32,
            "data.threads": 2,
            "data.log_digests": True,
            "train.batch_size": 8,
            "train.log_every_steps": 2,
            "train.steps": 8,
            "checkpoint.every_steps": 2,
            **overrides,
        }
    )


def lines(workdir, name="metrics.jsonl"):
    return [json.loads(line) for line in (pathlib.Path(workdir) / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(picture_folder, tmp_path_factory):
    """The workdir of an uninterrupted run of 8 steps (4/3 epochs)."""
    workdir = tmp_path_factory.mktemp("finished")
    assert loop.run(config_for(picture_folder), str(workdir)) == 0
    return workdir


def test_a_run_leaves_what_its_reader_expects(finished):
    metrics = lines(finished)
    assert [m["step"] for m in metrics if m["split"] == "train"] == [2, 4, 6, 8]
    assert [m["step"] for m in metrics if m["split"] == "validation"] == [6, 8]
    (test,) = [m for m in metrics if m["split"] == "test"]
    assert test["n"] == 16
    for line in metrics:
        assert {"loss", "accuracy", "auc"} <= set(line)
    assert all(m["images_per_s"] > 0 for m in metrics if m["split"] == "train")
    config = json.loads((finished / "config.json").read_text())
    assert config["data"]["image_size"] == 32
    assert config["found"] == {
        "Train": {"fake": 24, "real": 24, "passed_over": {}},
        "Validation": {"fake": 8, "real": 8, "passed_over": {}},
    }
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((finished / "tensorboard").iterdir())
    assert (finished / "checkpoints" / "8").is_dir()


def test_validation_scores_the_average_and_not_the_weights_as_trained(picture_folder, tmp_path):
    fast = {"train.learning_rate": 0.2, "train.warmup_epochs": 0.0, "train.steps": 2}
    assert loop.run(config_for(picture_folder, **fast), str(tmp_path)) == 0
    (line,) = [m for m in lines(tmp_path) if m["split"] == "validation"]
    validation = sources.open_source(str(picture_folder), "Validation")

    def loss(raw):
        loaded = saved.load(tmp_path / "checkpoints" / "2", raw=raw)
        transform = eval_transform(loaded.config.data)
        scores = scoring.score_source(
            loaded.model, validation, transform, make_mesh(), on_bad=print
        )
        logits = scores.logits.astype(np.float64)
        right = logits[np.arange(len(logits)), scores.labels]
        return float((np.log(np.exp(logits).sum(1)) - right).mean())

    assert line["loss"] == pytest.approx(loss(raw=False), rel=1e-4)
    assert abs(loss(raw=True) / line["loss"] - 1) > 0.01


def test_the_batches_of_a_run_are_those_of_its_seed(finished, picture_folder, tmp_path):
    ids = sources.open_source(str(picture_folder), "Train").ids
    expected = Digests(tmp_path, 0, ids, 0, on=True)
    for k in range(8):
        position = np.arange(8 * k, 8 * k + 8)
        batch = {"index": order(0, len(ids), position), "position": np.uint32(position)}
        expected.write(k + 1, batch)
    assert lines(finished, "digests.jsonl") == lines(tmp_path, "digests.jsonl")


def test_a_digest_tells_pictures_and_augmentation_keys_and_no_order(tmp_path):
    names = [f"{i}.png" for i in range(6)]
    batch = {"index": np.arange(4), "position": np.arange(4, dtype=np.uint32)}

    def digest(name, seed=0, **fields):
        folder = epath.Path(tmp_path / name)
        folder.mkdir()
        digests = Digests(folder, seed, names, 0, on=True)
        digests.write(1, batch | fields)
        digests.flush()
        (line,) = lines(folder, "digests.jsonl")
        return line["sha256"]

    same = digest("same")
    turned = {field: values[::-1] for field, values in batch.items()}
    assert digest("turned", **turned) == same
    assert digest("pictures", index=np.arange(1, 5)) != same
    assert digest("positions", position=np.arange(1, 5, dtype=np.uint32)) != same
    assert digest("seed", seed=1) != same


@pytest.fixture
def sigterm_at(monkeypatch):
    """Sends this process a real SIGTERM as it writes the train line of a step."""

    def arm(step):
        write = writers.MetricsWriter.write

        def write_and_tell(self, at, split, values):
            write(self, at, split, values)
            if (at, split) == (step, "train"):
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(writers.MetricsWriter, "write", write_and_tell)

    yield arm
    monkeypatch.undo()


def test_preempted_and_run_again_equals_an_uninterrupted_run(
    finished, picture_folder, tmp_path, sigterm_at, monkeypatch, capsys
):
    config = config_for(picture_folder)
    sigterm_at(2)
    assert loop.run(config, str(tmp_path)) == 75
    monkeypatch.undo()
    assert "run the same command to go on" in capsys.readouterr().out
    assert 2 <= max(m["step"] for m in lines(tmp_path)) < 8
    assert loop.run(config, str(tmp_path)) == 0
    assert "going on from step" in capsys.readouterr().out
    assert lines(tmp_path, "digests.jsonl") == lines(finished, "digests.jsonl")
    losses = [
        [(m["step"], m["split"], m["loss"]) for m in lines(workdir) if m["step"] > 4]
        for workdir in (tmp_path, finished)
    ]
    assert losses[0] == losses[1]  # bit for bit


def _without_clocks(workdir):
    timed = ("images_per_s", "images_per_s_per_device", "model_flops_utilisation")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines(workdir)]


@pytest.mark.parametrize("told_at", [4, 6, 8])
def test_a_stop_at_an_evaluation_is_obeyed_and_the_evaluation_made_up_for(
    finished, picture_folder, tmp_path, sigterm_at, monkeypatch, told_at
):
    """Evaluations are at 6 and 8. Line 4 is written as step 6 is done, so that the stop and the
    evaluation meet there; lines 6 and 8 are written just before the evaluation itself."""
    config = config_for(picture_folder, **{"checkpoint.every_steps": 100})
    sigterm_at(told_at)
    assert loop.run(config, str(tmp_path)) == 75
    monkeypatch.undo()
    at = max(told_at, 6)
    assert [m["step"] for m in lines(tmp_path) if m["split"] == "validation"] == [6, 8][: at // 8]
    assert saved.load(tmp_path / "checkpoints" / str(at)).calibration is None
    assert loop.run(config, str(tmp_path)) == 0
    assert _without_clocks(tmp_path) == _without_clocks(finished)
    made_up = saved.load(tmp_path / "checkpoints" / str(at))
    expected = saved.load(finished / "checkpoints" / str(at))
    assert made_up.calibration == expected.calibration
    assert made_up.meta["metrics"] == expected.meta["metrics"]
    assert not made_up.meta["evaluation_due"]
    assert saved.load(tmp_path).step == saved.load(finished).step


def test_a_stop_in_the_middle_of_an_evaluation_does_not_wait_for_its_end(
    picture_folder, tmp_path, monkeypatch
):
    """A real signal, as the first picture of Validation or of Test is read."""
    config = config_for(picture_folder, **{"train.steps": 6})
    for split in ("Validation", "Test"):
        read, told = FileSource.read, []

        def read_and_tell(self, i, split=split, read=read, told=told):
            if self.ids[i].startswith(f"Dataset/{split}") or self.ids[i].startswith(split):
                told.append(i)
                if len(told) == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
            return read(self, i)

        monkeypatch.setattr(FileSource, "read", read_and_tell)
        assert loop.run(config, str(tmp_path)) == 75
        monkeypatch.setattr(FileSource, "read", read)
        assert [m["split"] for m in lines(tmp_path) if m["split"] == split.lower()] == []
    assert loop.run(config, str(tmp_path)) == 0
    assert [m["split"] for m in lines(tmp_path)[-2:]] == ["validation", "test"]


def test_a_power_cut_in_the_middle_of_a_line_is_survived(
    finished, picture_folder, tmp_path, capsys
):
    workdir = shutil.copytree(finished, tmp_path / "run")
    for name in ("metrics.jsonl", "digests.jsonl"):
        with open(workdir / name, "a") as file:
            file.write('{"step": 8, "sp')
    assert loop.run(config_for(picture_folder), str(workdir)) == 0
    assert lines(workdir) == lines(finished)
    assert lines(workdir, "digests.jsonl") == lines(finished, "digests.jsonl")


def test_another_seed_in_the_middle_of_a_run_is_said(finished, picture_folder, tmp_path, capsys):
    workdir = shutil.copytree(finished, tmp_path / "run")
    loop.run(config_for(picture_folder, seed=1), str(workdir))
    assert "warning: config.seed=1 (was 0): from here on" in capsys.readouterr().out


def test_another_crop_in_the_middle_of_a_run_is_said_and_other_threads_are_not(
    finished, picture_folder, tmp_path, capsys
):
    workdir = shutil.copytree(finished, tmp_path / "run")
    changed = {"data.crop_pct": 1.0, "data.threads": 1}
    loop.run(config_for(picture_folder, **changed), str(workdir))
    warning = next(line for line in capsys.readouterr().out.splitlines() if "warning" in line)
    assert "config.data.crop_pct=1.0 (was 0.875)" in warning
    assert "threads" not in warning


def test_a_finished_run_is_said_to_be_so(finished, picture_folder, tmp_path, capsys):
    workdir = shutil.copytree(finished, tmp_path / "run")
    assert loop.run(config_for(picture_folder), str(workdir)) == 0
    assert "going on from step 8" in capsys.readouterr().out
    assert lines(workdir) == lines(finished)


def test_another_model_in_the_workdir_is_refused(finished, picture_folder):
    config = config_for(picture_folder, **{"gabor.mode": "concat"})
    with pytest.raises(UserError, match=r"gabor\.mode='concat', but the run in .* has 'none'"):
        loop.run(config, str(finished))


def test_init_from_starts_with_the_weights_of_another_run(
    finished, picture_folder, tmp_path, capsys
):
    still = {"model.init_from": str(finished), "train.learning_rate": 0.0, "train.steps": 1}
    assert loop.run(config_for(picture_folder, **still), str(tmp_path)) == 0
    assert f"starting from the weights of {finished}" in capsys.readouterr().out
    source = saved.load(finished).weights["params"]
    started = saved.load(tmp_path, raw=True).weights["params"]
    jax.tree.map(np.testing.assert_array_equal, started, source)


def test_a_batch_must_divide_by_the_devices(picture_folder, tmp_path):
    with pytest.raises(
        UserError, match=r"batch_size=10 does not divide by the 4 devices: 12 would"
    ):
        loop.run(config_for(picture_folder, **{"train.batch_size": 10}), str(tmp_path))


def test_a_damaged_picture_is_replaced_and_named(picture_folder, tmp_path):
    folder = shutil.copytree(picture_folder, tmp_path / "data")
    (folder / "Train" / "Fake" / "3.png").write_bytes(b"not a picture")
    assert loop.run(config_for(folder), str(tmp_path / "run")) == 0
    (line,) = (tmp_path / "run" / "bad_images.txt").read_text().splitlines()
    assert line.startswith("Train/Fake/3.png\t")


def test_a_mixture_is_validated_by_set(picture_folder, tmp_path, capsys):
    fakes = tmp_path / "fakes"
    for split in ("Train", "Validation"):
        shutil.copytree(picture_folder / split / "Fake", fakes / split / "Fake")
    config = config_for(f"{picture_folder},{fakes}")
    assert loop.run(config, str(tmp_path / "run")) == 0
    validation = [m for m in lines(tmp_path / "run") if m["split"] == "validation"]
    for line in validation:
        aucs = [values["auc"] for values in line["sets"].values()]
        assert list(line["sets"]) == [picture_folder.name, "fakes"]
        assert line["auc"] == pytest.approx(sum(aucs) / 2)
    # The same fakes against the same real pictures.
    assert aucs[0] == pytest.approx(aucs[1])
    assert f"AUC by set: {picture_folder.name} {aucs[0]:.3f}, fakes" in capsys.readouterr().out


def test_a_run_without_validation_says_what_it_will_lack(picture_folder, tmp_path, capsys):
    folder = shutil.copytree(picture_folder, tmp_path / "data")
    shutil.rmtree(folder / "Validation")
    assert loop.run(config_for(folder), str(tmp_path / "run")) == 0
    assert "no Validation folder, so there will be no" in capsys.readouterr().out


def test_five_damaged_pictures_of_a_small_set_are_replaced(picture_folder, tmp_path):
    folder = shutil.copytree(picture_folder, tmp_path / "data")
    for i in range(5):
        (folder / "Train" / "Fake" / f"{i}.png").write_bytes(b"not a picture")
    assert loop.run(config_for(folder), str(tmp_path / "run")) == 0
    assert len((tmp_path / "run" / "bad_images.txt").read_text().splitlines()) == 5


def test_too_many_damaged_pictures_stop_the_run(picture_folder, tmp_path):
    folder = shutil.copytree(picture_folder, tmp_path / "data")
    for i in range(6):
        (folder / "Train" / "Fake" / f"{i}.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"more than 1% of the training set.*bad_images\.txt"):
        loop.run(config_for(folder), str(tmp_path / "run"))
    # Repaired, the same command goes on.
    shutil.copytree(picture_folder, folder, dirs_exist_ok=True)
    assert loop.run(config_for(folder), str(tmp_path / "run")) == 0


def test_damaged_pictures_of_validation_are_named_and_stop_nothing(picture_folder, tmp_path):
    folder = shutil.copytree(picture_folder, tmp_path / "data")
    for i in range(3):
        (folder / "Validation" / "Fake" / f"{i}.png").write_bytes(b"not a picture")
    assert loop.run(config_for(folder), str(tmp_path / "run")) == 0
    named = (tmp_path / "run" / "bad_images.txt").read_text().splitlines()
    assert len(named) == 3 and all(line.startswith("Validation/Fake/") for line in named)


def test_a_diverging_run_stops_with_its_last_checkpoint_intact(picture_folder, tmp_path):
    config = config_for(
        picture_folder,
        **{
            "train.learning_rate": 1e30,
            "train.warmup_epochs": 0.0,
            "train.clip_norm": 1e30,
            "train.max_bad_steps": 2,
            "train.steps": 40,
        },
    )
    with pytest.raises(UserError, match=r"not finite in [2-4] steps in a row"):
        loop.run(config, str(tmp_path))
    assert saved.load(tmp_path).step > 0
