"""What is killed or damaged in the middle of a job: no row is lost, and none is there twice.

Each job has a real Ray of its own, on loopback.
"""

import pathlib
import signal
import subprocess

import numpy as np
import psutil
import pytest

from tests.fleet_job import Job, parts
from tests.pictures import encoded, smooth

pytest.importorskip("ray", reason="needs the extra `ray`")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> pathlib.Path:
    """A list of 3,000 rows over 40 pictures, every twentieth of which cannot be read."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(40):
        data = encoded(smooth(150 + i, 200, i))
        (root / f"{i}.jpg").write_bytes(data if i % 20 else data[:90])
    listed = root / "list.txt"
    listed.write_text("\n".join(str(root / f"{i % 40}.jpg") for i in range(3000)))
    return listed


def flags(pictures, detector, out) -> list[str]:
    return [f"--input={pictures}", f"--checkpoint={detector}", f"--out={out}", "--shard_rows=100"]


def check(found: list[dict], pictures) -> None:
    """Every row of the list, with its own answer: that of its picture wherever it stands."""
    assert [row["path"] for row in found] == pictures.read_text().split()
    for i, row in enumerate(found):
        assert (row["error"] is not None) == (i % 20 == 0)
        if i % 20:
            assert row["p_fake"] == pytest.approx(found[i % 40]["p_fake"], abs=1e-5)
    assert len({round(row["p_fake"], 5) for row in found if row["p_fake"]}) > 30


@pytest.mark.slow
# On a fast machine everything is decoded before the second shard is written.
@pytest.mark.parametrize(("victim", "shards"), [("Scorer", 2), ("Decoder", 0)])
def test_a_process_that_is_killed_costs_no_row(
    pictures, detector, compiled, tmp_path, rows, victim, shards
):
    with Job(*flags(pictures, detector, tmp_path), compiled=compiled) as job:
        job.wait_for(lambda: len(parts(tmp_path)) >= shards, "shards")
        for process in job.wait_for(lambda: job.find(victim), victim):
            process.kill()
        said = job.end(1)
    assert "3,000 pictures: 2,850 scored" in said
    check(rows(tmp_path), pictures)


@pytest.mark.slow
def test_the_driver_killed_and_started_again_goes_on(pictures, detector, compiled, tmp_path, rows):
    with Job(*flags(pictures, detector, tmp_path), compiled=compiled) as job:
        job.wait_for(lambda: len(parts(tmp_path)) >= 3, "shards")
        # Ray's two helpers for environments and metrics take minutes to notice.
        below = [p for p in job.below() if "Agent" not in p.name()]
        job.process.send_signal(signal.SIGKILL)
        job.process.wait(30)
        # What it had started goes with it.
        _, left = psutil.wait_procs(below, timeout=60)
        assert not left
    before = {file: file.stat().st_mtime_ns for file in parts(tmp_path)}
    assert 3 <= len(before) < 30
    with Job(*flags(pictures, detector, tmp_path), compiled=compiled) as job:
        said = job.end(1)
    assert f"{100 * len(before):,} done already" in said
    assert {file: file.stat().st_mtime_ns for file in before} == before
    check(rows(tmp_path), pictures)


@pytest.mark.slow
def test_a_damaged_row_group_is_errors_and_the_rest_is_scored(detector, compiled, tmp_path, rows):
    data = [encoded(smooth(100, 100, i)) for i in range(60)]
    table = pa.table({"image": [{"bytes": b, "path": f"{i}.jpg"} for i, b in enumerate(data)]})
    file = tmp_path / "set.parquet"
    pq.write_table(table, file, row_group_size=20, compression="none")
    content = bytearray(file.read_bytes())
    at = content.index(data[20]) - 40
    content[at : at + 60] = b"\xff" * 60
    file.write_bytes(content)
    out = tmp_path / "out"
    arguments = [f"--input={file}", f"--checkpoint={detector}", f"--out={out}", "--shard_rows=10"]
    with Job(*arguments, compiled=compiled) as job:
        job.end(1)
    found = rows(out)
    assert len(found) == 60
    assert [row["error"] is not None for row in found] == [20 <= i < 40 for i in range(60)]
    assert all(row["p_fake"] is not None for row in found[:20] + found[40:])


@pytest.mark.slow
def test_a_huge_picture_among_small_ones_kills_nobody(detector, compiled, tmp_path, rows):
    """100 megapixels: 300 MB decoded, 0.6 MB as a file."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(60):
        (folder / f"{i:02}.jpg").write_bytes(encoded(smooth(120, 120, i)))
    wide = np.full((10_000, 10_000, 3), 90, np.uint8)
    wide[:5000] = 200
    (folder / "30_huge.jpg").write_bytes(encoded(wide, quality=30))
    out = tmp_path / "out"
    arguments = [f"--input={folder}", f"--checkpoint={detector}", f"--out={out}"]
    with Job(*arguments, compiled=compiled) as job:
        job.end(0)
    found = rows(out)
    assert len(found) == 61 and all(row["p_fake"] is not None for row in found)


@pytest.fixture
def killer(tmp_path):
    """Makes a folder for PYTHONPATH: any process of Ray that opens a file so named is killed, as if
    it had taken more memory than there is. The job is blind to it."""

    def make(ending: str) -> pathlib.Path:
        (tmp_path / "hook").mkdir()
        (tmp_path / "hook" / "sitecustomize.py").write_text(
            "import os, sys\n"
            "def watch(event, args):\n"
            "    if event != 'open' or 'ray' not in sys.modules:\n"
            "        return\n"
            f"    if str(args[0]).endswith({ending!r}):\n"
            "        os.kill(os.getpid(), 9)\n"
            "sys.addaudithook(watch)\n"
        )
        return tmp_path / "hook"

    return make


def drawn(detector, tmp_path, count):
    """(the output folder, the arguments) of a job over `count` drawn pictures, 00.jpg, 01.jpg, …"""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:02}.jpg").write_bytes(encoded(smooth(120, 120, i)))
    return out, [f"--input={folder}", f"--checkpoint={detector}", f"--out={out}"]


@pytest.mark.slow
def test_a_picture_that_kills_whoever_reads_it_is_an_error_of_its_row(
    detector, compiled, tmp_path, rows, killer
):
    out, arguments = drawn(detector, tmp_path, 40)
    with Job(*arguments, compiled=compiled, path=killer("/17.jpg")) as job:
        said = job.end(1)
    assert "40 pictures: 39 scored" in said
    found = rows(out)
    assert [row["row"] for row in found if row["error"]] == [17]
    assert "was killed" in found[17]["error"]


@pytest.mark.slow
def test_a_job_in_which_nothing_is_answered_is_no_list_of_errors(
    detector, compiled, tmp_path, killer
):
    out, arguments = drawn(detector, tmp_path, 2)
    with Job(*arguments, compiled=compiled, path=killer(".jpg")) as job:
        said = job.end(2)
    assert said.splitlines()[-1].startswith("error: none of 2 pictures was answered")
    assert not parts(out)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_job_goes_on_later(
    pictures, detector, compiled, tmp_path, rows
):
    out = tmp_path / "out"
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(out)]
    out.mkdir()
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        with Job(*flags(pictures, detector, out), compiled=compiled) as job:
            job.wait_for(lambda: len(parts(out)) >= 2, "shards")
            _fill(out / "hog")
            said = job.end(2)
        assert said.splitlines()[-1].startswith("error: No space left on device")
        assert 2 <= len(parts(out)) < 30
        (out / "hog").unlink()
        with Job(*flags(pictures, detector, out), compiled=compiled) as job:
            job.end(1)
        check(rows(out), pictures)
    finally:
        subprocess.run(["umount", str(out)], check=True)


def _fill(hog: pathlib.Path) -> None:
    """Writes until the disk refuses; the job takes space of its own meanwhile."""
    with hog.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
