"""The demo set: from two numbers alone, the same for everyone, and without a cheap tell."""

import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from input_pipeline import cli, demo
from input_pipeline.demo_set import portraits


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """The whole set, as a user gets it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNV4_CACHE", str(tmp_path_factory.mktemp("cache")))
        return demo.ensure_demo()


def test_a_picture_is_a_function_of_seed_and_index():
    first, label = demo.draw(3, 41)
    demo.draw(3, 7)  # nothing drawn in between changes it
    again, _ = demo.draw(3, 41)
    assert first.shape == (128, 128, 3) and first.dtype == np.uint8 and label == 1
    np.testing.assert_array_equal(first, again)
    assert (demo.draw(4, 41)[0] != first).mean() > 0.5
    assert (demo.draw(3, 43)[0] != first).mean() > 0.5


def test_folder_holds_balanced_splits_of_the_pictures_drawn(folder):
    for split, indices in demo.SPLITS.items():
        for label, name in enumerate(demo.CLASSES):
            files = sorted((folder / split / name).iterdir())
            assert [int(file.stem) for file in files] == [i for i in indices if i % 2 == label]
            assert len(files) == len(indices) / 2
    for index in (0, 1601, 1999):  # drawn by different workers, for every split
        jpeg, label = demo.draw_jpeg(demo.SEED, index)
        (file,) = folder.glob(f"*/{demo.CLASSES[label]}/{index:05d}.jpg")
        assert file.read_bytes() == jpeg


def test_no_person_is_in_two_splits(monkeypatch):
    """Records everyone drawn, and compares them by their skin: a colour that nobody shares."""
    drawn, render = set(), portraits.render
    monkeypatch.setattr(
        portraits,
        "render",
        lambda person, *rest: (drawn.add(person.skin.tobytes()), render(person, *rest))[1],
    )
    people = {}
    for split, indices in demo.SPLITS.items():
        drawn.clear()
        for index in indices[-100::2]:
            demo.draw_jpeg(demo.SEED, index)
        people[split] = set(drawn)
    assert all(30 < len(who) <= 100 for who in people.values())  # and within a split they recur
    assert not people["Train"] & people["Validation"]
    assert not people["Train"] & people["Test"]
    assert not people["Validation"] & people["Test"]


def test_fakes_wear_another_face_and_most_real_ones_their_own(monkeypatch):
    swaps, swap = [], demo._swap

    def record(source, target, rng):
        swaps.append("own" if source is target else "another")
        return swap(source, target, rng)

    monkeypatch.setattr(demo, "_swap", record)
    real = [
        (swaps.clear(), demo.draw_jpeg(0, index), tuple(swaps))[2] for index in range(1, 121, 2)
    ]
    assert set(real) == {("own",), ()} and 0.5 < real.count(("own",)) / len(real) < 0.9
    for index in range(0, 10, 2):
        swaps.clear()
        assert demo.draw_jpeg(0, index)[1] == 0 and swaps == ["another"]


def _statistics(file: pathlib.Path) -> np.ndarray:
    """What a picture tells without being looked at: colour, size, sharpness, noise, thumbnail."""
    grey = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE).astype(np.float32)
    colour = cv2.imread(str(file)).reshape(-1, 3)
    high_pass = grey - cv2.GaussianBlur(grey, (0, 0), 1)
    sharpness = cv2.Laplacian(grey, cv2.CV_32F).var()
    noise = np.median(np.abs(high_pass))
    energy = (high_pass**2).mean()
    thumbnail = cv2.resize(grey, (8, 8), interpolation=cv2.INTER_AREA).ravel()
    plain = [*colour.mean(0), *colour.std(0), file.stat().st_size, sharpness, noise, energy]
    return np.array([*plain, *np.log(plain), *thumbnail])


def test_cheap_statistics_do_not_tell_fake_from_real(folder):
    def load(*splits):
        files = [file for split in splits for file in sorted((folder / split).glob("*/*.jpg"))]
        features = np.stack([_statistics(file) for file in files])
        return features, np.array([file.parent.name == "Fake" for file in files])

    train, held_out = load("Train"), load("Validation", "Test")
    for strength in (1.0, 0.01):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        scores = model.fit(*train).decision_function(held_out[0])
        assert roc_auc_score(held_out[1], scores) < 0.65


def test_two_processes_that_draw_at_once_do_not_collide(tmp_path):
    code = (
        "from input_pipeline import demo; demo.SPLITS = {'Train': range(60)};"
        "folder = demo.ensure_demo(); print(folder, len(list(folder.glob('Train/*/*.jpg'))))"
    )
    environment = os.environ | {"MNV4_CACHE": str(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers == [f"{tmp_path / demo.VERSION} 60"] * 2
    assert [path.name for path in tmp_path.iterdir()] == [demo.VERSION]  # nothing left beside it
    files = sorted((tmp_path / demo.VERSION).glob("Train/*/*.jpg"))
    assert sorted(int(file.stem) for file in files) == list(range(60))
    assert all(cv2.imread(str(file)).shape == (128, 128, 3) for file in files)


def test_where_it_cannot_be_kept_one_line_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MNV4_CACHE", str(tmp_path / "file"))
    with pytest.raises(cli.UserError, match=r"cannot be drawn in .*file \(.*\): set MNV4_CACHE"):
        demo.ensure_demo()


def test_a_drawing_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SPLITS", {"Train": range(8)})
    monkeypatch.setenv("MNV4_CACHE", str(tmp_path))
    written = []

    def disk_full_at_the_fifth(path, data):
        written.append(path)
        if len(written) == 5:
            raise OSError(28, "No space left on device", str(path))
        with open(path, "wb") as file:
            file.write(data)

    monkeypatch.setattr(pathlib.Path, "write_bytes", disk_full_at_the_fifth)
    with pytest.raises(OSError, match="No space left"):
        demo.ensure_demo()
    assert not list(tmp_path.iterdir())


def test_contact_sheet(tmp_path, monkeypatch, capsys):
    sheet = tmp_path / "new" / "sheet.png"
    monkeypatch.setattr(sys, "argv", ["demo", f"--sheet={sheet}"])
    demo.main()
    assert cv2.imread(str(sheet)).shape == (4 * 128, 9 * 128, 3)
    assert "sheet.png" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["demo", "--sheet=sheet.txt"])
    with pytest.raises(cli.UserError, match=r"sheet\.txt"):
        demo.main()
