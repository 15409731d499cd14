"""What launch/ray/render.py writes, checked as YAML, and the cluster file by Ray's own schema."""

import json
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from mnv4_jax import score
from tests.launch.stand_in import ROOT, StandIns

FLAGS = ["--name=archive", "--image=registry/mnv4_jax:1", "--workers=64"]
SCORE = ["--input=gs://bucket/a list.parquet", "--out=gs://bucket/scores", "--limit=9"]


def render(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "launch/ray/render.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)


def rayjob(*flags: str) -> dict:
    return yaml.safe_load(render("rayjob", *FLAGS, *flags, "--", *SCORE).stdout)


def cluster(*flags: str) -> dict:
    return yaml.safe_load(render("cluster", *FLAGS, "--project=p", *flags).stdout)


def test_the_job_starts_score_with_the_flags_given():
    job = rayjob()
    assert (job["apiVersion"], job["kind"], job["metadata"]["name"]) == (
        "ray.io/v1",
        "RayJob",
        "archive",
    )
    command, _, otherwise = job["spec"]["entrypoint"].rpartition(" || ")
    python, module, name, *flags = shlex.split(command)
    assert (python, module, name) == ("python", "-m", "mnv4_jax.score")
    args = score.parse(flags)
    assert (args.input, args.out, args.ray) == (SCORE[0].partition("=")[2], SCORE[1][6:], "auto")
    # Unreadable pictures are no failure; what the user has to put right is.
    for status, expected in ((0, 0), (1, 0), (2, 1)):
        shell = f"(exit {status}) || {otherwise}"
        assert subprocess.run(["sh", "-c", shell]).returncode == expected


def test_the_cluster_of_a_job_has_its_workers_and_goes_with_it():
    spec = rayjob("--spot", "--gpus=1", "--retries=3")["spec"]
    assert (spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == (3, True)
    head = spec["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert {group[k] for k in ("replicas", "minReplicas", "maxReplicas")} == {64}
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "registry/mnv4_jax:1"
    assert container["resources"]["limits"] == {
        "cpu": "15",
        "memory": "48Gi",
        "nvidia.com/gpu": "1",
    }
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert (
        rayjob()["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"][
            "nodeSelector"
        ]
        == {}
    )


def test_the_version_of_ray_is_one_that_the_project_takes():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (bound,) = (Requirement(r) for r in extras["ray"] if r.startswith("ray"))
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] in bound.specifier


@pytest.mark.ray
def test_the_cluster_file_is_one_that_ray_takes():
    autoscaler = pytest.importorskip("ray.autoscaler", reason="needs the extra `ray`")
    jsonschema = pytest.importorskip("jsonschema")
    schema = pathlib.Path(autoscaler.__file__).with_name("ray-schema.json")
    found = cluster("--spot")
    jsonschema.validate(found, json.loads(schema.read_text()))
    assert found["available_node_types"]["workers"]["min_workers"] == 64
    assert found["available_node_types"]["workers"]["node_config"]["scheduling"] == [
        {"preemptible": True}
    ]
    assert found["provider"]["region"] == "us-central1"
    assert not re.search(r"\$\w", render("cluster", *FLAGS, "--project=p").stdout)


def test_what_is_rendered_can_be_piped_into_kubectl(tmp_path):
    stand_ins = StandIns(tmp_path, "kubectl")
    script = 'python=$1; shift; "$python" launch/ray/render.py "$@" | kubectl apply -f -'
    flags = ["rayjob", *FLAGS, "--", *SCORE]
    done = stand_ins.run("bash", "-c", script, "_", sys.executable, *flags)
    assert done.returncode == 0, done.stderr
    assert stand_ins.calls() == ["kubectl apply -f -"]


@pytest.mark.parametrize(
    "flags",
    [
        ["rayjob", *FLAGS, "--", "--input=x"],
        ["rayjob", *FLAGS, "--", *SCORE, "--ray=auto"],
        ["rayjob", *FLAGS, "--name=Archive", "--", *SCORE],
        ["rayjob", *FLAGS, "--workers=0", "--", *SCORE],
        ["cluster", *FLAGS],
        ["slurm", *FLAGS],
    ],
)
def test_wrong_flags_are_status_2(flags):
    assert render(*flags).returncode == 2


def test_the_container_copies_what_the_package_consists_of():
    text = (ROOT / "launch/ray/Dockerfile").read_text()
    for name in ("configs", "input_pipeline", "mnv4_jax"):
        assert f"COPY {name} {name}" in text
