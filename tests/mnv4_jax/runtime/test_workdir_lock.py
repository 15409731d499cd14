import contextlib
import os
import signal
import socket
import subprocess
import sys

import pytest
from etils import epath

from input_pipeline.cli import UserError
from mnv4_jax.runtime import workdir_lock
from tests.processes import ROOT

_HOLDER = """
import sys
from etils import epath
from mnv4_jax.runtime import workdir_lock
with workdir_lock.hold(epath.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(workdir):
    """Another process that holds `workdir` until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(workdir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


def test_a_held_workdir_says_who_has_it(tmp_path):
    with (
        holder(tmp_path) as process,
        pytest.raises(UserError) as error,
        workdir_lock.hold(epath.Path(tmp_path)),
    ):
        pass
    message = str(error.value)
    assert f"process {process.pid} on {socket.gethostname()} since 20" in message
    assert str(tmp_path) in message


def test_a_killed_holder_leaves_no_lock(tmp_path):
    with holder(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        with workdir_lock.hold(epath.Path(tmp_path)):
            pass


def test_a_workdir_can_be_held_again_after_a_run(tmp_path):
    for _ in range(2):
        with workdir_lock.hold(epath.Path(tmp_path)):
            pass


def test_a_second_run_leaves_everything_as_it_is(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 10}\n')
    with holder(tmp_path) as process:
        command = [sys.executable, "-m", "mnv4_jax.main", "--config=configs/small.py"]
        second = subprocess.run(
            [*command, f"--workdir={tmp_path}", f"--config.data.dir={tmp_path}/none"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert second.returncode == 2
    assert f"is in use by process {process.pid}" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    assert metrics.read_text() == '{"step": 10}\n'
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.jsonl",
        "logs",
        ".lock",
        ".lock.json",
    }
