import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Stands for `python`: asked for the training it plays part_<process_id>, a piece of Python;
# anything else goes to the real one.
_PYTHON = """#!/bin/sh
case "$1 $2" in
  "-m mnv4_jax.main") exec {python} {folder}/play.py "$@" ;;
  *) exec {python} "$@" ;;
esac
"""
_PLAY = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(__file__).parent
flags = dict(arg.removeprefix("--").split("=", 1) for arg in sys.argv if "=" in arg)
me = int(flags["process_id"])
with open(folder / "starts", "a") as starts:
    print(me, os.getpid(), flags["num_processes"], flags["coordinator"],
          os.environ["JAX_NUM_CPU_DEVICES"], flags["config"], flags["config.seed"], file=starts)
print("process", me, "speaks", flush=True)
run = (folder / "starts").read_text().count(chr(10) + f"{me} ") + 1
SAVED = lambda *_: sys.exit(75)
exec((folder / f"part_{me}").read_text())
"""
WAIT = "time.sleep(60)"
SAVE_ON_TERM = f"signal.signal(signal.SIGTERM, SAVED); (folder / f'ready_{{me}}').touch(); {WAIT}"


@pytest.fixture
def launch(tmp_path):
    """launch(parts, *options) → the running launcher, whose processes play `parts`."""
    python = tmp_path / "python"
    python.write_text(_PYTHON.format(python=sys.executable, folder=tmp_path))
    python.chmod(0o755)
    (tmp_path / "play.py").write_text(_PLAY)

    def start(parts: list[str], *options: str) -> subprocess.Popen:
        for i, part in enumerate(parts):
            (tmp_path / f"part_{i}").write_text(part)
        command = ["launch/local.sh", *options, str(len(parts)), "configs/small.py"]
        return subprocess.Popen(
            [*command, f"--workdir={tmp_path / 'run'}", "--config.seed=7"],
            cwd=ROOT,
            env={**os.environ, "PYTHON": str(python), "GRACE_S": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # As a terminal starts it. Tests run in the background inherit an ignored SIGINT, which
            # bash could not trap.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


def starts(folder: pathlib.Path) -> list[list[str]]:
    path = folder / "starts"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def assert_no_orphans(folder: pathlib.Path) -> None:
    pids = [int(start[1]) for start in starts(folder)]
    assert pids
    wait_until(lambda: not any(map(alive, pids)), 5)


def test_every_process_gets_its_number_one_address_and_a_log_of_its_own(launch, tmp_path):
    running = launch(["pass", "pass", "pass"], "--devices=2")
    out, err = running.communicate(timeout=30)
    assert running.returncode == 0, err
    assert sorted(start[0] for start in starts(tmp_path)) == ["0", "1", "2"]
    assert len({start[3] for start in starts(tmp_path)}) == 1
    assert {tuple(start[4:]) for start in starts(tmp_path)} == {("2", "configs/small.py", "7")}
    assert out == "process 0 speaks\n"
    for i in range(3):
        log = tmp_path / "run/logs" / f"local_{i}.out"
        assert log.read_text() == f"process {i} speaks\n"


def test_preempted_processes_are_started_again_on_a_new_port_as_often_as_allowed(launch, tmp_path):
    part = "sys.exit(75 if run < 3 else 0)"
    running = launch([part, part], "--restart=5")
    _, err = running.communicate(timeout=30)
    assert running.returncode == 0
    assert err.count("preempted: starting again") == 2
    assert len(starts(tmp_path)) == 6


def test_preemption_is_passed_on_when_no_restart_is_left(launch, tmp_path):
    part = "sys.exit(75)"
    running = launch([part, part], "--restart=1")
    running.communicate(timeout=30)
    assert running.returncode == 75
    assert len(starts(tmp_path)) == 4


def test_a_process_that_fails_takes_the_others_along_and_its_status_is_passed_on(launch, tmp_path):
    running = launch([WAIT, "time.sleep(0.5); sys.exit(3)", WAIT], "--restart=5")
    running.communicate(timeout=30)
    assert running.returncode == 3
    assert len(starts(tmp_path)) == 3
    assert_no_orphans(tmp_path)


def test_a_worker_that_is_killed_is_no_preemption_and_deaf_ones_are_ended(launch, tmp_path):
    deaf = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAIT}"
    running = launch([deaf, "time.sleep(0.5); os.kill(os.getpid(), 9)"], "--restart=5")
    running.communicate(timeout=30)
    assert running.returncode == 128 + 9
    assert_no_orphans(tmp_path)


def test_ctrl_c_reaches_the_processes_and_nothing_stays_behind(launch, tmp_path):
    part = (
        "(folder / f'ready_{me}').touch()\n"
        f"try: {WAIT}\n"
        "except KeyboardInterrupt: (folder / f'heard_{me}').touch(); sys.exit(130)"
    )
    running = launch([part, part], "--restart=5")
    wait_until(lambda: (tmp_path / "ready_0").exists() and (tmp_path / "ready_1").exists())
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    assert running.returncode == 130
    assert (tmp_path / "heard_0").exists()
    assert (tmp_path / "heard_1").exists()
    assert_no_orphans(tmp_path)


def test_sigterm_lets_all_processes_save_and_leaves_with_their_status(launch, tmp_path):
    running = launch([SAVE_ON_TERM, SAVE_ON_TERM], "--restart=5")
    wait_until(lambda: (tmp_path / "ready_0").exists() and (tmp_path / "ready_1").exists())
    running.terminate()
    running.communicate(timeout=30)
    assert running.returncode == 75
    assert len(starts(tmp_path)) == 2
    assert_no_orphans(tmp_path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's part is Linux only")
def test_a_launcher_that_is_killed_outright_leaves_no_orphans(launch, tmp_path):
    running = launch([SAVE_ON_TERM, SAVE_ON_TERM])
    wait_until(lambda: (tmp_path / "ready_0").exists() and (tmp_path / "ready_1").exists())
    running.kill()
    running.communicate(timeout=30)
    assert_no_orphans(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["2"],
        ["0", "configs/small.py", "--workdir=x"],
        ["two", "configs/small.py", "--workdir=x"],
        ["2", "configs/small.py"],
        ["--restart=x", "2", "configs/small.py", "--workdir=x"],
        ["--wrong", "2", "configs/small.py", "--workdir=x"],
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments):
    done = subprocess.run(["launch/local.sh", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: ")
