import pathlib
import signal
import subprocess

import pytest

from tests.launch.stand_in import ROOT, StandIns

SLICE = ("--name=faces", "--zone=us-west4-a")
MAIN = ("--", "--config=configs/kaggle.py", "--workdir=gs://bucket/run with space")
STATE, CREATE, DELETE, SSH = "list", "queued-resources create", "queued-resources delete", " ssh "


@pytest.fixture
def cloud(tmp_path) -> StandIns:
    return StandIns(tmp_path, "gcloud")


def state(*answers: str) -> list[dict]:
    return [{"when": STATE, "say": answer} for answer in answers]


def training(status: int, said: bool = True) -> dict:
    """The run's end as gcloud shows it: 1 for any failure, and worker 0's last line if it came."""
    line = f"step 10\nmnv4_jax exit status: {status}" if said else "step 10"
    return {"when": "tpu_worker.sh run", "say": line, "status": 1 if status else 0}


def launch(cloud: StandIns, *options: str) -> subprocess.CompletedProcess:
    return cloud.run("launch/tpu_vm.sh", *SLICE, *options, *MAIN)


def test_a_run_creates_waits_installs_trains_on_all_workers_and_deletes(cloud):
    cloud.play(*state("", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"), training(0))
    done = launch(cloud, "--spot", "--data=gs://bucket/set")
    assert done.returncode == 0, done.stderr
    assert "step 10" in done.stdout
    calls = [call for call in cloud.calls() if STATE not in call]
    wanted = [CREATE, " scp ", "tar -xzf", "worker.sh install", "worker.sh copy gs://bucket/set"]
    wanted += ["worker.sh run", DELETE]
    assert len(calls) == len(wanted)
    for call, part in zip(calls, wanted, strict=True):
        assert part in call
        assert "--zone=us-west4-a" in call
    assert "--accelerator-type=v5litepod-8" in calls[0]
    assert "--spot" in calls[0]
    assert all("--worker=all" in call for call in calls[1:-1])
    # As the shell at the other end has to read it.
    assert r"--workdir=gs://bucket/run\ with\ space" in calls[-2]


def test_a_slice_that_is_there_is_used(cloud):
    cloud.play(*state("ACTIVE"), training(0))
    assert launch(cloud).returncode == 0
    assert cloud.calls(CREATE) == []


def test_a_preempted_slice_is_replaced_and_the_run_goes_on(cloud):
    lost = training(255, said=False)
    cloud.play(*state("ACTIVE", "SUSPENDING", "SUSPENDED", "", "ACTIVE"), lost, training(0))
    done = launch(cloud)
    assert done.returncode == 0, done.stderr
    order = [call for call in cloud.calls() if any(p in call for p in (CREATE, DELETE, "sh run"))]
    kinds = [next(p for p in (CREATE, DELETE, "sh run") if p in call) for call in order]
    assert kinds == ["sh run", DELETE, CREATE, "sh run", DELETE]
    assert len(cloud.calls("worker.sh install")) == 2


@pytest.mark.parametrize("status", [75, 134, 137])
def test_preemption_and_a_dead_worker_are_tried_again_on_the_same_slice(cloud, status):
    cloud.play(*state("ACTIVE", "ACTIVE"), training(status), training(0))
    assert launch(cloud).returncode == 0
    assert len(cloud.calls("worker.sh run")) == 2
    assert len(cloud.calls(DELETE)) == 1


def test_restarts_are_bounded(cloud):
    cloud.play(*state(*["ACTIVE"] * 9), *[training(75)] * 9)
    done = launch(cloud, "--max_restarts=2")
    assert done.returncode == 75
    assert len(cloud.calls("worker.sh run")) == 3
    assert len(cloud.calls(DELETE)) == 1


def test_a_users_error_ends_the_run_with_its_status_and_deletes_the_slice(cloud):
    cloud.play(*state("ACTIVE"), training(2))
    assert launch(cloud).returncode == 2
    assert len(cloud.calls("worker.sh run")) == 1
    assert len(cloud.calls(DELETE)) == 1


def test_keep_leaves_the_slice_and_says_what_that_means(cloud):
    cloud.play(*state("ACTIVE"), training(0))
    done = launch(cloud, "--keep")
    assert cloud.calls(DELETE) == []
    assert "billed" in done.stderr


def test_a_slice_that_cannot_be_deleted_is_said_loudly(cloud):
    cloud.play(*state("ACTIVE"), training(0), {"when": DELETE, "status": 1})
    assert "could NOT be deleted" in launch(cloud).stderr


def test_a_refused_request_ends_instead_of_asking_forever(cloud):
    cloud.play(*state("", ""), {"when": CREATE, "status": 1})
    assert launch(cloud).returncode == 1
    assert len(cloud.calls(CREATE)) == 1
    cloud.play(*state("", "FAILED", ""))
    done = launch(cloud)
    assert done.returncode == 1
    assert "FAILED" in done.stderr


def test_a_failed_install_is_tried_again_and_nothing_is_trained_before(cloud):
    cloud.play(*state("ACTIVE", "ACTIVE"), {"when": "worker.sh install", "status": 1}, training(0))
    assert launch(cloud).returncode == 0
    assert len(cloud.calls("worker.sh install")) == 2
    assert len(cloud.calls("worker.sh run")) == 1


def test_sigterm_deletes_the_slice(cloud, tmp_path):
    # The slice never comes, so the launcher polls until it is told to stop.
    cloud.play(*state(*["WAITING_FOR_RESOURCES"] * 500))
    running = subprocess.Popen(
        ["launch/tpu_vm.sh", *SLICE, *MAIN],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "POLL_S": "0.2"},
        stderr=subprocess.PIPE,
    )
    while len(cloud.calls(STATE)) < 2:
        assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=30)
    assert running.returncode == 143
    assert len(cloud.calls(DELETE)) == 1


def test_dry_run_prints_every_command_and_runs_none(cloud):
    done = launch(cloud, "--dry_run", "--data=gs://bucket/set")
    assert done.returncode == 0, done.stderr
    assert cloud.calls() == []
    for part in (CREATE, "git archive", " scp ", "install", "copy", "run", DELETE):
        assert part in done.stdout
    lines = [line for line in done.stdout.splitlines() if line]
    assert all(line.startswith(("gcloud ", "git ")) for line in lines), done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["--zone=z", *MAIN], ["--name=n", *MAIN], [*SLICE], [*SLICE, "--wrong", *MAIN]],
)
def test_wrong_usage_is_one_line_status_2_and_touches_nothing(cloud, arguments):
    done = cloud.run("launch/tpu_vm.sh", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert cloud.calls() == []


@pytest.mark.parametrize(("worker", "shown"), [("0", True), ("3", False)])
def test_worker_0_shows_its_output_and_status_and_every_worker_keeps_a_log(tmp_path, worker, shown):
    stand_ins = StandIns(tmp_path, "curl")
    stand_ins.play({"when": "agent-worker-number", "say": worker})
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "training $@"\nexit 75\n')
    python.chmod(0o755)
    script = pathlib.Path(ROOT, "launch/tpu_worker.sh")
    done = subprocess.run(
        [script, "run", "--config=c.py", "--workdir=a b"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 75
    line = "training -m mnv4_jax.main --config=c.py --workdir=a b\n"
    assert (tmp_path / "run.log").read_text() == line
    assert (line in done.stdout) is shown
    assert ("mnv4_jax exit status: 75" in done.stdout) is shown
