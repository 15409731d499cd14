"""Fills in launch/ray/rayjob.yaml (KubeRay) or cluster.yaml (`ray up`) and prints it.

    python launch/ray/render.py rayjob --name=archive --image=IMAGE --workers=64 \
        -- --input=gs://BUCKET/list.parquet --out=gs://BUCKET/scores | kubectl apply -f -

    python launch/ray/render.py cluster --name=archive --image=IMAGE --workers=8 \
        --project=PROJECT --zone=us-central1-a > cluster.yaml

The flags after `--` are those of mnv4_jax.score; --ray=auto is added.
"""

import argparse
import json
import pathlib
import re
import shlex
import string
import sys

HERE = pathlib.Path(__file__).parent
RAY_VERSION = "2.60.0"  # that launch/ray/Dockerfile installs, within the bounds of pyproject.toml
_DISK = {
    "boot": True,
    "autoDelete": True,
    "type": "PERSISTENT",
    "initializeParams": {
        "diskSizeGb": 100,
        "sourceImage": "projects/ubuntu-os-cloud/global/images/family/ubuntu-2204-lts",
    },
}


def entrypoint(score_flags: list[str]) -> str:
    """The job's shell command. Status 1 (some pictures were unreadable) is not a failure."""
    command = ["python", "-m", "mnv4_jax.score", "--ray=auto", *score_flags]
    return f"{shlex.join(command)} || test $? -eq 1"


def render(flags: argparse.Namespace) -> str:
    """The file as YAML; values are written as JSON, which is valid YAML."""
    values = {"name": flags.name, "image": flags.image, "workers": flags.workers}
    if flags.kind == "rayjob":
        resources = {"cpu": str(flags.cpus), "memory": f"{flags.memory_gib}Gi"}
        if flags.gpus:
            resources["nvidia.com/gpu"] = str(flags.gpus)
        values |= {
            "entrypoint": entrypoint(flags.score_flags),
            "retries": flags.retries,
            "ray_version": RAY_VERSION,
            "service_account": flags.service_account,
            "resources": resources,
            "node_selector": {"cloud.google.com/gke-spot": "true"} if flags.spot else {},
        }
    else:
        values |= {
            "project": flags.project,
            "zone": flags.zone,
            "region": flags.zone.rpartition("-")[0],
            "machine": flags.machine,
            "disks": [_DISK],
            "scheduling": [{"preemptible": True}] if flags.spot else [],
        }
    filled = {name: json.dumps(value) for name, value in values.items()}
    return string.Template((HERE / f"{flags.kind}.yaml").read_text()).substitute(filled)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Flags of this script, then `--`, then those of mnv4_jax.score."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="%(prog)s {rayjob,cluster} --name=NAME --image=IMAGE [options] -- [SCORE_FLAG ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("kind", choices=("rayjob", "cluster"))
    parser.add_argument("--name", required=True, help="of the job or cluster")
    parser.add_argument("--image", required=True, help="built from launch/ray/Dockerfile")
    parser.add_argument("--workers", type=int, default=8, help="machines or pods (8)")
    parser.add_argument("--spot", action="store_true", help="take Spot machines")
    parser.add_argument("--cpus", type=int, default=15, help="of a pod (15: 16 less the system's)")
    parser.add_argument("--memory_gib", type=int, default=48, help="of a pod (48)")
    parser.add_argument(
        "--gpus", type=int, default=0, help="of a pod (0); image with EXTRAS=ray,gpu"
    )
    parser.add_argument("--retries", type=int, default=10, help="clusters after the first (10)")
    parser.add_argument("--service_account", default="default", help="Kubernetes service account")
    parser.add_argument("--project", help="of Google Cloud; for cluster")
    parser.add_argument("--zone", default="us-central1-a", help="for cluster")
    parser.add_argument("--machine", default="n2-standard-16", help="for cluster")
    # Split before argparse, which would match a positional that may be empty too early.
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    flags = parser.parse_args(own)
    flags.score_flags = arguments[len(own) + 1 :]
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", flags.name):
        parser.error(f"--name={flags.name}: expected lower-case letters, digits and dashes")
    if flags.workers < 1:
        parser.error(f"--workers={flags.workers}: expected 1 or more")
    if flags.kind == "cluster" and not flags.project:
        parser.error("--project: a cluster of Google Cloud needs one")
    if flags.kind == "rayjob":
        given = {flag.partition("=")[0] for flag in flags.score_flags}
        for wanted in ("--input", "--out"):
            if wanted not in given:
                parser.error(f"-- {wanted}=…: mnv4_jax.score needs it, written with =")
        if "--ray" in given:
            parser.error("-- --ray: it is added here; leave it out")
    return flags


if __name__ == "__main__":
    sys.stdout.write(render(parse(sys.argv[1:])))
