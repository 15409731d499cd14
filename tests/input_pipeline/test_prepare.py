import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.decode import DeserializeMethod
from tensorflow_datasets.proto import tf_example_pb2

from input_pipeline import demo, faces, prepare, sources
from input_pipeline.batches import train_batches
from input_pipeline.cli import UserError
from input_pipeline.prepared import builder
from input_pipeline.transforms import Transform
from tests.pictures import write_set

LEAKED = "Train/Fake/5.jpg"  # the same bytes as Test/Real/0.jpg
NEAR = "Train/Real/5.jpg"  # Validation/Real/0.jpg, compressed anew
BROKEN = "Train/Real/broken.jpg"


def jpeg(seed: int, quality: int = 95) -> bytes:
    """A random picture of 48×40 px."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    pixels = cv2.resize(coarse, (48, 40), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """An image folder with one exact leak, one near leak, one broken file, and groups in Train."""
    root = tmp_path_factory.mktemp("faces")
    seeds = iter(range(1000))
    for split, count in (("Train", 6), ("Validation", 3), ("Test", 3)):
        for name in ("Fake", "Real"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.jpg").write_bytes(jpeg(next(seeds)))
    (root / LEAKED).write_bytes((root / "Test/Real/0.jpg").read_bytes())
    (root / "Validation/Real/0.jpg").write_bytes(jpeg(4000))
    (root / NEAR).write_bytes(jpeg(4000, quality=50))
    (root / BROKEN).write_bytes(jpeg(5000)[:300])
    rows = [f"{p.parent.name}/{p.name},video_{p.stem}" for p in (root / "Train").glob("*/*.jpg")]
    (root / "Train" / "groups.csv").write_text("\n".join(["file,group", *rows]))
    return root


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> pathlib.Path:
    """The folder as a prepared set, with a broken picture left out and the leaks left in."""
    out = tmp_path_factory.mktemp("whole")
    assert run(f"--source={folder}", f"--out={out}") is None
    return out


def run(*flags: str) -> int | None:
    """`python -m input_pipeline.prepare`, within this process."""
    before, sys.argv = sys.argv, ["prepare", *flags]
    try:
        return prepare.main()
    finally:
        sys.argv = before


def command(*flags: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "input_pipeline.prepare", *flags],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def report_of(out: pathlib.Path) -> dict:
    return json.loads((out / "leaks.json").read_text())


def test_the_set_holds_the_folders_bytes_ids_labels_and_groups_in_its_order(folder, whole):
    for split in sources.SPLITS:
        theirs = sources.open_source(str(folder), split)
        ours = sources.open_source(str(whole), split.upper())
        kept = [i for i in range(len(theirs)) if theirs.ids[i] != BROKEN]
        assert list(ours.ids) == [theirs.ids[i] for i in kept]
        np.testing.assert_array_equal(ours.labels, theirs.labels[kept])
        assert ours.labels.dtype == np.int32
        assert [ours.encoded(i) for i in range(len(ours))] == [theirs.encoded(i) for i in kept]
        if split == "Train":
            assert ours.groups == [theirs.groups[i] for i in kept]
        else:
            assert ours.groups is None


def test_every_record_holds_the_label_that_its_folder_says(whole):
    """As TFDS gives it to any other reader: ours takes labels from the metadata."""
    (info,) = whole.rglob("dataset_info.json")
    named = tfds.builder_from_directory(info.parent)
    assert named.info.features["label"].names == ["fake", "real"]
    for split, count in (("train", 12), ("validation", 6), ("test", 6)):
        records = [
            tf_example_pb2.Example.FromString(record).features.feature
            for record in named.as_data_source(
                split, deserialize_method=DeserializeMethod.RAW_BYTES
            )
        ]
        assert len(records) == count
        for record in records:
            folder = record["id"].bytes_list.value[0].decode().split("/")[1]
            assert record["label"].int64_list.value[0] == {"Fake": 0, "Real": 1}[folder]


def test_a_run_on_the_set_and_on_the_folder_sees_the_same_batches(folder, tmp_path):
    intact, out = tmp_path / "intact", tmp_path / "out"
    shutil.copytree(folder, intact, ignore=shutil.ignore_patterns("broken.jpg"))
    run(f"--source={intact}", f"--out={out}")
    transform = Transform(size=32, shorter_px=37, crop="resize")
    batches = []
    for data_dir in (intact, out):
        source = sources.open_source(str(data_dir), "Train")
        with train_batches(source, transform, batch_size=8, seed=3) as iterator:
            batches.append([next(iterator) for _ in range(3)])
    for from_folder, from_set in zip(*batches, strict=True):
        for key in ("image", "label", "position", "index"):
            np.testing.assert_array_equal(from_folder[key], from_set[key])


def test_the_set_can_be_read_by_many_threads_and_sent_to_another_process(whole):
    source = pickle.loads(pickle.dumps(sources.open_source(str(whole), "Train")))
    alone = [source.encoded(i) for i in range(len(source))]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.encoded, list(range(len(source))) * 20)) == alone * 20


def test_a_picture_of_a_set_has_a_stamp_of_its_own_until_the_shard_changes(whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "set")
    stamps = [sources.open_source(str(out), "Train").stamp(i) for i in range(12)]
    assert len(set(stamps)) == 12
    assert sources.open_source(str(out), "Train").stamp(3) == stamps[3]
    (shard,) = out.rglob("*train.array_record*")
    os.utime(shard, ns=(0, 0))
    assert sources.open_source(str(out), "Train").stamp(3) != stamps[3]


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_a_damaged_shard_is_pictures_that_cannot_be_read(whole, tmp_path, damage):
    out = shutil.copytree(whole, tmp_path / "set")
    (shard,) = out.rglob("*train.array_record*")
    data = shard.read_bytes()
    if damage == "changed":
        shard.write_bytes(data[: len(data) // 2] + b"?" * 200 + data[len(data) // 2 + 200 :])
    elif damage == "cut":
        shard.write_bytes(data[: len(data) // 2])
    else:
        shard.unlink()
    source = sources.open_source(str(out), "Train")
    errors = 0
    for i in range(len(source)):
        try:
            source.encoded(i)
        except OSError as error:
            assert "cannot be read" in str(error) and "\n" not in str(error)
            errors += 1
    assert errors > 0


@pytest.mark.parametrize("name", ["dataset_info.json", "metadata.json", "features.json"])
def test_a_damaged_description_of_a_set_is_one_line(whole, tmp_path, name):
    out = shutil.copytree(whole, tmp_path / "set")
    (file,) = out.rglob(name)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged") as caught:
        sources.open_source(str(out), "Train")
    assert "\n" not in str(caught.value)


def test_the_report_names_the_copies_across_splits_and_the_unreadable_file(whole):
    report = report_of(whole)
    assert {"split": "Test", "copy_in": "Train", "pictures": 1, "share": 1 / 6} in report[
        "across_splits"
    ]
    assert {"split": "Train", "copy_in": "Validation", "pictures": 1, "share": 1 / 12} in report[
        "across_splits"
    ]
    assert report["exact"] == [{"ids": [LEAKED, "Test/Real/0.jpg"], "across_splits": True}]
    assert [(row["a"], row["b"]) for row in report["near"]] == [(NEAR, "Validation/Real/0.jpg")]
    assert report["exact_with_both_labels"] == 1
    assert [row["id"] for row in report["unreadable"]] == [BROKEN]
    assert report["dropped"] == []
    page = (whole / "leaks.md").read_text()
    assert BROKEN in page
    assert NEAR in page


def test_a_name_that_is_not_utf8_is_left_out_and_named(folder, tmp_path):
    odd = shutil.copytree(folder, tmp_path / "faces")
    (odd / "Test" / "Real" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(jpeg(6000))
    assert run(f"--source={odd}", f"--out={tmp_path / 'out'}") is None
    named = [row["id"] for row in report_of(tmp_path / "out")["unreadable"]]
    assert r"Test/Real/caf\udce9.jpg" in named


def test_drop_leaks_leaves_out_the_training_copies_and_nothing_else(folder, whole, tmp_path):
    run(f"--source={folder}", f"--out={tmp_path}", "--drop_leaks")
    for split in sources.SPLITS:
        expected = [
            name
            for name in sources.open_source(str(whole), split).ids
            if name not in (LEAKED, NEAR)
        ]
        assert list(sources.open_source(str(tmp_path), split).ids) == expected
    assert report_of(tmp_path)["dropped"] == sorted([LEAKED, NEAR])


def test_a_finished_set_is_left_alone_and_another_one_is_refused(folder, whole, capsys):
    shard = next(whole.rglob("*train.array_record*"))
    before = shard.stat().st_mtime_ns
    run(f"--source={folder}", f"--out={whole}")
    assert "finished already: Train 12, Validation 6, Test 6" in capsys.readouterr().out
    assert shard.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="drop_leaks=False, not True"):
        run(f"--source={folder}", f"--out={whole}", "--drop_leaks")


def test_a_run_killed_while_writing_starts_again_cleanly(folder, whole, tmp_path):
    killer = (
        "import os, signal, sys\n"
        "from input_pipeline import prepare\n"
        "from input_pipeline.prepared import builder\n"
        "def write(self, write=builder.DeepfakeFaces.write):\n"
        "    written = iter(range(20))\n"
        "    self._on_written = lambda: next(written, None) is None and os.kill(os.getpid(), 9)\n"
        "    write(self)\n"
        "builder.DeepfakeFaces.write = write\n"
        "prepare.main()\n"
    )
    flags = [f"--source={folder}", f"--out={tmp_path}"]
    killed = subprocess.run([sys.executable, "-c", killer, *flags], capture_output=True, timeout=60)
    assert killed.returncode == -9
    assert list((tmp_path / builder.NAME).glob("incomplete.*"))
    with pytest.raises(UserError):
        sources.open_source(str(tmp_path), "Train")
    run(*flags)
    assert not list((tmp_path / builder.NAME).glob("incomplete.*"))
    again = sources.open_source(str(tmp_path), "Train")
    assert list(again.ids) == list(sources.open_source(str(whole), "Train").ids)


def test_tensorflow_is_imported_neither_by_writing_nor_by_reading(folder, tmp_path):
    code = (
        "import sys\n"
        "from input_pipeline import prepare, sources\n"
        "prepare.main()\n"
        "source = sources.open_source(sys.argv[2].removeprefix('--out='), 'Train')\n"
        "assert source.encoded(0)[:2] == bytes([255, 216])\n"
        "assert 'tensorflow' not in sys.modules, 'TensorFlow was imported'\n"
    )
    flags = [f"--source={folder}", f"--out={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_split_larger_than_tfds_holds_in_memory_needs_no_tensorflow(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)  # of 1 GB
    run(f"--source={folder}", f"--out={tmp_path}")
    assert len(sources.open_source(str(tmp_path), "Train")) == 12


def test_user_errors_are_one_line_and_status_2(folder, whole, tmp_path):
    (tmp_path / "file").write_text("")
    done = command(f"--source={folder}", f"--out={tmp_path / 'file' / 'out'}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "cannot be written" in done.stderr
    for source, out, message in (
        (tmp_path / "none", tmp_path / "out", "does not exist"),
        (whole, tmp_path / "out", "prepared set already"),
        (folder, folder / "out", "inside the source"),
    ):
        with pytest.raises(UserError, match=message):
            run(f"--source={source}", f"--out={out}")


@pytest.mark.parametrize("flags", [[], ["--faces"]])
def test_a_link_to_itself_as_out_is_one_line(folder, tmp_path, flags):
    (tmp_path / "loop").symlink_to("loop")
    done = command(f"--source={folder}", f"--out={tmp_path / 'loop'}", *flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]  # after a bar, with --faces
    assert last.startswith("error: ") and str(tmp_path / "loop") in last


def test_a_disk_too_small_is_said_before_anything_is_written(folder, tmp_path, monkeypatch):
    usage = prepare.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="are free"):
        run(f"--source={folder}", f"--out={tmp_path}")
    assert not list(tmp_path.rglob("*.array_record*"))


def test_kaggle_takes_what_kagglehub_downloaded_or_says_that_it_is_missing(folder, tmp_path):
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "Dataset").symlink_to(folder)
    (tmp_path / "kagglehub.py").write_text(
        "def dataset_download(name):\n"
        "    assert name == 'manjilkarki/deepfake-and-real-images'\n"
        f"    return {str(archive)!r}\n"
    )
    done = command("--source=kaggle", f"--out={tmp_path / 'out'}", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    ids = sources.open_source(str(tmp_path / "out"), "Test").ids
    assert ids[0] == "Dataset/Test/Fake/0.jpg"

    (tmp_path / "kagglehub.py").write_text("raise ImportError('not installed')")
    done = command("--source=kaggle", f"--out={tmp_path / 'none'}", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install -e '.[kaggle]'" in done.stderr


def test_faces_are_cut_out_once_and_those_without_are_listed(tmp_path):
    source, out = tmp_path / "photos", tmp_path / "faces"
    wall = np.full((300, 420, 3), 130, np.uint8)
    for name, picture in (("wall.png", wall), ("two.jpg", wall.copy())):
        (source / "Train" / "Real").mkdir(parents=True, exist_ok=True)
        if name == "two.jpg":
            picture[60:252, 20:212] = cv2.resize(demo.draw(7, 1)[0], (192, 192))
            picture[90:186, 300:396] = cv2.resize(demo.draw(7, 1)[0], (96, 96))
        cv2.imwrite(str(source / "Train" / "Real" / name), picture[..., ::-1])
    flags = [f"--source={source}", f"--out={out}", "--faces"]
    done = command(*flags)
    assert "1 faces of 2 pictures" in done.stdout
    assert (out / "no_face.txt").read_text() == "Train/Real/wall.png\tno face found\n"
    (file,) = (out / "Train" / "Real").iterdir()
    with Image.open(file) as face:
        assert (face.size, face.format) == ((160, 160), "JPEG")
        found = faces.FaceFinder()(np.asarray(face))
    assert len(found) == 1 and found[0].box[2] > 0.75 * 160  # the larger one, all of it
    file.write_bytes(b"kept")
    command(*flags)
    assert file.read_bytes() == b"kept"


def test_no_face_in_any_picture_is_said_and_listed(tmp_path):
    source, out = tmp_path / "photos", tmp_path / "new" / "faces"
    (source / "Train" / "Real").mkdir(parents=True)
    wall = np.full((300, 420, 3), 130, np.uint8)
    cv2.imwrite(str(source / "Train" / "Real" / "wall.png"), wall)
    with pytest.raises(UserError, match=r"none of its 1 pictures gave a face: .*no_face\.txt"):
        run(f"--source={source}", f"--out={out}", "--faces")
    assert (out / "no_face.txt").read_text() == "Train/Real/wall.png\tno face found\n"


def test_faces_of_one_name_in_two_folders_are_both_written(tmp_path):
    source, out = tmp_path / "photos", tmp_path / "faces"
    for video in ("v1", "v2"):
        (source / "Train" / "Real" / video).mkdir(parents=True)
        picture = cv2.resize(demo.draw(7, 1)[0], (192, 192))[..., ::-1]
        cv2.imwrite(str(source / "Train" / "Real" / video / "0.jpg"), picture)
    run(f"--source={source}", f"--out={out}", "--faces")
    found = sorted(file.relative_to(out).as_posix() for file in out.rglob("*.jpg"))
    assert found == ["Train/Real/v1/0.jpg", "Train/Real/v2/0.jpg"]


def test_faces_that_cannot_be_written_are_no_pictures_without_a_face(tmp_path):
    source, out = tmp_path / "photos", tmp_path / "faces"
    (source / "Train" / "Real").mkdir(parents=True)
    picture = cv2.resize(demo.draw(7, 1)[0], (192, 192))[..., ::-1]
    cv2.imwrite(str(source / "Train" / "Real" / "0.jpg"), picture)
    out.mkdir()
    (out / "Train").write_text("a file where a folder is needed")
    with pytest.raises(OSError):
        run(f"--source={source}", f"--out={out}", "--faces")
    assert not (out / "no_face.txt").exists()


def test_what_was_found_and_passed_over_is_said(tmp_path, capsys):
    root = write_set(tmp_path / "set", 2)
    (tmp_path / "set/Train/Real/notes.txt").write_text("no picture")
    assert run(f"--source={root}", f"--out={tmp_path / 'out'}") is None
    said = capsys.readouterr().out
    assert "Train: 4 pictures (2 fake, 2 real); 1 file passed over: 1 .txt\n" in said


def test_a_copy_within_one_split_is_no_leak(tmp_path):
    root = pathlib.Path(write_set(tmp_path / "set", 2, splits=("Train", "Test")))
    shutil.copy(root / "Train/Fake/0.jpg", root / "Train/Fake/again.jpg")
    shutil.copy(root / "Test/Real/0.jpg", root / "Train/Real/leaked.jpg")
    run(f"--source={root}", f"--out={tmp_path / 'out'}", "--drop_leaks")
    kept = sources.open_source(str(tmp_path / "out"), "Train").ids
    assert {"Train/Fake/0.jpg", "Train/Fake/again.jpg"} <= set(kept)
    assert "Train/Real/leaked.jpg" not in kept
    assert report_of(tmp_path / "out")["within_splits"]["Train"]["exact_repeats"] == 1
