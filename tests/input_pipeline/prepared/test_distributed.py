"""`prepare --ray` gives the set and the report of one process, by a real Ray of this machine."""

import contextlib
import json
import pathlib
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.decode import DeserializeMethod
from tensorflow_datasets.core.utils import shard_utils
from tensorflow_datasets.proto import tf_example_pb2

from input_pipeline import engine, prepare, sources
from tests.pictures import encoded, smooth

ray = pytest.importorskip("ray", reason="needs the extra `ray`")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """600 pictures in Train, 20 in Test: copies within and across splits, exact and near, flat and
    unreadable ones, and groups in Train."""
    root = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)

    def picture(quality=95) -> bytes:
        coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
        return encoded(cv2.resize(coarse, (48, 40), interpolation=cv2.INTER_CUBIC), quality=quality)

    for split, count in (("Train", 300), ("Test", 10)):
        for name in ("Fake", "Real"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i:03}.jpg").write_bytes(picture())
    train, test = root / "Train", root / "Test"
    for i in range(5):
        shutil.copy(test / f"Real/{i:03}.jpg", train / f"Fake/{290 + i}.jpg")
        shutil.copy(train / f"Real/{i:03}.jpg", train / f"Real/{290 + i}.jpg")
        pixels = cv2.imread(str(test / f"Fake/{i:03}.jpg"))
        cv2.imwrite(str(train / f"Fake/{280 + i}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 60])
    (train / "Fake/100.jpg").write_bytes(b"no picture")
    (test / "Real/009.jpg").write_bytes(encoded(smooth(40, 40))[:200])
    for i in (7, 8):
        (train / f"Fake/{i:03}.jpg").write_bytes(encoded(np.full((40, 40, 3), 100 + i, np.uint8)))
    rows = [f"{p.parent.name}/{p.name},video_{p.stem}" for p in train.glob("*/*.jpg")]
    (train / "groups.csv").write_text("\n".join(["file,group", *rows]))
    return root


def run(monkeypatch, *flags: str) -> None:
    monkeypatch.setattr("sys.argv", ["prepare", *map(str, flags)])
    prepare.main()


def shards_of(out: pathlib.Path) -> dict[str, list]:
    """By file: the examples in it, in order; fields of a record may stand in any order."""
    (info,) = out.rglob("dataset_info.json")
    found = {}
    for split in tfds.builder_from_directory(info.parent).info.splits.values():
        lengths, start = split.shard_lengths, 0
        records = tfds.builder_from_directory(info.parent).as_data_source(
            split.name, deserialize_method=DeserializeMethod.RAW_BYTES
        )
        for path, length in zip(split.filepaths, lengths, strict=True):
            some = [records[i] for i in range(start, start + length)]
            found[path.name] = [tf_example_pb2.Example.FromString(record) for record in some]
            start += length
    return found


@pytest.mark.parametrize("drop_leaks", [False, True])
def test_the_set_and_the_report_are_those_of_one_process(
    folder, cluster, tmp_path, monkeypatch, drop_leaks
):
    monkeypatch.setattr(shard_utils.ShardConfig, "min_shard_size", 100_000)  # of 64 MiB
    monkeypatch.setattr(engine, "running", lambda address: contextlib.nullcontext(ray))
    flags = [f"--source={folder}"] + ["--drop_leaks"] * drop_leaks
    run(monkeypatch, *flags, f"--out={tmp_path / 'one'}")
    run(monkeypatch, *flags, f"--out={tmp_path / 'ray'}", "--ray")
    one, by_ray = tmp_path / "one", tmp_path / "ray"
    shards = shards_of(one)
    assert len(shards) > 3
    assert shards_of(by_ray) == shards
    for name in ("leaks.json", "leaks.md", "*/*/dataset_info.json", "*/*/metadata.json"):
        (ours,), (theirs,) = by_ray.glob(name), one.glob(name)
        assert ours.read_bytes() == theirs.read_bytes()
    report = json.loads((one / "leaks.json").read_text())
    assert len(report["exact"]) == 10 and len(report["near"]) >= 5
    assert len(report["unreadable"]) == 2
    assert {file.name for file in by_ray.iterdir()} == {file.name for file in one.iterdir()}
    kept = sources.open_source(str(by_ray), "Train").ids
    assert ("Train/Fake/290.jpg" in kept) == (not drop_leaks)


def test_the_command_joins_a_cluster_and_bad_flags_are_one_line(folder, cluster, tmp_path):
    def command(*flags):
        return subprocess.run(
            [sys.executable, "-m", "input_pipeline.prepare", f"--source={folder}", *flags],
            capture_output=True,
            text=True,
            timeout=200,
        )

    done = command(f"--out={tmp_path / 'out'}", f"--ray={cluster}")
    assert done.returncode == 0, done.stderr
    assert "written: Train 599, Test 19" in done.stdout
    for flags, message in (
        (["--ray=127.0.0.1:1"], "nobody answers"),
        (["--ray=here"], "expected HOST:PORT"),
        (["--ray", "--faces"], "--faces runs in one process"),
    ):
        done = command(f"--out={tmp_path / 'none'}", *flags)
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1]
