import functools
import json
import shutil

import jax
import numpy as np
import pytest

from input_pipeline.cli import UserError
from mnv4_jax import checkpoint, sharding, step
from tests.tiny import four_block_config


def _fresh(optimizer, weights):
    return step.unpacked(step.init_state(weights, optimizer), weights)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with checkpoints 10 (AUC 0.9), 20 (0.6), 30 and 40 (no metrics), and the states."""
    workdir = tmp_path_factory.mktemp("run")
    config = four_block_config()
    optimizer = step.make_optimizer(config, 1e-3)
    state = jax.jit(functools.partial(_fresh, optimizer))(step.fresh_weights(config))
    checkpointer = checkpoint.Checkpointer(workdir, keep=2)
    for at, auc in ((10, 0.9), (20, 0.6), (30, None), (40, None)):
        state = jax.tree.map(lambda x: x + 1, state)
        metrics = {"auc": auc, "loss": 0.5} if auc else None
        checkpointer.save(at, state, checkpoint.make_meta(config, metrics=metrics), metrics)
        checkpointer.wait()
    checkpointer.close()
    return workdir, jax.device_get(state)


@pytest.fixture
def workdir(saved, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved[0], tmp_path / "run")


def like():
    config = four_block_config()
    optimizer = step.make_optimizer(config, 1e-3)
    state = jax.eval_shape(functools.partial(_fresh, optimizer), step.fresh_weights(config))
    everywhere = sharding.replicated(sharding.make_mesh())
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


def test_a_damaged_newest_is_said_deleted_and_saved_again(workdir, capsys):
    damage(workdir / "checkpoints" / "40")
    checkpointer = checkpoint.Checkpointer(workdir, keep=2)
    state, meta = checkpointer.restore(like())
    assert "checkpoint 40" in capsys.readouterr().out
    assert steps(workdir) == [10, 30]
    checkpointer.save(40, state, meta)
    checkpointer.wait()
    assert 40 in steps(workdir)


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
    assert checkpoint.load(workdir).step == 40


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
    assert checkpoint.load(saved[0] / part).step == expected


def test_load_takes_the_average_unless_raw(saved):
    averaged, raw = checkpoint.load(saved[0]), checkpoint.load(saved[0], raw=True)
    # The fixture's EMA and weights are equal: tell them apart by the folder that is read.
    jax.tree.map(np.testing.assert_array_equal, averaged.weights, raw.weights)
    shutil.rmtree(saved[0] / "checkpoints" / "10" / "weights")
    jax.tree.map(
        np.testing.assert_array_equal, checkpoint.load(saved[0] / "checkpoints" / "10").weights,
        averaged.weights,
    )  # fmt: skip


def test_calibration_is_kept_in_the_checkpoint(workdir):
    folder = workdir / "checkpoints" / "30"
    assert checkpoint.load(folder).calibration is None
    checkpoint.save_calibration(folder, {"temperature": 1.5})
    assert checkpoint.load(folder).calibration == {"temperature": 1.5}
    assert checkpoint.load(folder).config.model.name == four_block_config().model.name


def test_nan_auc_does_not_evict_the_best(workdir):
    checkpointer = checkpoint.Checkpointer(workdir, keep=1)
    state, meta = checkpointer.restore(like())
    checkpointer.save(50, state, meta, {"auc": float("nan")})
    checkpointer.wait()
    assert steps(workdir) == [10, 50]


def test_weights_from_elsewhere_can_be_loaded(tmp_path, saved):
    loaded = checkpoint.load(saved[0] / "checkpoints" / "30")
    checkpoint.write_initial(tmp_path, loaded.config, loaded.weights)
    again = checkpoint.load(tmp_path)
    assert again.step == 0
    jax.tree.map(np.testing.assert_array_equal, loaded.weights, again.weights)


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_no_checkpoint_is_one_line(tmp_path, what):
    path = tmp_path / what
    if what == "empty":
        path.mkdir()
    with pytest.raises(UserError, match=str(path)):
        checkpoint.load(path)


def test_json_turns_back_into_the_same_config():
    config = four_block_config()
    again = checkpoint.as_config(json.loads(config.to_json_best_effort()))
    assert again.to_dict() == config.to_dict()
