"""What --input may be, listed and read without Ray; the oracle is the files' own bytes."""

import io
import os
import pathlib
import tarfile

import pytest

from input_pipeline.cli import UserError
from tests.pictures import encoded, smooth

fsspec = pytest.importorskip("fsspec", reason="needs the extra `ray`")
pa = pytest.importorskip("pyarrow", reason="needs the extra `ray`")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra `ray`")
inputs = pytest.importorskip("mnv4_jax.fleet.inputs")
plan = pytest.importorskip("mnv4_jax.fleet.plan")
reading = pytest.importorskip("mnv4_jax.fleet.reading")
Store = pytest.importorskip("mnv4_jax.fleet.store").Store
pytestmark = pytest.mark.ray

PICTURES = [encoded(smooth(40, 40, phase)) for phase in range(7)]


def read_all(source, column=None) -> tuple[list[str], list]:
    given = inputs.open_input(str(source), column)
    entries = list(given.entries)
    found = list(reading.read(entries, given.kind, given.column))
    return [os.fsdecode(entry.path) for entry in entries], found


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    root = tmp_path / "set"
    for i, data in enumerate(PICTURES):
        file = root / f"{i % 2}" / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (root / "notes.txt").write_text("no picture")
    return root


def expected(folder) -> tuple[list[str], list[bytes]]:
    files = sorted(folder.glob("*/*.jpg"))
    return [str(file) for file in files], [file.read_bytes() for file in files]


def parquet_set(file, *, rows=7, group=3, paths=True, struct=True) -> pathlib.Path:
    """As Hugging Face writes pictures, or with plain columns."""
    names = [f"{i}.jpg" for i in range(rows)]
    data = [PICTURES[i % 7] for i in range(rows)]
    if struct:
        pairs = zip(data, names, strict=True)
        table = {"image": [{"bytes": b, "path": n if paths else None} for b, n in pairs]}
    else:
        table = {"jpg": data} | ({"path": names} if paths else {})
    pq.write_table(pa.table(table), file, row_group_size=group, compression="none")
    return file


def write_tar(file, pictures=PICTURES) -> pathlib.Path:
    """As webdataset does: the files of a sample follow each other."""
    with tarfile.open(file, "w") as tar:
        for i, data in enumerate(pictures):
            for ending, content in ((".cls", b"1"), (".jpg", data)):
                member = tarfile.TarInfo(f"{i:05}{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file


def test_a_folder_is_walked_and_a_glob_matched(folder):
    assert read_all(folder) == expected(folder)
    names, data = expected(folder)
    assert read_all(folder / "1" / "*.jpg") == (names[4:], data[4:])
    assert "1 .txt" in inputs.open_input(str(folder)).note


def test_a_list_of_paths_and_urls_is_read_where_it_points_to(folder, tmp_path, monkeypatch):
    names, data = expected(folder)
    fsspec.filesystem("memory").pipe_file("/bucket/a[1].jpg", PICTURES[3])
    listed = ["set/0/0.jpg", f"file://{names[1]}", "memory://bucket/a[1].jpg", names[0]]
    listed += ["memory://bucket/none.jpg", "gone.jpg"]
    (tmp_path / "list.txt").write_text("\r\n".join([*listed, ""]))
    pq.write_table(pa.table({"n": range(6), "url": listed}), tmp_path / "list.parquet")
    monkeypatch.chdir(tmp_path)
    for source in ("list.txt", "list.parquet"):
        given = inputs.open_input(source)
        entries = list(given.entries)
        monkeypatch.chdir("/")  # a worker has a folder of its own
        found = list(reading.read(entries, given.kind))
        monkeypatch.chdir(tmp_path)
        assert [os.fsdecode(e.path) for e in entries] == listed
        assert found[:4] == [PICTURES[0], data[1], PICTURES[3], data[0]]
        assert all(isinstance(error, OSError) for error in found[4:])


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("paths", [True, False])
def test_a_parquet_set_gives_the_bytes_in_its_column(tmp_path, struct, paths):
    file = parquet_set(tmp_path / "set.parquet", struct=struct, paths=paths)
    names, found = read_all(file)
    assert found == PICTURES
    assert names == [f"{i}.jpg" if paths else f"{file}#{i}" for i in range(7)]


def test_a_damaged_row_group_is_an_error_of_its_rows_alone(tmp_path):
    file = parquet_set(tmp_path / "set.parquet", rows=9, group=3)
    data = bytearray(file.read_bytes())
    at = data.index(PICTURES[3]) - 40  # the head of the page that holds the second group's pictures
    data[at : at + 60] = b"\xff" * 60
    file.write_bytes(data)
    _, found = read_all(file)
    assert found[:3] == PICTURES[:3]
    assert all(isinstance(error, OSError) and "\n" not in str(error) for error in found[3:6])
    assert found[6:] == [PICTURES[6], PICTURES[0], PICTURES[1]]


def test_rows_of_a_group_may_be_asked_for_alone(tmp_path):
    given = inputs.open_input(str(parquet_set(tmp_path / "set.parquet", group=7)))
    entries = list(given.entries)
    assert list(reading.read(entries[4:6], "parquet", given.column)) == PICTURES[4:6]


def test_tar_shards_as_webdataset_writes_them(tmp_path):
    file = write_tar(tmp_path / "0.tar")
    write_tar(tmp_path / "1.tar", PICTURES[:2])
    names, found = read_all(tmp_path)
    assert found == PICTURES + PICTURES[:2]
    assert names[0] == f"{file}/00000.jpg"
    assert read_all(tmp_path / "*.tar") == (names, found)


@pytest.mark.parametrize("where", ["in a picture", "in a header"])
def test_a_tar_that_was_cut_short_says_so_in_a_row(tmp_path, where):
    file = write_tar(tmp_path / "0.tar")
    data = file.read_bytes()
    at = data.index(PICTURES[5]) + 100 if where == "in a picture" else data.index(b"00005.jpg") + 50
    file.write_bytes(data[:at])
    _, found = read_all(file)
    assert found[:5] == PICTURES[:5]
    assert found[5:] and all(isinstance(error, OSError) for error in found[5:])


def test_a_prepared_set_gives_all_its_splits(picture_folder, tmp_path, monkeypatch):
    from input_pipeline import prepare

    monkeypatch.setattr("sys.argv", ["", f"--source={picture_folder}", f"--out={tmp_path}"])
    prepare.main()
    names, found = read_all(tmp_path)
    assert len(names) == 80 and names[0] == "Train/Fake/0.png"
    assert found == [(picture_folder / name).read_bytes() for name in names]


def test_bad_input_is_one_line_that_says_what_would_be_right(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"n": [1, 2]}), tmp_path / "numbers.parquet")
    file = parquet_set(tmp_path / "set.parquet")
    for source, column, message in (
        (tmp_path / "none", None, "no such file"),
        (tmp_path / "empty", None, "no picture"),
        (tmp_path / "*.png", None, "no file matches"),
        (folder / "notes.csv", None, "no such file"),
        (tmp_path / "broken.parquet", None, "not a Parquet file"),
        (tmp_path / "numbers.parquet", None, "no column of paths"),
        (file, "pixels", r"no column pixels \(found: image"),
        (folder, "image", "has no columns"),
        ("nonsense://bucket/x", None, "nonsense"),
        ("", None, "is empty"),
    ):
        with pytest.raises(UserError, match=message):
            list(inputs.open_input(str(source), column).entries)


def test_the_plan_depends_on_the_list_alone_and_keeps_it(folder, tmp_path):
    def planned(name, source, **options):
        store = Store(str(tmp_path / name))
        store.make()
        made = plan.write(inputs.open_input(str(source)), store, **options)
        plan.adopt(store)
        return store, made

    store, made = planned("a", folder, shard_rows=3)
    assert made.rows.tolist() == [3, 3, 1]
    assert made.chunks.tolist() == [[0, 0, 3], [1, 0, 3], [2, 0, 1]]
    listed = [plan.entries(store, shard) for shard in range(3)]
    assert [entry for shard in listed for entry in shard] == list(
        inputs.open_input(str(folder)).entries
    )
    assert plan.entries(store, 1, 1, 3) == listed[1][1:]
    assert planned("b", folder, shard_rows=3)[1].digest == made.digest
    limited = planned("c", folder, shard_rows=3, limit=4)[1]
    assert limited.rows.tolist() == [3, 1]
    (folder / "0" / "0.jpg").rename(folder / "0" / "other.jpg")
    assert len({made.digest, limited.digest, planned("d", folder, shard_rows=3)[1].digest}) == 3


def test_a_row_group_stays_in_one_shard_and_one_chunk(tmp_path):
    file = parquet_set(tmp_path / "set.parquet", rows=700, group=100)
    store = Store(str(tmp_path / "out"))
    store.make()
    made = plan.write(inputs.open_input(str(file)), store, shard_rows=150)
    assert made.rows.tolist() == [200, 200, 200, 100]
    assert made.chunks[:3].tolist() == [[0, 0, 100], [0, 100, 200], [1, 0, 100]]


def test_large_jobs_take_larger_tasks_within_a_shard():
    spans = [[s, i * 256, min((i + 1) * 256, 10_000)] for s in range(300) for i in range(40)]
    chunks = plan.np.array(spans)
    joined = plan.tasks(chunks)
    assert joined[:5].tolist() == [[0, i * 512, (i + 1) * 512] for i in range(5)]
    sizes = joined[:, 2] - joined[:, 1]
    assert sizes.sum() == 3_000_000 and sizes.max() <= 750
    for shard in (0, 299):
        of_shard = joined[joined[:, 0] == shard]
        assert of_shard[0, 1] == 0 and of_shard[-1, 2] == 10_000
        assert (of_shard[1:, 1] == of_shard[:-1, 2]).all()
    assert plan.tasks(chunks[:40]).tolist() == chunks[:40].tolist()


@pytest.mark.parametrize("where", ["memory://bucket/job", "file"])
def test_a_store_has_whole_files_under_their_own_names(where, tmp_path):
    store = Store(f"file://{tmp_path}" if where == "file" else where)
    store.make()
    assert store.names("scores") == []
    store.write("scores/a.parquet", b"first")
    store.write("scores/a.parquet", b"second")
    pathlib.Path(store.draft("plan")).write_bytes(b"plan")
    store.put("plan")
    assert (store.read("scores/a.parquet"), store.read("plan")) == (b"second", b"plan")
    assert store.names("scores") == ["a.parquet"]
    assert store.exists("plan") and not store.exists("other")
