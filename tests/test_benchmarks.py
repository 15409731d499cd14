"""Benchmarks run to their ends, at sizes at which their figures mean nothing."""

import os
import subprocess
import sys

import pytest

from tests.processes import ROOT

TINY = {
    "growth": "--points=32:2",
    "near_duplicates": "--most=1000",
    "pipeline": "--images=64 --batch=16 --rounds=1 --no-torch",
    "scaling": "--image_size=32",
    "serve": "--clients=1 --seconds=1",
    "sharded_state": "--model=mobilenetv4_conv_small_035 --devices=2",
    "soak": "--kills=1",
    "step_cost": "gabor --size=32 --batch_size=2 --steps=1",
    "train_step": "--sizes=32:2 --rounds=1 --repeats=1",
}
NEEDS = {"serve": "starlette", "train_step": "timm"}
LIBRARIES = {"rounds", "steps"}
# Minutes each, however small: they start whole runs, Ray or every form of export; web asks npm.
BY_HAND = {"comparison", "deploy", "fleet", "fleet_scale", "fleet_soak", "gpu", "inference", "loop"}
BY_HAND |= {"web"}


def test_none_is_missing():
    files = {file.stem for file in ROOT.glob("benchmarks/*.py")}
    assert files == TINY.keys() | LIBRARIES | BY_HAND


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_it_runs(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    result = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *TINY[name].split()],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert any(character.isdigit() for character in result.stdout)
