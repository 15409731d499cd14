"""Detectors, and the command that asks them."""

import pathlib
import subprocess
import sys

import pytest

from mnv4_jax.detector import saved
from mnv4_jax.models import weights as weights_lib
from tests.processes import ROOT
from tests.tiny import tiny_config


def _write_detector(workdir: pathlib.Path, seed: int) -> pathlib.Path:
    """The smallest of the project's own networks: Ray's processes know no other."""
    config = tiny_config(**{"data.image_size": 64, "data.eval_image_size": 64, "seed": seed})
    config.model.zero_init_head = False
    saved.write_initial(workdir, config, weights_lib.fresh_weights(config))
    return workdir


@pytest.fixture(scope="session")
def detector(tmp_path_factory) -> pathlib.Path:
    """A workdir with a detector that was never trained."""
    return _write_detector(tmp_path_factory.mktemp("detector"), 0)


@pytest.fixture(scope="session")
def other_detector(tmp_path_factory) -> pathlib.Path:
    return _write_detector(tmp_path_factory.mktemp("detector"), 1)


@pytest.fixture(scope="session")
def command():
    """Runs `python -m mnv4_jax.score`; its exit status and what it said are in the result."""

    def run(*flags: str, timeout_s: float = 200) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "mnv4_jax.score", *map(str, flags)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    return run


@pytest.fixture
def rows():
    """The rows of a job's output, in the order of the input; each must be there once."""
    import pyarrow.parquet as pq

    def read(out: pathlib.Path) -> list[dict]:
        found = pq.read_table(out / "scores").to_pylist()
        found.sort(key=lambda row: row["row"])
        assert [row["row"] for row in found] == list(range(len(found)))
        return found

    return read
