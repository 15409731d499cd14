import subprocess
import sys

import cv2
import numpy as np

from mnv4_jax import audit
from tests.pictures import encoded, smooth
from tests.processes import ROOT


def write(root, blur, n=6, brightness=0):
    """A set whose fakes are blurred."""
    for label in ("Fake", "Real"):
        folder = root / "Train" / label
        folder.mkdir(parents=True)
        rng = np.random.default_rng(len(label))
        for i in range(n):
            pixels = smooth(64, 64, i) // 2 + rng.integers(0, 100, (64, 64, 3)).astype(np.uint8)
            if blur and label == "Fake":
                pixels = cv2.GaussianBlur(pixels, (0, 0), 2)
            (folder / f"{i}.jpg").write_bytes(encoded(pixels))
    return root


def run(*data):
    command = [sys.executable, "-m", "mnv4_jax.audit", "--config=configs/small.py", "--pictures=6"]
    fields = ["--config.data.image_size=56", "--config.train.batch_size=8"]
    return subprocess.run(
        [*command, f"--config.data.dir={','.join(map(str, data))}", *fields],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_a_property_that_tells_classes_apart_is_shown(tmp_path):
    done = run(write(tmp_path / "blurred", True), write(tmp_path / "plain", False))
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    sharpness = {(row[0], row[1]): float(row[2]) for row in rows}
    assert set(sharpness) == {(f, r) for f in ("blurred", "plain") for r in ("blurred", "plain")}
    assert sharpness["blurred", "blurred"] == 1.0
    assert sharpness["plain", "plain"] < 0.95


def test_an_auc_does_not_depend_on_which_class_has_more():
    few, many = np.arange(10.0), np.arange(5.0, 15.0)
    assert audit.told_apart(few, many) == audit.told_apart(many, few) > 0.8
    assert np.isnan(audit.told_apart(np.array([np.nan]), many))


def test_one_set_alone_is_no_pair(tmp_path):
    done = run(write(tmp_path, False))
    assert done.returncode == 2
    assert "one set; name several" in done.stderr and len(done.stderr.splitlines()) == 1
