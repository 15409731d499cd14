"""What is taken for a picture, in which order, and what is said of the rest."""

import os

import numpy as np
import pytest

from input_pipeline import decode, listing
from input_pipeline.batches import eval_batches
from input_pipeline.cli import UserError
from input_pipeline.sources import describe, found, open_source
from input_pipeline.transforms import Transform
from tests.pictures import encoded, smooth

NAMES = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".mpo": "MPO", ".png": "PNG",
    ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip


def write(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def listed(folder):
    passed_over = listing.PassedOver()
    paths = listing.pictures(str(folder), passed_over)
    return [os.path.relpath(path, folder) for path in paths], dict(passed_over)


def test_every_name_is_listed_and_its_picture_read(tmp_path):
    names = NAMES | ({".avif": "AVIF"} if decode.HAS_AVIF else {})
    for i, (ending, format) in enumerate(names.items()):
        for label in ("Fake", "Real"):
            data = encoded(smooth(40, 40, i), format)
            write(tmp_path, {f"Test/{label}/{i:02}{ending.upper() if i % 2 else ending}": data})
    source = open_source(str(tmp_path), "Test")
    assert len(source) == 2 * len(names)
    transform = Transform(size=32, shorter_px=37, crop="resize")
    with eval_batches(source, transform, batch_size=len(source)) as batches:
        batch = next(batches)
    assert batch["mask"].all()
    # Fake and real hold the same pictures, and no two of a class are alike.
    np.testing.assert_array_equal(batch["image"][: len(names)], batch["image"][len(names) :])
    assert len({image.tobytes() for image in batch["image"]}) == len(names)


def test_what_a_file_holds_counts_not_its_name(tmp_path):
    wrong = {"a.png": "JPEG", "b.jpg": "TIFF", "c.bmp": "WEBP", "d": "PNG"}
    for label in ("Fake", "Real"):
        write(tmp_path / "Test" / label, {n: encoded(smooth(9, 9), f) for n, f in wrong.items()})
    source = open_source(str(tmp_path), "Test")
    assert [name.rsplit("/")[-1] for name in source.ids] == list(wrong) * 2
    for i in range(len(source)):
        assert source.read(i).shape == (9, 9, 3)


def test_a_flat_folder_is_in_the_order_it_always_had(tmp_path):
    names = ["10.jpg", "9.jpg", "B.PNG", "a.jpeg", "a.jpg", "é.webp", "a b.jpg", "a-b.jpg", "_.png"]
    write(tmp_path, dict.fromkeys(names, b"x"))
    assert listed(tmp_path) == (sorted(names), {})


def test_folders_below_are_walked_and_the_rest_is_counted(tmp_path):
    files = ["b/2.jpg", "b/deep/er/1.bmp", "a.jpg", "c/notes.TXT", "c/x.heics", "LICENSE", "d.jpg"]
    hidden = [".DS_Store", "b/._2.jpg", ".git/x.jpg", "__MACOSX/b/2.jpg"]
    write(tmp_path, dict.fromkeys([*files, *hidden], b"x"))
    names, passed_over = listed(tmp_path)
    assert names == ["a.jpg", "b/2.jpg", "b/deep/er/1.bmp", "d.jpg"]
    assert passed_over == {".txt": 1, ".heics": 1, "": 1}


def test_a_link_to_a_folder_above_has_an_end(tmp_path):
    write(tmp_path, {"set/a.jpg": b"x", "elsewhere/b.jpg": b"x"})
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "more").symlink_to(tmp_path / "elsewhere")
    assert listed(tmp_path / "set") == (["a.jpg", "more/b.jpg"], {})


def test_what_was_passed_over_is_said_with_its_cure():
    passed_over = {".txt": 3, ".heic": 9, "": 1}
    if decode.HAS_HEIF:
        pytest.skip("pillow-heif is installed: .heic is a picture")
    assert listing.describe(passed_over) == (
        "13 files passed over: 9 .heic (install pillow-heif), 3 .txt, 1 without an ending"
    )
    assert listing.describe({".txt": 1}) == "1 file passed over: 1 .txt"
    assert listing.describe({}) == ""


def test_a_source_knows_what_it_holds(tmp_path):
    write(tmp_path, dict.fromkeys(["Test/Fake/a.jpg", "Test/Real/b/c.jpg", "Test/Real/d.xyz"], b""))
    source = open_source(str(tmp_path), "Test")
    assert found(source) == {"fake": 1, "real": 1, "passed_over": {".xyz": 1}}
    assert describe(source) == "2 pictures (1 fake, 1 real); 1 file passed over: 1 .xyz"
    (tmp_path / "Test/Fake/a.jpg").rename(tmp_path / "Test/Fake/a.doc")
    with pytest.raises(UserError, match=r"Fake: no pictures.*; 2 files passed over: 1 .doc"):
        open_source(str(tmp_path), "Test")


def test_groups_name_pictures_in_folders_below_a_class(tmp_path):
    names = ["Test/Fake/real/1.jpg", "Test/Fake/1.jpg", "Test/Real/v/real/1.jpg"]
    write(tmp_path / "Real", dict.fromkeys(names, b""))
    rows = "fake/1.jpg,b\nTest/Real/v/real/1.jpg,c\nFake/real/1.jpg,a\n"
    (tmp_path / "Real/Test/groups.csv").write_text("file,group\n" + rows)
    assert open_source(str(tmp_path), "Test").groups == ["b", "a", "c"]
