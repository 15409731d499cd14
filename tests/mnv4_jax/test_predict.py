"""The command's lines and exit status, and the same detector as a library."""

import concurrent.futures
import dataclasses
import io
import json
import pathlib
import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from input_pipeline import demo
from input_pipeline.cli import UserError
from mnv4_jax import predict
from mnv4_jax.detector import saved
from mnv4_jax.detector.detector import Detector
from tests.pictures import encoded, smooth


@pytest.fixture
def ask(monkeypatch, capfd):
    """Runs the command in this process. Returns (exit status, lines, lines of standard error)."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["predict", *map(str, arguments)])
        status = predict.main()
        out, err = capfd.readouterr()
        return status, out.splitlines(), err.splitlines()

    return run


@pytest.fixture
def photos(portraits, tmp_path):
    """A folder as users have them: nested, several formats, other files, hidden ones."""
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    shutil.copy(portraits / "Test" / "Fake" / "00.jpg", folder / "2.JPG")
    shutil.copy(portraits / "Test" / "Real" / "01.jpg", folder / "b" / "1.jpg")
    image = cv2.imread(str(portraits / "Test" / "Real" / "03.jpg"))
    cv2.imwrite(str(folder / "1.png"), image)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.jpg").write_text("no picture")
    return folder


def test_a_folder_is_walked_and_every_picture_has_its_line(ask, run, photos):
    status, lines, errors = ask(f"--checkpoint={run}", "--json", photos)
    assert (status, errors) == (0, ["3 pictures; 1 file passed over: 1 .txt"])
    answers = [json.loads(line) for line in lines]
    assert [a["file"] for a in answers] == [
        str(photos / name) for name in ("1.png", "2.JPG", "b/1.jpg")
    ]
    for answer in answers:
        assert set(answer) == {"file", "p_fake", "label"}
        assert 0 <= answer["p_fake"] <= 1
        assert answer["label"] == ("fake" if answer["p_fake"] >= 0.5 else "real")


def test_what_is_passed_over_is_said_beside_the_answers(ask, run, photos):
    (photos / "b" / "x.heics").write_text("no picture")
    _, lines, errors = ask(f"--checkpoint={run}", "--json", photos)
    assert [set(json.loads(line)) for line in lines] == [{"file", "p_fake", "label"}] * 3
    assert errors == ["3 pictures; 2 files passed over: 1 .heics, 1 .txt"]
    _, _, errors = ask(f"--checkpoint={run}", photos / "1.png")
    assert errors == []
    (photos / "only").mkdir()
    (photos / "only" / "x.md").write_text("no picture")
    with pytest.raises(UserError, match=r"no picture found.*; 1 file passed over: 1 .md"):
        ask(f"--checkpoint={run}", photos / "only")


def test_plain_lines_say_the_same(ask, run, photos):
    _, lines, _ = ask(f"--checkpoint={run}", photos / "1.png")
    _, (as_json,), _ = ask(f"--checkpoint={run}", "--json", photos / "1.png")
    answer = json.loads(as_json)
    assert lines == [f"{answer['p_fake']:.4f}  {answer['label']}  {photos / '1.png'}"]


def test_raw_asks_the_weights_as_trained(ask, uncalibrated_run, photos, tmp_path):
    """Here they are the average with its head turned round, so that p_fake is p_real."""
    loaded = saved.load(uncalibrated_run)
    turn = lambda x: -x if x.shape in ((32, 2), (2,)) else x  # noqa: E731
    items = {"weights": jax.tree.map(turn, loaded.weights), "ema": loaded.weights}
    with ocp.CheckpointManager(tmp_path / "run" / "checkpoints") as manager:
        manager.save(0, args=saved.to_save(0, items, saved.make_meta(loaded.config)))

    def answers(*flags):
        _, lines, _ = ask(f"--checkpoint={tmp_path / 'run'}", "--json", *flags, photos)
        return np.array([json.loads(line)["p_fake"] for line in lines])

    averaged, raw = answers(), answers("--raw")
    assert np.abs(averaged - 0.5).min() > 1e-3  # else both would be the same
    np.testing.assert_allclose(raw, 1 - averaged, atol=1e-4)


def test_unreadable_files_are_named_and_the_rest_goes_on(ask, run, portraits, photos):
    broken, missing = portraits / "Test" / "Fake" / "broken.jpg", photos / "nowhere.jpg"
    status, lines, errors = ask(f"--checkpoint={run}", broken, missing, photos / "1.png")
    assert status == 1
    assert len(lines) == 1
    assert lines[0].endswith("1.png")
    assert len(errors) == 2
    assert errors[0].startswith(f"unreadable: {broken}: ")
    assert errors[1].startswith(f"unreadable: {missing}: ")


def test_what_is_not_there_is_named_whatever_it_is_called(ask, run, photos, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = [photos / "missing[1].jpg", empty, photos / "no*.jpg"]
    status, lines, errors = ask(f"--checkpoint={run}", *nothing, photos / "1.png")
    assert (status, len(lines)) == (1, 1)
    for name, error in zip(nothing, errors, strict=True):
        assert error.startswith(f"unreadable: {name}: ")
    monkeypatch.setattr("sys.stdin", io.StringIO("nope.jpg\nnada.jpg\n"))
    status, lines, errors = ask(f"--checkpoint={run}", "-")
    assert (status, lines, len(errors)) == (1, [], 2)


def test_a_list_may_be_that_of_find_print0(ask, run, photos, monkeypatch):
    odd = photos / "a\nb\x0c.png"
    shutil.copy(photos / "1.png", odd)
    listed = b"\0".join([bytes(odd), bytes(photos / "1.png"), b""])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed)))
    status, lines, _ = ask(f"--checkpoint={run}", "--json", "-")
    assert status == 0
    assert [json.loads(line)["file"] for line in lines] == [str(odd), str(photos / "1.png")]


def test_a_glob_of_folders_walks_them_once(ask, run, photos):
    for pattern in (f"{photos}*", f"{photos}/**/*.[jJp]*"):
        _, lines, _ = ask(f"--checkpoint={run}", pattern)
        assert len(lines) == 3


def test_globs_and_standard_input_name_pictures_too(ask, run, photos, monkeypatch):
    _, lines, _ = ask(f"--checkpoint={run}", f"{photos}/**/*.jpg")
    assert [line.split()[-1] for line in lines] == [str(photos / "b" / "1.jpg")]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{photos / '1.png'}\n\n{photos / 'b'}\n"))
    _, lines, _ = ask(f"--checkpoint={run}", "-")
    assert [line.split()[-1] for line in lines] == [str(photos / "1.png"), f"{photos}/b/1.jpg"]


def test_the_threshold_is_a_number_or_a_rate_that_the_checkpoint_knows(ask, run, photos):
    fitted = Detector(run).thresholds["0.05"]
    for given, threshold in (("0", 0), ("1", 1), ("5%", fitted)):
        _, lines, _ = ask(f"--checkpoint={run}", "--json", f"--threshold={given}", photos)
        for answer in map(json.loads, lines):
            assert answer["label"] == ("fake" if answer["p_fake"] >= threshold else "real")


def test_a_picture_at_the_threshold_is_called_fake(ask, run, photos):
    _, (line,), _ = ask(f"--checkpoint={run}", "--json", photos / "1.png")
    p_fake = json.loads(line)["p_fake"]
    _, (line,), _ = ask(f"--checkpoint={run}", f"--threshold={p_fake!r}", photos / "1.png")
    assert "  fake  " in line


def test_a_rate_the_checkpoint_does_not_know_is_an_error(ask, run, uncalibrated_run, photos):
    with pytest.raises(UserError, match="thresholds for 1%, 5%, 10%"):
        ask(f"--checkpoint={run}", "--threshold=3%", photos)
    with pytest.raises(UserError, match="without Validation"):
        ask(f"--checkpoint={uncalibrated_run}", "--threshold=5%", photos)


@pytest.mark.parametrize("threshold", ["2", "-0.1", "x", "101%", "nan"])
def test_a_senseless_threshold_is_one_line(ask, run, photos, threshold, capfd):
    with pytest.raises(SystemExit) as exit_status:
        ask(f"--checkpoint={run}", f"--threshold={threshold}", photos)
    assert exit_status.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"--threshold={threshold}: must be from 0 to 1" in line


def test_nothing_to_read_is_an_error(ask, run, tmp_path):
    for argument in (tmp_path, tmp_path / "nowhere.jpg", tmp_path / "*.jpg"):
        with pytest.raises(UserError, match="no picture found"):
            ask(f"--checkpoint={run}", argument)


def test_heatmaps_show_the_picture_and_its_map(ask, run, photos, tmp_path):
    ask(f"--checkpoint={run}", photos, f"--heatmap={tmp_path / 'maps'}")
    maps = sorted((tmp_path / "maps").iterdir())
    assert len(maps) == 3
    assert [name.name.rsplit("photos_")[1] for name in maps] == [
        "1.png.png", "2.JPG.png", "b_1.jpg.png"
    ]  # fmt: skip
    pair = cv2.imread(str(maps[1]))
    assert pair.shape == (64, 128, 3)
    assert len(np.unique(pair[:, 64:].reshape(-1, 3), axis=0)) > 100


def test_heatmaps_of_two_files_are_two(ask, run, photos, tmp_path):
    shutil.copy(photos / "1.png", photos / "b_1.jpg")
    long = photos / ("x" * 240 + ".png")
    shutil.copy(photos / "1.png", long)
    status, _, _ = ask(f"--checkpoint={run}", photos, f"--heatmap={tmp_path / 'maps'}")
    assert status == 0
    assert len(list((tmp_path / "maps").iterdir())) == 5


def test_faces_are_found_cropped_and_judged_one_by_one(ask, run, tmp_path):
    wall = np.full((400, 700, 3), 130, np.uint8)
    for i, left in enumerate((60, 440)):
        wall[100:292, left : left + 192] = cv2.resize(demo.draw(7, i)[0], (192, 192))
    cv2.imwrite(str(tmp_path / "two.png"), wall[..., ::-1])
    cv2.imwrite(str(tmp_path / "wall.png"), wall[:90])
    heatmaps = f"--heatmap={tmp_path / 'maps'}"
    status, lines, _ = ask(f"--checkpoint={run}", "--faces", "--json", heatmaps, tmp_path)
    assert status == 0
    left, right, none = map(json.loads, lines)
    for answer, start in ((left, 60), (right, 440)):
        x, y, width, height = answer["face"]
        assert start - 60 < x < x + width < start + 252
        assert 40 < y < y + height < 352
        assert width == height > 96
        crop = wall[y : y + height, x : x + width]
        assert answer["p_fake"] == pytest.approx(Detector(run)([crop])[0], abs=1e-6)
    assert none == {"file": f"{tmp_path}/wall.png", "p_fake": None, "label": None, "face": None}
    assert len(list((tmp_path / "maps").iterdir())) == 2
    _, lines, _ = ask(f"--checkpoint={run}", "--faces", tmp_path / "wall.png")
    assert "no face found" in lines[0]


def test_a_files_name_neither_forges_a_line_nor_steers_the_terminal(ask, run, portraits, tmp_path):
    good = (portraits / "Test/Real/01.jpg").read_bytes()
    name = tmp_path / "a\n0.0001  real  b\x1b[31m.jpg"
    name.write_bytes(good)
    (tmp_path / "c\n\x07.jpg").write_bytes(b"")
    status, lines, error = ask(f"--checkpoint={run}", tmp_path)
    assert status == 1 and len(lines) == 1
    assert lines[0].endswith(r"/a\n0.0001  real  b\x1b[31m.jpg")
    assert rf"unreadable: {tmp_path}/c\n\x07.jpg: empty file" in error
    _, lines, _ = ask(f"--checkpoint={run}", "--json", name)
    assert json.loads(lines[0])["file"] == str(name)


def test_the_library_takes_paths_bytes_and_arrays(run, portraits):
    detector = Detector(run)
    file = portraits / "Test" / "Real" / "01.jpg"
    pixels = cv2.imread(str(file))[..., ::-1]
    p = detector([file, str(file), file.read_bytes(), pixels])
    assert p.shape == (4,)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p[:3], p[0], atol=1e-6)
    np.testing.assert_allclose(p[3], p[0], atol=0.01)  # OpenCV decodes JPEG a little differently
    assert detector([]).shape == (0,)
    others = detector(iter([jnp.asarray(pixels), Image.fromarray(pixels)]))
    np.testing.assert_array_equal(others, p[3])


def test_the_answer_does_not_depend_on_its_neighbours(run, portraits):
    detector = Detector(run)
    files = sorted((portraits / "Test" / "Real").iterdir())
    together = detector(files)
    np.testing.assert_allclose([detector([file])[0] for file in files[:3]], together[:3], atol=1e-6)


def test_the_library_names_what_it_cannot_read(run, portraits):
    detector = Detector(run)
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        detector([portraits / "Test" / "Fake" / "broken.jpg"])
    with pytest.raises(ValueError, match=r"number 0: float64 \(4, 4, 3\)"):
        detector([np.zeros((4, 4, 3))])
    with pytest.raises(ValueError, match="number 0"):
        detector([np.zeros((0, 0, 3), np.uint8)])
    with pytest.raises(ValueError, match="number 0: a Pillow picture of mode I;16"):
        detector([Image.fromarray(np.zeros((64, 64), np.uint16))])


def square(side, colour=None):
    """An encoded picture of side × (side + 9) px; with `colour` all of that."""
    pixels = smooth(side, side + 9)
    if colour is not None:
        pixels[:] = colour
    return encoded(pixels)


def test_too_small_or_one_colour_is_no_evidence(ask, run, tmp_path, portraits):
    files = {"a31": square(31), "b63": square(63), "c64": square(64), "d1": square(1)}
    files |= {"e_grey": square(80, 130), "f_red": square(80, (200, 30, 20))}
    for name, data in files.items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
    status, lines, _ = ask(f"--checkpoint={run}", "--json", tmp_path)
    assert status == 0
    answers = {pathlib.Path(a["file"]).stem: a for a in map(json.loads, lines)}
    assert list(answers) == list(files)
    reasons = {
        "a31": "too small: 31 px, needs 64", "b63": "too small: 63 px, needs 64",
        "d1": "too small: 1 px, needs 64", "e_grey": "one colour only", "f_red": "one colour only",
    }  # fmt: skip
    for name, reason in reasons.items():
        assert answers[name] == {
            "file": f"{tmp_path}/{name}.jpg", "p_fake": None, "label": None, "reason": reason
        }  # fmt: skip
    assert set(answers["c64"]) == {"file", "p_fake", "label"}
    _, lines, _ = ask(f"--checkpoint={run}", tmp_path)
    assert lines[0] == f"-       none  {tmp_path}/a31.jpg  (too small: 31 px, needs 64)"
    assert sum("none" in line for line in lines) == 5

    small_mark = np.full((64, 64, 3), 90, np.uint8)  # that a look at every 16th pixel misses
    small_mark[5:9, 20:25] = 180
    assert not np.isnan(Detector(run)(small_mark)[0])

    detector = Detector(run)
    p_fake = detector(list(files.values()))
    assert np.isnan(p_fake).tolist() == [name in reasons for name in files]
    (too_small, fine) = detector.answers([files["a31"], files["c64"]])
    assert too_small == (None, None, "too small: 31 px, needs 64")
    assert (fine.p_fake, fine.reason) == (pytest.approx(p_fake[2], abs=1e-6), None)
    assert fine.label == ("fake" if fine.p_fake >= 0.5 else "real")
    assert detector.answers(files["c64"], threshold=0)[0].label == "fake"


def test_no_heatmap_without_an_answer(ask, run, tmp_path):
    (tmp_path / "a.jpg").write_bytes(square(31))
    (tmp_path / "b.jpg").write_bytes(square(70))
    ask(f"--checkpoint={run}", f"--heatmap={tmp_path / 'maps'}", tmp_path)
    (only,) = (tmp_path / "maps").iterdir()
    assert only.name.endswith("b.jpg.png")


def test_a_detector_of_smaller_pictures_needs_no_more_than_it_looks_at(run):
    detector = Detector(run)
    detector.transform = dataclasses.replace(detector.transform, size=32)
    p_fake = detector([square(31), square(32)])
    assert np.isnan(p_fake).tolist() == [True, False]


def test_the_library_answers_several_threads_as_it_answers_one(run, portraits):
    detector = Detector(run)
    paths = sorted((portraits / "Test" / "Real").iterdir()) * 4
    alone = {n: detector(paths[:n]) for n in (1, 7, 24)}
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        together = [(n, pool.submit(detector, paths[:n])) for n in (1, 7, 24) * 4]
    for n, answer in together:
        np.testing.assert_array_equal(answer.result(), alone[n])


def test_the_library_takes_grey_and_transparent_pictures(run, portraits):
    detector = Detector(run)
    rgb = Image.open(portraits / "Test" / "Real" / "01.jpg")
    grey = rgb.convert("L")
    p = detector([grey, np.asarray(grey), grey.convert("RGB")])
    np.testing.assert_array_equal(p, p[2])
    clear = rgb.convert("RGBA")
    half = Image.new("L", rgb.size, 255)
    half.paste(0, (0, 0, rgb.width, rgb.height // 2))
    clear.putalpha(half)
    white = rgb.copy()
    white.paste("white", (0, 0, rgb.width, rgb.height // 2))
    p = detector([clear, white, rgb])
    assert p[0] == p[1] != p[2]


def test_one_picture_alone_counts_as_a_list_of_one(run, portraits):
    detector = Detector(run)
    file = portraits / "Test" / "Real" / "01.jpg"
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"))
    pictures = (pixels, jnp.asarray(pixels), pixels[:, :, 0], Image.fromarray(pixels))
    for one in (file, str(file), file.read_bytes(), *pictures):
        np.testing.assert_array_equal(detector(one), detector([one]))
    several = [str(file)] * 3
    assert detector(np.array(several)).shape == detector(jnp.stack([pixels] * 3)).shape == (3,)


def test_abstaining_answers_unsure_between_two_thresholds(ask, run, portraits):
    detector = Detector(run)
    fake, clear = detector.thresholds["0.05"], detector.clear_below["0.05"]
    _, lines, _ = ask(f"--checkpoint={run}", "--json", "--abstain", portraits / "Test" / "Fake")
    answers = [json.loads(line) for line in lines]
    for answer in answers:
        p = answer["p_fake"]
        expected = "fake" if p >= fake else "real" if p < clear else "unsure"
        assert answer["label"] == expected
    assert {"unsure"} <= {answer["label"] for answer in answers}


def test_abstaining_needs_a_calibration(uncalibrated_run, portraits, ask):
    with pytest.raises(UserError, match="--abstain: the checkpoint has no calibration"):
        ask(f"--checkpoint={uncalibrated_run}", "--abstain", portraits)
