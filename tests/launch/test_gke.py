import re
import subprocess
import sys

import pytest
import yaml

from mnv4_jax.runtime import preemption
from tests.launch.stand_in import ROOT, StandIns

FLAGS = ["--name=faces", "--image=registry/mnv4_jax:1", "--data_bucket=faces-data"]
MAIN = ["--config=configs/kaggle.py", '--workdir=gs://bucket/run "1"', "--config.data.dir=/data/a"]


def render(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "launch/gke/render.py", *FLAGS, *flags, "--", *MAIN]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)


def manifest(*flags: str) -> dict:
    return yaml.safe_load(render(*flags).stdout)


def job_of(jobset: dict) -> dict:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(jobset: dict) -> dict:
    return job_of(jobset)["template"]["spec"]


def test_the_manifest_is_yaml_and_starts_the_training_with_the_flags_given():
    jobset = manifest()
    assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "faces")
    (container,) = pod_of(jobset)["containers"]
    assert container["image"] == "registry/mnv4_jax:1"
    assert container["args"] == MAIN
    (volume,) = pod_of(jobset)["volumes"]
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "faces-data"
    assert not re.search(r"\$\w", render().stdout)


@pytest.mark.parametrize(
    ("topology", "hosts", "chips"), [("1x1", 1, 1), ("2x4", 1, 8), ("4x4", 4, 4), ("16x16", 64, 4)]
)
def test_there_is_a_pod_for_every_host_of_the_slice(topology, hosts, chips):
    jobset = manifest(f"--topology={topology}")
    assert (job_of(jobset)["parallelism"], job_of(jobset)["completions"]) == (hosts, hosts)
    (container,) = pod_of(jobset)["containers"]
    assert container["resources"]["limits"]["google.com/tpu"] == chips
    assert pod_of(jobset)["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology


def test_preemption_restarts_everything_and_a_users_error_ends_it():
    jobset = manifest("--max_restarts=7", "--spot")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert job_of(jobset)["backoffLimit"] == 0  # one pod alone cannot come back: all of them do
    assert pod_of(jobset)["restartPolicy"] == "Never"
    (rule,) = job_of(jobset)["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2]
    assert preemption.EXIT_STATUS not in rule["onExitCodes"]["values"]
    assert rule["onExitCodes"]["containerName"] == pod_of(jobset)["containers"][0]["name"]
    (exception,) = jobset["spec"]["failurePolicy"]["rules"]
    assert exception == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert pod_of(jobset)["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def test_what_is_rendered_can_be_piped_into_kubectl(tmp_path):
    stand_ins = StandIns(tmp_path, "kubectl")
    script = 'python=$1; shift; "$python" launch/gke/render.py "$@" | kubectl apply -f -'
    done = stand_ins.run("bash", "-c", script, "_", sys.executable, *FLAGS, "--", *MAIN)
    assert done.returncode == 0, done.stderr
    assert stand_ins.calls() == ["kubectl apply -f -"]


@pytest.mark.parametrize("flag", ["--topology=8", "--topology=0x4", "--name=Faces", "--wrong=1"])
def test_wrong_flags_are_status_2(flag):
    done = render(flag)
    assert done.returncode == 2
    assert flag.split("=")[0] in done.stderr.splitlines()[-1]


def test_the_container_copies_what_the_package_consists_of():
    text = (ROOT / "launch/gke/Dockerfile").read_text()
    for name in ("configs", "input_pipeline", "mnv4_jax"):
        assert f"COPY {name} {name}" in text
    assert 'ENTRYPOINT ["python", "-m", "mnv4_jax.main", "--peer_timeout_s=1800"]' in text
