import re

import pytest

from tests.launch.stand_in import ROOT, StandIns

SCRIPT = "launch/slurm.sbatch"
FLAGS = ("--config=configs/kaggle.py", "--workdir=/scratch/a b")


@pytest.fixture
def cluster(tmp_path) -> StandIns:
    return StandIns(tmp_path, "srun", "scontrol")


def submit(cluster: StandIns, *flags: str, restarts: int | None = None):
    environment = {
        "SLURM_JOB_ID": "4711",
        "SLURM_CPUS_PER_TASK": "12",
        "PYTHON": "python",
        "MAX_RESTARTS": "3",
    }
    if restarts is not None:
        environment["SLURM_RESTART_COUNT"] = str(restarts)
    return cluster.run("bash", SCRIPT, *flags, **environment)


def test_one_srun_starts_the_training_with_all_flags(cluster):
    assert submit(cluster, *FLAGS).returncode == 0
    (call,) = cluster.calls("srun")
    assert call.endswith(
        "python -m mnv4_jax.main --config=configs/kaggle.py --workdir=/scratch/a b"
    )
    assert "--cpus-per-task=12 " in call  # srun does not take it over from sbatch
    assert cluster.calls("scontrol") == []


@pytest.mark.parametrize("status", [75, 134, 137])
def test_preemption_and_a_killed_worker_put_the_job_back_into_the_queue(cluster, status):
    cluster.play({"when": "srun", "status": status})
    submit(cluster, *FLAGS, restarts=2)
    assert cluster.calls("scontrol") == ["scontrol requeue 4711"]


def test_requeues_are_bounded(cluster):
    cluster.play({"when": "srun", "status": 75})
    done = submit(cluster, *FLAGS, restarts=3)
    assert done.returncode == 75
    assert cluster.calls("scontrol") == []
    assert "after 3 restarts" in done.stderr


@pytest.mark.parametrize("status", [1, 2])
def test_an_error_is_passed_on_and_not_tried_again(cluster, status):
    cluster.play({"when": "srun", "status": status})
    assert submit(cluster, *FLAGS).returncode == status
    assert cluster.calls("scontrol") == []


def test_no_flags_is_one_line_and_status_2(cluster):
    done = submit(cluster)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert cluster.calls() == []


def test_the_job_asks_for_a_process_a_gpu_a_requeue_and_a_warning_to_the_processes():
    text = (ROOT / SCRIPT).read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.MULTILINE))
    assert options["gpus-per-node"] == options["ntasks-per-node"]
    assert "requeue" in options
    assert re.fullmatch(r"TERM@\d+", options["signal"])  # no "B:": the steps, not the shell
    # What stands after the first command is no option to sbatch any more.
    assert text.index("set -euo") > text.rindex("\n#SBATCH")
