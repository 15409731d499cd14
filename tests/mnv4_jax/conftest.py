"""A detector that was never trained and a small set of drawn faces, for whoever judges and asks."""

import csv
import pathlib

import cv2
import numpy as np
import pytest

from input_pipeline import demo
from mnv4_jax.detector import saved
from mnv4_jax.detector.detector import Detector
from mnv4_jax.measure import calibration
from mnv4_jax.models import weights as weights_lib
from tests import small_net


@pytest.fixture(scope="session")
def portraits(tmp_path_factory) -> pathlib.Path:
    """Test/{Fake,Real}: 12 drawn faces each, of several sizes, in pairs that groups.csv names.

    Besides one file that is no picture, one without a face, and no other split.
    """
    root = tmp_path_factory.mktemp("portraits") / "set"
    groups = [("Fake/broken.jpg", "none")]
    for i in range(24):
        data, label = demo.draw_jpeg(7, i)
        name = f"{('Fake', 'Real')[label]}/{i:02}.jpg"
        file = root / "Test" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if i % 4 > 1:  # larger, and not square
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            image = cv2.copyMakeBorder(image, 9, 0, 0, 31, cv2.BORDER_REPLICATE)
            data = cv2.imencode(".jpg", image)[1].tobytes()
        file.write_bytes(data)
        groups.append((name, f"source {i // 2}"))
    (root / "Test" / "Fake" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    with open(root / "Test" / "groups.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "group"), *groups])
    return root


@pytest.fixture(scope="session")
def uncalibrated_run(tmp_path_factory) -> pathlib.Path:
    """A workdir with one checkpoint of fresh weights, as if trained at 64 px without Validation."""
    config = small_net.get_config()
    config.model.zero_init_head = False
    config.data.eval_image_size = 64
    weights = weights_lib.fresh_weights(config)
    workdir = tmp_path_factory.mktemp("run")
    saved.write_initial(workdir, config, weights)
    return workdir


@pytest.fixture(scope="session")
def run(uncalibrated_run, portraits, tmp_path_factory) -> pathlib.Path:
    """The same, calibrated (on the very pictures it will be asked about)."""
    files = sorted((portraits / "Test").glob("*/[0-9]*.jpg"))
    labels = np.array([0 if file.parent.name == "Fake" else 1 for file in files])
    p = Detector(uncalibrated_run)(files)
    logits = np.stack([np.log(p), np.log1p(-p)], axis=1)
    workdir = tmp_path_factory.mktemp("run")
    loaded = saved.load(uncalibrated_run)
    folder = saved.write_initial(workdir, loaded.config, loaded.weights)
    saved.save_calibration(folder, calibration.fit(logits, labels))
    return workdir
