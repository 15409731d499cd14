"""Every test runs on the CPU, on four virtual devices, whatever the machine has."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "4"

import pathlib  # noqa: E402

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def image_sets() -> pathlib.Path:
    """The folder of real image sets, `$MNV4_DATA`; skips where there is none."""
    root = os.environ.get("MNV4_DATA", "")
    if not root or not pathlib.Path(root).is_dir():
        pytest.skip("MNV4_DATA does not name a folder of image sets")
    return pathlib.Path(root)
