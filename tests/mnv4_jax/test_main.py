"""`python -m mnv4_jax.main` as a process: what it says and leaves behind."""

import os
import subprocess
import sys

import pytest

from tests.processes import read_lines


def test_the_command_line_reports_bad_input_in_one_line(picture_folder, tmp_path, request):
    """As a user meets it: a real process, exit status 2, no traceback."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mnv4_jax.main", "--config=configs/small.py"),
            *(f"--workdir={tmp_path}", f"--config.data.dir={tmp_path / 'nowhere'}"),
        ],
        cwd=request.config.rootpath,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert "nowhere" in line


def test_a_workdir_that_is_a_file_is_one_line(tmp_path, request):
    file = tmp_path / "file"
    file.touch()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mnv4_jax.main", "--config=configs/small.py"),
            f"--workdir={file}",
        ],
        cwd=request.config.rootpath,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: Not a directory") and str(file) in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(picture_folder, tmp_path, request):
    """A real one: a file system in memory that only these processes see, with room for two saves.

    Saves of one state differ by half in size (420 to 660 KB here), with how its writers fell.
    """
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=1100k none {tmp_path}"
    if subprocess.run([*namespace, mount], capture_output=True, timeout=60).returncode:
        pytest.skip("no file system can be mounted here: unshare is missing or not allowed")
    train_it = [
        *(sys.executable, "-m", "mnv4_jax.main", "--config=tests/small_net.py"),
        *(f"--workdir={tmp_path / 'run'}", f"--config.data.dir={picture_folder}"),
        *("--config.train.steps=40", "--config.checkpoint.every_steps=2"),
    ]
    load_it = (
        "import sys; from tests import small_net; from mnv4_jax.detector import saved;"
        " print('loaded', saved.load(sys.argv[1]).step)"
    )
    script = f'{mount} && {{ "$@"; echo status $?; "$0" -c "{load_it}" {tmp_path / "run"}; }}'
    done = subprocess.run(
        [*namespace, script, *(sys.executable, *train_it)],
        cwd=request.config.rootpath,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "status 2\nloaded " in done.stdout, done.stdout + done.stderr
    # Threads of TensorStore that die of it may have had their say before.
    assert "error: no space left to save a checkpoint in" in done.stderr
    assert "the last checkpoint is intact\n" in done.stderr


@pytest.mark.slow
def test_the_shipped_experiment_learns_the_demo_set(tmp_path, request):
    """The README's first command: over 0.95 AUC on pictures of people it has not seen."""
    subprocess.run(
        [
            *(sys.executable, "-m", "mnv4_jax.main", "--config=configs/small.py"),
            f"--workdir={tmp_path}",
        ],
        cwd=request.config.rootpath,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},  # as a laptop has it
        check=True,
        timeout=850,
    )
    (test,) = [m for m in read_lines(tmp_path / "metrics.jsonl") if m["split"] == "test"]
    assert test["n"] == 200
    assert test["auc"] > 0.95
