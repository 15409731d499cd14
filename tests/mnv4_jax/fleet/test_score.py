"""The command on a real Ray of loopback; the oracle is `predict` on the same pictures."""

import json
import pathlib
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from input_pipeline import demo
from input_pipeline.faces import FaceFinder
from mnv4_jax.detector.detector import Detector
from tests.pictures import encoded, smooth
from tests.processes import ROOT, free_port

pytest.importorskip("ray", reason="needs the extra `ray`")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def pictures(portraits, tmp_path_factory) -> pathlib.Path:
    """24 portraits, one file that is no picture, one that is too small, one of one colour."""
    root = tmp_path_factory.mktemp("pictures")
    for file in (portraits / "Test").glob("*/*.jpg"):
        shutil.copy(file, root / f"{file.parent.name}_{file.name}")
    (root / "small.png").write_bytes(encoded(smooth(30, 50), "PNG"))
    (root / "grey.png").write_bytes(encoded(np.full((90, 90, 3), 77, np.uint8), "PNG"))
    return root


@pytest.fixture(scope="module")
def scored(pictures, detector, cluster, command, tmp_path_factory):
    """(the finished command, its flags, its folder)."""
    out = tmp_path_factory.mktemp("scored") / "out"
    flags = [f"--input={pictures}", f"--out={out}", f"--checkpoint={detector}", f"--ray={cluster}"]
    flags += ["--shard_rows=10"]
    return command(*flags), flags, out


def test_every_picture_has_one_row_with_the_score_that_predict_gives(
    scored, pictures, detector, rows
):
    done, _, out = scored
    assert done.returncode == 1, done.stderr  # one is unreadable
    found = rows(out)
    assert [row["path"] for row in found] == sorted(map(str, pictures.iterdir()))
    ask = Detector(detector)
    for row in found:
        name = pathlib.Path(row["path"]).name
        assert row["face"] is None and len(row["checkpoint"]) == 32
        if name == "Fake_broken.jpg":
            assert row["error"] and row["p_fake"] is row["label"] is row["reason"] is None
            continue
        assert row["error"] is None
        (answer,) = ask.answers([row["path"]])
        assert (row["label"], row["reason"]) == (answer.label, answer.reason)
        if answer.p_fake is None:
            assert row["p_fake"] is None
        else:
            assert row["p_fake"] == pytest.approx(answer.p_fake, abs=1e-5)


def test_the_summary_counts_the_rows(scored, rows):
    done, _, out = scored
    found = rows(out)
    summary = json.loads((out / "summary.json").read_text())
    fakes = sum(row["label"] == "fake" for row in found)
    assert (summary["rows"], summary["unreadable"], summary["without_score"]) == (27, 1, 2)
    assert (summary["fake"], sum(summary["histogram"])) == (fakes, 24)
    assert f"27 pictures: 24 scored, {fakes} called fake" in done.stdout
    with Image.open(out / "scores.png") as picture:
        assert picture.format == "PNG"
    assert "27 pictures in 3 shards" in done.stderr


def test_finished_shards_are_left_alone_and_damaged_ones_done_again(scored, command, rows):
    _, flags, out = scored
    before = rows(out)
    files = sorted((out / "scores").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-9])  # cut short
    pq.write_table(pq.read_table(files[1]).slice(1), files[1])  # a row is missing
    untouched = files[2].stat().st_mtime_ns
    done = command(*flags)
    assert "7 done already" in done.stderr, done.stderr
    assert rows(out) == before
    assert files[2].stat().st_mtime_ns == untouched


def test_another_input_or_checkpoint_is_refused_in_one_line(
    scored, command, pictures, other_detector, rows
):
    _, flags, out = scored
    before = rows(out)
    for change, message in (
        (f"--checkpoint={other_detector}", "another --checkpoint"),
        ("--limit=5", "another --input or --limit"),
        ("--threshold=0.9", "--threshold=0.5"),
        ("--faces", "faces=False"),
    ):
        done = command(*flags, change)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr
    assert rows(out) == before


def test_faces_are_found_and_the_row_has_the_most_probable_fake(
    detector, cluster, command, tmp_path, rows
):
    wall = np.full((300, 420, 3), 130, np.uint8)
    faces = [cv2.resize(demo.draw(7, i)[0], (160, 160)) for i in (1, 2)]
    two = wall.copy()
    two[60:220, 20:180], two[90:250, 220:380] = faces
    for name, pixels in (("0wall", wall), ("1two", two)):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    out = tmp_path / "out"
    done = command(
        f"--input={tmp_path / 'in'}",
        f"--out={out}",
        f"--checkpoint={detector}",
        f"--ray={cluster}",
        "--faces",
    )
    assert done.returncode == 0, done.stderr
    wall_row, two_row = rows(out)
    assert (wall_row["p_fake"], wall_row["reason"]) == (None, "no face found")
    found = FaceFinder()(two)
    assert len(found) == 2
    p_fake = Detector(detector)([face.pixels for face in found])
    best = found[int(np.argmax(p_fake))].box
    assert two_row["p_fake"] == pytest.approx(p_fake.max(), abs=1e-5)
    assert tuple(two_row["face"][k] for k in ("left", "top", "width", "height")) == best


def test_bad_input_is_one_line_and_status_2(tmp_path, command):
    (tmp_path / "list.txt").write_text("\n\n")
    (tmp_path / "x.txt").write_text("a.jpg")
    pq.write_table(pa.table({"n": [1]}), tmp_path / "n.parquet")
    for source, flag, message in (
        ("none", "--limit=3", "no such file"),
        ("list.txt", "--limit=3", "an empty list"),
        ("n.parquet", "--column=image", "no column image"),
        ("x.txt", f"--ray=127.0.0.1:{free_port()}", "nobody answers"),
        ("x.txt", "--ray=ray://head", "expected HOST:PORT"),
        ("x.txt", "--limit=0", "--limit"),
        ("x.txt", "--threshold=7", "--threshold=7"),
        ("x.txt", f"--checkpoint={tmp_path}", "no checkpoint"),
    ):
        flags = [f"--input={tmp_path / source}", f"--out={tmp_path / 'out'}", flag, "--cpus=1"]
        done = command(*(flags[:-1] if "--ray" in flag else flags))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr


def test_without_ray_the_cure_is_said(tmp_path):
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from input_pipeline import cli\nfrom mnv4_jax import score\ncli.run(score.main)"
    )
    flags = ["--input=x.txt", f"--out={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: Ray is not installed")
    assert "pip install -e '.[ray]'" in done.stderr
