"""Every test runs on the CPU, on four virtual devices, whatever the machine has."""

import atexit
import os
import pathlib
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
# Compiling a step takes longer than testing it. Without XLA's optimiser it takes two thirds of the
# time; .ci/run runs the slow tests with it. Processes and pytest-xdist's workers share compiled
# programs, and so do sessions that name one folder, like the steps of .ci/run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="mnv4_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# The user's own cache is left alone; the demo set is kept for the next session.
os.environ.setdefault("MNV4_CACHE", f"{tempfile.gettempdir()}/mnv4_jax_tests_{os.getuid()}")

import cv2
import numpy as np
import pytest

if "mnv4_jax_tests_" in os.environ["MNV4_CACHE"]:
    atexit.register(shutil.rmtree, f"{os.environ['MNV4_CACHE']}/pictures", ignore_errors=True)


@pytest.fixture(scope="session")
def image_sets() -> pathlib.Path:
    """The folder of real image sets, `$MNV4_DATA`; skips where there is none."""
    root = os.environ.get("MNV4_DATA", "")
    if not root or not pathlib.Path(root).is_dir():
        pytest.skip("MNV4_DATA does not name a folder of image sets")
    return pathlib.Path(root)


def _draw(path: pathlib.Path, rng: np.random.Generator, *, fake: bool, size_px: int = 64) -> None:
    """A smooth random picture; a fake one has a fine checkerboard over it."""
    small = rng.integers(60, 200, (6, 6, 3), dtype=np.uint8)
    pixels = cv2.resize(small, (size_px, size_px), interpolation=cv2.INTER_CUBIC).astype(float)
    if fake:
        pixels += 12 * (np.indices((size_px, size_px)).sum(0) % 2 * 2 - 1)[..., None]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory) -> pathlib.Path:
    """A Kaggle-layout folder of 64 px PNGs: 48 for training, 16 each for validation and test."""
    root = tmp_path_factory.mktemp("pictures") / "Dataset"
    rng = np.random.default_rng(0)
    for split, each in (("Train", 24), ("Validation", 8), ("Test", 8)):
        for name in ("Fake", "Real"):
            for i in range(each):
                _draw(root / split / name / f"{i}.png", rng, fake=name == "Fake")
    return root


@pytest.fixture(scope="session")
def compiled() -> pathlib.Path:
    """A folder of compiled programs that the processes which tests start share."""
    return pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])


@pytest.fixture(scope="session")
def cluster():
    """The address of a Ray of this machine that tests share: two CPUs, no dashboard, no usage
    statistics."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    from input_pipeline import engine

    os.environ["PYTHONPATH"] = str(pathlib.Path(__file__).parent.parent)
    with engine.running(None, cpus=2, object_store_bytes=200 << 20) as ray:
        yield ray.get_runtime_context().gcs_address
