"""Every benchmark runs to its end, at a size at which its figures mean nothing."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TINY = {
    "fleet": "--pictures=32 --rounds=1",
    "fleet_scale": "--pictures=1e4",
    "fleet_soak": "--kills=1 --rows=64",
    "gpu": "--tiny --groups=step",
    "growth": "--points=32:2",
    "inference": "--size=32 --batches=1 --rounds=1",
    "loop": "--steps=12 --size=32 --batch=8",
    "near_duplicates": "--most=1000",
    "pipeline": "--images=64 --batch=16 --rounds=1 --no-torch",
    "scaling": "--image_size=32",
    "serve": "--clients=1 --seconds=1",
    "sharded_state": "--model=mobilenetv4_conv_small_035 --devices=1,2",
    "soak": "--kills=1",
    "step_cost": "gabor --size=32 --batch_size=2 --steps=1",
    "train_step": "--sizes=32:2 --rounds=1 --repeats=1",
    "web": "--rounds=1 --pictures=4",
}
NEEDS = {
    **dict.fromkeys(("fleet", "fleet_scale", "fleet_soak"), "ray"),
    **dict.fromkeys(("fleet", "train_step"), "timm"),
    **dict.fromkeys(("inference", "web"), "onnxscript"),
    "serve": "starlette",
}
# Without a table of its own here: it wants a checkpoint, and tests/mnv4_jax/export has each form.
LIBRARIES = {"deploy", "rounds", "steps"}


def test_none_is_missing():
    assert {file.stem for file in ROOT.glob("benchmarks/*.py")} == TINY.keys() | LIBRARIES


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_it_runs(name, tmp_path):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}")
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
