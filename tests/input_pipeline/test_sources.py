"""Folders are understood as people have them, and what is wrong with one is said in a line."""

import pickle

import numpy as np
import pytest

from input_pipeline.cli import UserError
from input_pipeline.sources import FileSource, has_split, open_source
from tests.pictures import encoded, smooth, write_set


def _touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_the_kaggle_layout_gives_sorted_ids_labels_and_bytes(tmp_path):
    files = ["Train/Fake/10.jpg", "Train/Fake/9.jpg", "Train/Real/a.jpg", "Train/Real/b.jpg"]
    _touch(tmp_path, *reversed(files))
    source = open_source(str(tmp_path), "train")
    assert source.ids == files
    np.testing.assert_array_equal(source.labels, np.int32([0, 0, 1, 1]))
    assert source.labels.dtype == np.int32 and len(source) == 4 and source.groups is None
    assert [source.encoded(i) for i in range(4)] == [name.encode() for name in source.ids]
    assert pickle.loads(pickle.dumps(source)).encoded(2) == b"Train/Real/a.jpg"


@pytest.mark.parametrize("top", ["", "Dataset/", "deepfakes v2/"])
def test_any_case_any_picture_extension_and_an_archives_top_folder(tmp_path, top):
    good = [f"{top}TRAIN/fake/x.JPG", f"{top}TRAIN/fake/y.webp", f"{top}TRAIN/REAL/z.jPeg"]
    junk = ["TRAIN/fake/._x.JPG", "TRAIN/fake/Thumbs.db", "TRAIN/REAL/.DS_Store", ".cache/Train/a"]
    _touch(tmp_path, *good, *(top + name for name in junk), "__MACOSX/Train/Fake/._x.jpg")
    source = open_source(str(tmp_path), "Train")
    assert source.ids == good
    np.testing.assert_array_equal(source.labels, [0, 0, 1])
    assert has_split(str(tmp_path), "train") and not has_split(str(tmp_path), "Test")


def test_the_same_names_from_the_folder_itself_and_from_a_relative_path(tmp_path, monkeypatch):
    write_set(tmp_path / "Dataset", 2)
    monkeypatch.chdir(tmp_path)
    ids = open_source(str(tmp_path / "Dataset"), "Train").ids
    for spelling in ("Dataset", "Dataset/", "./Dataset"):
        assert open_source(spelling, "Train").ids == ids
    assert open_source(".", "Train").ids == [f"Dataset/{name}" for name in ids]


def test_groups_come_from_the_file_beside_the_class_folders(tmp_path):
    _touch(tmp_path, "Test/Fake/a.jpg", "Test/Real/a.jpg")
    (tmp_path / "Test/groups.csv").write_text("file,group\nReal/a.jpg,v1\nFake/a.jpg,v2\n")
    assert open_source(str(tmp_path), "Test").groups == ["v2", "v1"]
    # The folders may be of any case, the file of an old Windows.
    (tmp_path / "Test/groups.csv").write_bytes(b"file,group\nreal/a.jpg,v\xe9\nFAKE\\a.jpg,v2\n")
    assert len(set(open_source(str(tmp_path), "Test").groups)) == 2
    twice = "file,group\nReal/a.jpg,v1\nFake/a.jpg,v2\nReal/a.jpg,v3\n"
    (tmp_path / "Test/groups.csv").write_text(twice)
    with pytest.raises(UserError, match=r"groups.csv: Real/a.jpg is in the groups v1 and v3"):
        _ = open_source(str(tmp_path), "Test").groups
    (tmp_path / "Test/groups.csv").write_text(f'file,group\nReal/a.jpg,"{"v" * 200_000}\n')
    with pytest.raises(
        UserError, match=r"groups.csv, after line 1: field larger than .* quotation mark"
    ):
        _ = open_source(str(tmp_path), "Test").groups
    (tmp_path / "Test/groups.csv").write_text("file,group\nReal/a.jpg,v1\n")
    with pytest.raises(UserError, match=r"groups.csv: no group for Fake/a.jpg"):
        _ = open_source(str(tmp_path), "Test").groups
    _touch(tmp_path / "named", "Test/original/v1/0.jpg", "Test/deepfake/v1/0.jpg")
    rows = "file,group\nReal/v1/0.jpg,g1\ndeepfake/v1/0.jpg,g2\n"
    (tmp_path / "named/Test/groups.csv").write_text(rows)
    assert open_source(str(tmp_path / "named"), "Test").groups == ["g2", "g1"]
    (tmp_path / "Test/groups.csv").write_text("name;video\n")
    with pytest.raises(UserError, match="columns file,group"):
        _ = open_source(str(tmp_path), "Test").groups


@pytest.mark.parametrize(
    "files, said",
    [
        ([], r"no Train folder \(found: no folder\)"),
        (["Test/Fake/a.jpg", "Test/Real/a.jpg"], r"no Train folder \(found: Test\)"),
        (["Train/Fake/a.jpg"], r"Train: no Real folder"),
        (["Train/Fake/a.jpg", "Train/Real/a.txt"], r"Train/Real: no pictures; expected files"),
        (["Train/Fake/a.jpg", "train/Fake/a.jpg"], r"both Train and train"),
        (["val/Fake/a.jpg", "valid/Fake/a.jpg"], r"both val and valid; expected one.*Validation"),
        (["a/Train/Fake/a.jpg", "b/Train/Fake/a.jpg"], r"2 image sets"),
        (["Train"], r"no Train folder"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_with_its_path(tmp_path, files, said):
    _touch(tmp_path, *files)
    with pytest.raises(UserError, match=said) as error:
        open_source(str(tmp_path), "Train")
    assert str(tmp_path) in str(error.value) and "expected" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_folder_and_a_file_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist; expected a folder with"):
        open_source(str(tmp_path / "nowhere"), "Train")
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"set.zip is a file; expected a folder with"):
        has_split(str(tmp_path / "set.zip"), "Train")


def test_a_list_of_files_has_unknown_labels(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(smooth(9, 9)))
    source = FileSource([tmp_path / "a.jpg", tmp_path / "gone.jpg"])
    np.testing.assert_array_equal(source.labels, [-1, -1])
    assert source.ids == [str(tmp_path / "a.jpg"), str(tmp_path / "gone.jpg")]
    assert source.encoded(0).startswith(b"\xff\xd8")
    with pytest.raises(FileNotFoundError):
        source.encoded(1)


@pytest.mark.parametrize(
    ("folder", "split"),
    [("val", "Validation"), ("Valid", "Validation"), ("training", "Train"), ("testing", "Test")],
)
def test_a_split_is_found_under_its_usual_other_names(tmp_path, folder, split):
    root = write_set(tmp_path, splits=(folder,))
    assert has_split(root, split)
    assert len(open_source(root, split)) == 10
