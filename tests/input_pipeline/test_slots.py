"""A cache of decoded pictures changes how long batches take and nothing else."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline import cli, slots, transforms
from input_pipeline.batches import train_batches
from input_pipeline.mixtures import Mixture
from input_pipeline.sources import FileSource, open_source
from tests.pictures import encoded, smooth, write_set

SIDE = 32
TRANSFORM = transforms.Transform(size=28, shorter_px=SIDE, crop="resize")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """12 pictures of three sizes."""
    monkeypatch.setenv("MNV4_CACHE", str(tmp_path / "cache"))
    write_set(tmp_path / "set", per_class=6)
    for i, side in enumerate((32, 50, 20)):
        (tmp_path / f"set/Train/Real/{i}.jpg").write_bytes(encoded(smooth(side, side + i, i)))
    return open_source(str(tmp_path / "set"), "Train")


def opened(source, form="host", gib=1.0, say=lambda line: None):
    return slots.open_for(source, SIDE, form, gib, say)


def batches(source, cached, n=9, on_bad=None, blended=0.0, webp=0.0, workers=0, **fields):
    transform = dataclasses.replace(TRANSFORM, **fields)
    arguments = {"seed": 3, "slots": cached, "on_bad": on_bad, "blended": blended, "webp": webp}
    arguments["workers"] = workers
    with train_batches(source, transform, batch_size=4, threads=2, **arguments) as found:
        return [next(found) for _ in range(n)]


def assert_equal(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize(
    "fields", [{}, {"crop": "native"}, {"zoom": (0.5, 1.2)}, {"blended": 0.7, "webp": 0.5}]
)
def test_the_same_bits_while_it_fills_and_when_it_is_full(source, fields):
    without = batches(source, None, **fields)
    cached = opened(source)
    assert_equal(batches(source, cached, **fields), without)
    if "blended" not in fields:  # which takes only some of the pictures
        assert cached.filled() == len(source)
    assert_equal(batches(source, cached, **fields), without)
    assert_equal(batches(source, opened(source), **fields), without)  # as another process


def test_a_full_cache_decodes_nothing(source, monkeypatch):
    cached = opened(source)
    expected = batches(source, cached)
    monkeypatch.setattr(FileSource, "read", lambda *_: pytest.fail("decoded again"))
    assert_equal(batches(source, cached), expected)


@pytest.mark.slow
def test_worker_processes_share_it(source):
    cached = opened(source)
    assert_equal(batches(source, cached, workers=2), batches(source, None))
    assert cached.filled() == len(source)


def test_a_picture_that_changed_is_decoded_anew(source):
    batches(source, opened(source))
    path = source._paths[7]
    with open(path, "wb") as file:
        file.write(encoded(255 - smooth(40, 40, 99)))
    again = opened(source)
    assert again.sides(np.arange(12)).tolist().count(0) == 1
    assert_equal(batches(source, again), batches(source, None))


def test_pixels_that_changed_on_disk_are_not_used(source):
    cached = opened(source)
    batches(source, cached)
    with open(cached._folder / "pixels", "r+b") as file:
        file.seek(3 * SIDE * SIDE * 3 + 100)
        file.write(b"\x00\xff\x00")
    again = opened(source)
    assert again.sides(np.arange(12))[3] == 0
    assert_equal(batches(source, again), batches(source, None))


def test_a_record_without_its_pixels_is_no_picture(source, tmp_path):
    """What a power failure may leave behind: the order of writes is not that on disk."""
    cached = opened(source)
    batches(source, cached)
    pixels = cached._folder / "pixels"
    (tmp_path / "zeros").write_bytes(bytes(pixels.stat().st_size))
    os.replace(tmp_path / "zeros", pixels)  # not in place: threads may still read the old one
    assert opened(source).sides(np.arange(12)).max() == 0


def test_damaged_pictures_are_replaced_and_told_as_ever(source):
    os.truncate(source._paths[2], 30)
    without, told, told_again = [], [], []
    expected = batches(source, None, on_bad=lambda *bad: without.append(bad))
    cached = opened(source)
    assert_equal(batches(source, cached, on_bad=lambda *bad: told.append(bad)), expected)
    assert cached.complete()
    assert_equal(batches(source, cached, on_bad=lambda *bad: told_again.append(bad)), expected)
    assert without == told == told_again and len(told) == 1


def test_a_picture_that_is_gone_is_told_as_ever(source):
    os.remove(source._paths[0])  # whose stamp is part of the folder's name
    without, told = [], []
    expected = batches(source, None, on_bad=lambda *bad: without.append(bad))
    assert_equal(batches(source, opened(source), on_bad=lambda *bad: told.append(bad)), expected)
    assert without == told and len(told) == 1


def test_resident_batches_name_the_crops_of_the_others(source):
    os.truncate(source._paths[2], 30)
    cached = opened(source)
    expected = batches(source, cached)
    for ours, theirs in zip(batches_resident(source, cached), expected, strict=True):
        for (index, top, left), image in zip(ours["crop"], theirs["image"], strict=True):
            square = cached.pixels(index, SIDE)
            np.testing.assert_array_equal(square[top : top + 28, left : left + 28], image)
        np.testing.assert_array_equal(ours["index"], theirs["index"])


def batches_resident(source, cached):
    arguments = {"seed": 3, "slots": cached, "resident": True}
    with train_batches(source, TRANSFORM, batch_size=4, threads=2, **arguments) as found:
        return [next(found) for _ in range(9)]


def test_sets_that_differ_have_caches_that_differ(source, tmp_path):
    other = open_source(write_set(tmp_path / "other", per_class=6), "Train")
    mixture = Mixture(["a", "b"], [source, other])
    third = open_source(write_set(tmp_path / "third", per_class=6), "Train")
    of_same_names = Mixture(["a", "b"], [source, third])
    folders = {opened(s)._folder for s in (source, other, mixture, of_same_names)}
    folders.add(slots.open_for(source, SIDE + 1, "host", 1.0, lambda line: None)._folder)
    assert len(folders) == 5
    assert_equal(batches(mixture, opened(mixture), 12), batches(mixture, None, 12))


def test_the_set_used_longest_ago_makes_room(source, tmp_path):
    first = opened(source)
    batches(source, first)
    taken = sum(path.stat().st_blocks * 512 for path in first._folder.iterdir())
    other = open_source(write_set(tmp_path / "other", per_class=6), "Train")
    room = (taken + 12 * SIDE * SIDE * 3 + 100) / 2**30
    opened(other, gib=room)
    assert first._folder.exists()
    opened(other, gib=room - 200 / 2**30)
    assert not first._folder.exists()
    assert_equal(batches(source, first), batches(source, None))  # who has it open keeps it


def test_no_room_is_said_and_is_an_error_where_it_was_asked_for(source):
    said = []
    assert opened(source, "auto", 1e-6, said.append) is None
    assert "decoded anew in every epoch: 0.00 GiB needed" in said[0]
    with pytest.raises(cli.UserError, match=r"config\.data\.cache=host: no cache .* needed"):
        opened(source, "host", 1e-6)
    assert opened(source, "none") is None


def test_what_was_chosen_is_said(source):
    said = []
    batches(source, opened(source, "auto", say=said.append))
    opened(source, "auto", say=said.append)
    assert "12 pictures of 32 px, 0 there already" in said[0]
    assert "12 there already" in said[1]


@pytest.mark.slow
def test_a_full_disk_ends_the_filling_and_nothing_else(source, tmp_path, monkeypatch, caplog):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    monkeypatch.setenv("MNV4_CACHE", str(disk))
    try:
        cached = opened(source)
        assert_equal(batches(source, cached), batches(source, None))
        assert 0 < cached.filled() < 12 and "takes no more pictures" in caplog.text
        assert caplog.text.count("takes no more") == 1
        del cached
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


_FILL = """
import sys
from input_pipeline import slots
from input_pipeline.sources import open_source
from tests.input_pipeline.test_slots import batches
source = open_source(sys.argv[1], "Train")
cached = slots.open_for(source, 32, "host", 1.0, lambda line: None)
print("ready", flush=True)
while True:
    batches(source, cached, 3)
    for i in range(12):
        cached._checked[i] = False
        cached._write_record(i, 0, 0, b"")
"""


@pytest.mark.slow
def test_a_kill_while_it_fills_leaves_no_wrong_pixels(source, tmp_path):
    expected = batches(source, None)
    for _ in range(5):
        filling = subprocess.Popen(
            [sys.executable, "-c", _FILL, str(tmp_path / "set")], stdout=subprocess.PIPE
        )
        assert filling.stdout.readline() == b"ready\n"
        batches(source, opened(source), 30)  # beside it
        filling.send_signal(signal.SIGKILL)
        filling.wait(timeout=60)
        assert_equal(batches(source, opened(source)), expected)
    shutil.rmtree(opened(source)._folder)


def test_squares_are_what_is_kept(source):
    cached = opened(source)
    batches(source, cached)
    for i in range(12):
        square = transforms.square(source.read(i), TRANSFORM)
        np.testing.assert_array_equal(cached.pixels(i, SIDE), square)
