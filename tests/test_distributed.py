"""Several processes are one run: real processes over loopback, killed and resumed."""

import shutil
import signal

import numpy as np
import pytest

from tests.processes import Run, checkpoint_steps, digests, losses, read_lines

STEPS = 14
FIELDS = {"train.steps": STEPS, "train.eval_every_steps": 7, "checkpoint.every_steps": 4}


@pytest.fixture(scope="session")
def uneven_folder(picture_folder, tmp_path_factory):
    """`picture_folder` with 13 validation pictures: no two processes share them evenly."""
    folder = shutil.copytree(picture_folder, tmp_path_factory.mktemp("uneven") / "Dataset")
    for i in range(3):
        (folder / "Validation" / "Fake" / f"{i}.png").unlink()
    return folder


@pytest.fixture(scope="session")
def start(uneven_folder, compiled):
    """Starts a run: start(workdir, processes=…, devices=…, fields=…, environment=…)."""

    def start(workdir, *, fields=FIELDS, **kwargs):
        return Run(workdir, uneven_folder, compiled, overrides=fields, **kwargs)

    return start


@pytest.fixture(scope="session")
def uninterrupted(start, tmp_path_factory):
    """The workdir of a run on 1 process of 4 devices, which nothing disturbed."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    with start(workdir) as run:
        run.wait()
    return workdir


def stop_at(run, step, process=0):
    """SIGTERM to one process as soon as `step` is logged; the step at which all had stopped."""
    run.wait_for_step(step)
    run.send(signal.SIGTERM, process)
    run.wait(expected=75)
    stopped = checkpoint_steps(run.workdir)[-1]
    assert stopped >= run.step()
    assert f"stopped at step {stopped}, all saved" in run.output()
    return stopped


def test_two_processes_of_two_devices_equal_one_of_four(start, uninterrupted, tmp_path):
    with start(tmp_path, processes=2, devices=2) as run:
        run.wait()
    assert digests(tmp_path) == digests(uninterrupted)
    assert list(digests(tmp_path)) == list(range(1, STEPS + 1))
    one, two = losses(uninterrupted), losses(tmp_path)
    assert two.keys() == one.keys()  # written by process 0 alone: no line twice
    assert two[1] == pytest.approx(one[1], rel=1e-6)
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=0.05)  # rounding drifts
    assert checkpoint_steps(tmp_path) == checkpoint_steps(uninterrupted)
    for i in range(2):
        assert (tmp_path / "logs" / f"process_{i}.log").exists()
    for workdir in (tmp_path, uninterrupted):
        lines = read_lines(workdir / "metrics.jsonl")
        counts = [(m["split"], m["n"]) for m in lines if m["split"] != "train"]
        assert counts == [("validation", 13), ("validation", 13), ("test", 16)]


@pytest.mark.slow
def test_preempted_twice_on_two_shapes_sees_the_same_batches(start, uninterrupted, tmp_path):
    with start(tmp_path) as run:
        first = stop_at(run, 2)
    with start(tmp_path, processes=2, devices=2) as run:
        second = stop_at(run, first + 2, process=1)
    assert first < second < STEPS
    with start(tmp_path) as run:
        run.wait()
    assert digests(tmp_path) == digests(uninterrupted)
    expected, seen = losses(uninterrupted), losses(tmp_path)
    for step in range(1, first + 1):
        assert seen[step] == expected[step]  # same shape: bit for bit
    assert seen[first + 1] == pytest.approx(expected[first + 1], rel=1e-6)  # another shape


@pytest.mark.slow
def test_a_state_split_over_two_processes_is_gone_on_with_whole_in_one(
    start, uninterrupted, tmp_path
):
    split = FIELDS | {"train.shard_state": True}
    with start(tmp_path, fields=split, processes=2, devices=2) as run:
        stopped = stop_at(run, 3, process=1)
    with start(tmp_path) as run:
        run.wait()
    assert digests(tmp_path) == digests(uninterrupted)
    expected, seen = losses(uninterrupted), losses(tmp_path)
    assert seen[1] == pytest.approx(expected[1], rel=1e-6)
    assert seen[stopped + 1] == pytest.approx(expected[stopped + 1], rel=1e-3)  # rounding drifts


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_whose_peer_is_killed_leaves_with_the_status_for_again(start, tmp_path, victim):
    with start(tmp_path, fields=FIELDS | {"train.steps": 500}, processes=2, devices=2) as run:
        run.wait_for_step(3)
        run.send(signal.SIGKILL, victim)
        statuses = run.wait(expected=None)
        output = run.output()
    assert statuses[victim] == -signal.SIGKILL
    # Where JAX's own watch is quicker than the failed computation, it aborts the process.
    assert statuses[1 - victim] in (75, -signal.SIGABRT)
    if statuses[1 - victim] == 75:
        assert "error: lost its peers: " in output
        assert "run the same command to go on" in output


@pytest.mark.slow
def test_several_processes_stop_in_the_middle_of_an_evaluation(
    uneven_folder, compiled, uninterrupted, tmp_path
):
    """Validation is made long enough that SIGTERM, sent as it begins, comes before its end."""
    data = shutil.copytree(uneven_folder, tmp_path / "Dataset")
    for folder in (data / "Validation").iterdir():
        for file in list(folder.iterdir()):
            for i in range(400):
                (folder / f"{file.stem}_{i}{file.suffix}").hardlink_to(file)
    fields = FIELDS | {"train.steps": 7}
    workdir = tmp_path / "run"
    with Run(workdir, data, compiled, overrides=fields, processes=2, devices=2) as run:
        assert stop_at(run, 7, process=1) == 7
    splits = [line["split"] for line in read_lines(workdir / "metrics.jsonl")]
    assert set(splits) == {"train"}
    with Run(workdir, data, compiled, overrides=fields, processes=2, devices=2) as run:
        run.wait()
    lines = read_lines(workdir / "metrics.jsonl")
    counts = [(m["split"], m["n"]) for m in lines if m["split"] != "train"]
    assert counts == [("validation", 13 * 401), ("test", 16)]
    expected = losses(uninterrupted)
    assert losses(workdir)[1] == pytest.approx(expected[1], rel=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_two_one_and_four_processes_agree_in_float64(start, tmp_path):
    """Rounding apart, the shape does not matter: 20 steps and more to 1e-9."""
    fields = FIELDS | {"train.steps": 32, "train.eval_every_steps": 16, "model.dtype": "float64"}
    settings = {"fields": fields, "environment": {"JAX_ENABLE_X64": "1"}}
    expected, chained = tmp_path / "expected", tmp_path / "chained"
    with start(expected, **settings) as run:
        run.wait()
    stopped = 0
    for processes, devices in ((4, 1), (2, 2), (1, 1)):
        with start(chained, processes=processes, devices=devices, **settings) as run:
            stopped = stop_at(run, stopped + 4, process=processes - 1)
    with start(chained, processes=4, devices=1, **settings) as run:
        run.wait()
    assert stopped < 32
    assert digests(chained) == digests(expected)
    np.testing.assert_allclose(
        list(losses(chained).values()), list(losses(expected).values()), rtol=1e-9
    )
