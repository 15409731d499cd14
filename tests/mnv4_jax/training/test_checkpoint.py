import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from input_pipeline.cli import UserError
from mnv4_jax.detector import saved as saved_lib
from mnv4_jax.models import weights as weights_lib
from mnv4_jax.runtime.mesh import make_mesh, replicated
from mnv4_jax.training import checkpoint
from mnv4_jax.training.step import Program
from tests.processes import ROOT
from tests.tiny import four_block_config


def _fresh(weights):
    program = Program(four_block_config(), make_mesh(), 1e-3)
    return program.packing.unpack_state(program.init(weights))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with checkpoints 10 (AUC 0.9), 20 (0.6), 30 and 40 (no metrics), and the states."""
    workdir = tmp_path_factory.mktemp("run")
    config = four_block_config()
    state = jax.jit(_fresh)(weights_lib.fresh_weights(config))
    state = dataclasses.replace(state, ema=jax.tree.map(lambda x: x + 100, state.ema))
    checkpointer = checkpoint.Checkpointer(workdir, keep=2)
    for at, auc in ((10, 0.9), (20, 0.6), (30, None), (40, None)):
        state = jax.tree.map(lambda x: x + 1, state)
        metrics = {"auc": auc, "loss": 0.5} if auc else None
        checkpointer.save(at, state, saved_lib.make_meta(config, metrics=metrics), metrics)
        checkpointer.wait()
    checkpointer.close()
    return workdir, jax.device_get(state)


@pytest.fixture
def workdir(saved, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved[0], tmp_path / "run")


def like():
    state = jax.eval_shape(_fresh, weights_lib.fresh_weights(four_block_config()))
    everywhere = replicated(make_mesh())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state
    )


def damage(step_folder):
    """Cuts every file of the weights in half, as a lost page cache would."""
    for file in (step_folder / "weights").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())


def test_the_newest_and_the_best_are_kept(saved):
    assert steps(saved[0]) == [10, 30, 40]


def test_restore_gives_back_the_same_state_on_every_device(saved):
    state, meta = checkpoint.Checkpointer(saved[0], keep=2).restore(like())
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), saved[1])
    assert meta["labels"] == ["fake", "real"]
    assert len(jax.tree.leaves(state)[0].sharding.device_set) == len(jax.devices())


def test_a_damaged_newest_is_said_moved_aside_and_saved_again(workdir, capsys):
    damage(workdir / "checkpoints" / "40")
    checkpointer = checkpoint.Checkpointer(workdir, keep=2)
    state, meta = checkpointer.restore(like())
    assert "checkpoint 40" in capsys.readouterr().out
    assert steps(workdir) == [10, 30]
    assert (workdir / "checkpoints" / "damaged" / "40" / "meta" / "metadata").exists()
    checkpointer.save(40, state, meta)
    checkpointer.wait()
    assert 40 in steps(workdir)


@pytest.mark.parametrize("lost", ["weights/_METADATA", "ema/manifest.ocdbt", "ema/**/d/*"])
@pytest.mark.parametrize("how", ["gone", "empty"])
def test_a_file_that_is_gone_or_cut_is_damage(workdir, lost, how):
    for file in (workdir / "checkpoints" / "40").glob(lost):
        file.unlink() if how == "gone" else file.write_bytes(b"")
    state, _ = checkpoint.Checkpointer(workdir, keep=2).restore(like())
    assert int(state.step) == 3
    assert steps(workdir) == [10, 30]
    assert (workdir / "checkpoints" / "damaged" / "40").is_dir()


_ASK = """
import os, sys
from input_pipeline.cli import UserError
from mnv4_jax.detector import saved
from mnv4_jax.training import checkpoint
from tests.mnv4_jax.training.test_checkpoint import like
checkpointer = checkpoint.Checkpointer(sys.argv[1], keep=2)
wanted = like()
os.setuid(65534)
newest = sys.argv[1] + "/checkpoints/40"
for ask in (lambda: checkpointer.restore(wanted), lambda: saved.load(newest)):
    try:
        ask()
    except UserError as error:
        print("refused:", error)
os._exit(0)  # Orbax's threads cannot clean up as nobody
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("what", ["files", "folder"])
def test_what_may_not_be_read_is_not_damage(workdir, what):
    """As another user, since permissions do not bind root."""
    for path in (*workdir.resolve().parents, workdir, *workdir.rglob("*")):
        if path.owner() == "root" and path.stat().st_mode & 0o55 != 0o55:
            path.chmod(path.stat().st_mode | 0o55)
    for item in ("weights", "ema"):
        folder = workdir / "checkpoints" / "40" / item
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in [folder] if what == "folder" else files:
            path.chmod(0)
    asked = subprocess.run(
        [sys.executable, "-c", _ASK, str(workdir)],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    lines = [line for line in asked.stdout.splitlines() if line.startswith("refused:")]
    assert len(lines) == 2, asked.stdout + asked.stderr
    assert all("cannot read checkpoint" in line and "Permission denied" in line for line in lines)
    assert steps(workdir) == [10, 30, 40]


@pytest.mark.parametrize("item", ["weights", "ema", "optimizer"])
def test_other_values_than_were_saved_are_damage(workdir, capsys, item):
    """TensorStore reads them without a word, as it does flipped bits."""
    folder = workdir / "checkpoints"
    shutil.rmtree(folder / "40" / item)
    shutil.copytree(folder / "30" / item, folder / "40" / item)
    checkpointer = checkpoint.Checkpointer(workdir, keep=2)
    state, _ = checkpointer.restore(like())
    assert "checkpoint 40" in capsys.readouterr().out
    assert steps(workdir) == [10, 30]
    assert int(state.step) == 3


def test_metrics_that_cannot_be_read_cost_only_the_metrics(workdir):
    (workdir / "checkpoints" / "10" / "metrics" / "metrics").write_text('{"auc": 0.')
    checkpointer = checkpoint.Checkpointer(workdir, keep=2)
    state, _ = checkpointer.restore(like())
    assert int(state.step) == 4
    assert saved_lib.load(workdir).step == 40


def test_no_intact_checkpoint_is_an_error_and_nothing_is_deleted(workdir):
    for at in steps(workdir):
        damage(workdir / "checkpoints" / str(at))
    with pytest.raises(UserError, match="no intact checkpoint"):
        checkpoint.Checkpointer(workdir, keep=2).restore(like())
    assert steps(workdir) == [10, 30, 40]


def test_nothing_to_restore_in_a_new_workdir(tmp_path):
    assert checkpoint.Checkpointer(tmp_path, keep=2).restore(like()) is None


@pytest.mark.parametrize(
    ("part", "expected"), [("", 10), ("checkpoints", 10), ("checkpoints/30", 30)]
)
def test_a_path_means_the_best_or_the_step_it_names(saved, part, expected):
    assert saved_lib.load(saved[0] / part).step == expected


def test_load_takes_the_average_unless_raw(saved):
    folder, state = saved[0] / "checkpoints" / "40", saved[1]
    averaged, raw = saved_lib.load(folder), saved_lib.load(folder, raw=True)
    jax.tree.map(np.testing.assert_array_equal, averaged.weights, state.ema)
    jax.tree.map(np.testing.assert_array_equal, raw.weights, state.weights)
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).min()), averaged.weights, raw.weights)
    assert min(jax.tree.leaves(apart)) > 50


@pytest.mark.parametrize(("item", "raw"), [("ema", False), ("weights", True)])
def test_a_detector_with_other_values_than_were_saved_is_not_loaded(workdir, capsys, item, raw):
    folder = workdir / "checkpoints"
    shutil.rmtree(folder / "40" / item)
    shutil.copytree(folder / "30" / item, folder / "40" / item)
    with pytest.raises(UserError, match="no intact checkpoint"):
        saved_lib.load(folder / "40", raw=raw)
    assert "are not those that were saved" in capsys.readouterr().err
    assert saved_lib.load(folder / "40", raw=not raw).step == 40  # the other item is whole


def test_calibration_is_kept_in_the_checkpoint(workdir):
    folder = workdir / "checkpoints" / "30"
    assert saved_lib.load(folder).calibration is None
    saved_lib.save_calibration(folder, {"temperature": 1.5})
    assert saved_lib.load(folder).calibration == {"temperature": 1.5}
    assert saved_lib.load(folder).config.model.name == four_block_config().model.name


def test_nan_auc_does_not_evict_the_best(workdir):
    checkpointer = checkpoint.Checkpointer(workdir, keep=1)
    state, meta = checkpointer.restore(like())
    checkpointer.save(50, state, meta, {"auc": float("nan")})
    checkpointer.wait()
    assert steps(workdir) == [10, 50]


def test_weights_from_elsewhere_can_be_loaded(tmp_path, saved):
    loaded = saved_lib.load(saved[0] / "checkpoints" / "30")
    saved_lib.write_initial(tmp_path, loaded.config, loaded.weights)
    again = saved_lib.load(tmp_path)
    assert again.step == 0
    jax.tree.map(np.testing.assert_array_equal, loaded.weights, again.weights)


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_no_checkpoint_is_one_line(tmp_path, what):
    path = tmp_path / what
    if what == "empty":
        path.mkdir()
    with pytest.raises(UserError, match=str(path)):
        saved_lib.load(path)


def test_json_turns_back_into_the_same_config():
    config = four_block_config()
    again = saved_lib.as_config(json.loads(config.to_json_best_effort()))
    assert again.to_dict() == config.to_dict()


def test_a_checkpoint_of_the_old_form_is_refused(workdir):
    file = workdir / "checkpoints" / "40" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    assert meta.pop("form") == 2
    file.write_text(json.dumps(meta))
    checkpointer = checkpoint.Checkpointer(workdir, keep=2)
    with pytest.raises(UserError, match=rf"{file.parent.parent} has the form of another version"):
        checkpointer.latest_meta()
    checkpointer.close()
