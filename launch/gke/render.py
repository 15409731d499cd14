"""Fills in launch/gke/jobset.yaml and prints it.

    python launch/gke/render.py --name=faces --image=IMAGE --topology=2x4 --data_bucket=BUCKET \
        -- --config=configs/kaggle.py --workdir=gs://BUCKET/runs/faces --config.data.dir=/data/SET \
        | kubectl apply -f -

The bucket --data_bucket is mounted, read-only, at /data.
"""

import argparse
import json
import math
import pathlib
import re
import string
import sys

TEMPLATE = pathlib.Path(__file__).with_name("jobset.yaml")


def hosts_and_chips(topology: str) -> tuple[int, int]:
    """(hosts, chips a host) of a v5e slice: one host up to 2x4, then hosts of four chips.

    https://cloud.google.com/kubernetes-engine/docs/concepts/tpus: ct5lp-hightpu-{1,4,8}t.
    """
    chips = math.prod(map(int, topology.split("x")))
    return (1, chips) if chips <= 8 else (chips // 4, 4)


def render(flags: argparse.Namespace) -> str:
    """The manifest as YAML; values are written as JSON, which is valid YAML."""
    hosts, chips = hosts_and_chips(flags.topology)
    selector = {
        "cloud.google.com/gke-tpu-accelerator": flags.accelerator,
        "cloud.google.com/gke-tpu-topology": flags.topology,
    }
    if flags.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    values = {
        "name": flags.name,
        "image": flags.image,
        "service_account": flags.service_account,
        "data_bucket": flags.data_bucket,
        "max_restarts": flags.max_restarts,
        "hosts": hosts,
        "chips_per_host": chips,
        "node_selector": selector,
        "args": flags.main_flags,
    }
    filled = {name: json.dumps(value) for name, value in values.items()}
    return string.Template(TEMPLATE.read_text()).substitute(filled)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Flags of this script, then `--`, then those of mnv4_jax.main."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--name", required=True, help="of the JobSet")
    parser.add_argument("--image", required=True, help="built from launch/gke/Dockerfile")
    parser.add_argument("--data_bucket", required=True, help="mounted at /data")
    parser.add_argument("--topology", default="2x4", help="of the slice (default: 2x4)")
    parser.add_argument("--accelerator", default="tpu-v5-lite-podslice")
    parser.add_argument("--service_account", default="default", help="Kubernetes service account")
    parser.add_argument("--max_restarts", type=int, default=50)
    parser.add_argument("--spot", action="store_true", help="take Spot nodes")
    parser.add_argument("main_flags", nargs="+", metavar="-- MAIN_FLAG")
    flags = parser.parse_args(arguments)
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", flags.topology):
        parser.error(f"--topology={flags.topology}: expected one like 2x4")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", flags.name):
        parser.error(f"--name={flags.name}: expected lower-case letters, digits and dashes")
    return flags


if __name__ == "__main__":
    sys.stdout.write(render(parse(sys.argv[1:])))
