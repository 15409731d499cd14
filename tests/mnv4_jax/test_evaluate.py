"""The report's contract: numbers against scikit-learn and `predict`, a page that stands alone."""

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys

import cv2
import numpy as np
import pytest
from sklearn import metrics as sk

from input_pipeline import demo
from input_pipeline.cli import UserError
from input_pipeline.faces import FaceFinder
from mnv4_jax import evaluate
from mnv4_jax.detector.detector import Detector
from mnv4_jax.measure import corruptions, metrics
from tests.pictures import encoded, smooth


def evaluated(monkeypatch, *arguments):
    """Runs the command in this process. Returns report.json and report.html."""
    out = next(a for a in arguments if a.startswith("--out=")).removeprefix("--out=")
    monkeypatch.setattr("sys.argv", ["evaluate", *arguments])
    evaluate.main()
    with open(f"{out}/report.json") as file:
        numbers = json.load(file, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    with open(f"{out}/report.html", encoding="utf-8") as file:
        return numbers, file.read()


@pytest.fixture(scope="module")
def report(run, portraits, tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        return evaluated(
            monkeypatch,
            f"--checkpoint={run}",
            f"--data={portraits}",
            f"--out={tmp_path_factory.mktemp('report') / '<b>&below'}",
            "--robustness=6",
        )


@pytest.fixture(scope="module")
def predicted(run, portraits):
    """(labels, p_fake) of the readable pictures, as `predict` answers."""
    files = sorted((portraits / "Test").glob("*/[0-9]*.jpg"))
    labels = np.array([0 if file.parent.name == "Fake" else 1 for file in files])
    return labels, Detector(run)(files)


def test_every_metric_has_a_value_and_an_interval(report):
    numbers, _ = report
    assert numbers["n"] == 24
    assert isinstance(numbers["n"], int)
    expected = metrics.weighted_metrics([0, 1], np.zeros(2), np.ones((1, 2)))
    for name in expected:
        assert set(numbers[name]) == {"value", "ci95"}, name
        low, high = numbers[name]["ci95"]
        assert low <= high, name
    low, high = numbers["auc"]["ci95"]
    assert low < numbers["auc"]["value"] < high


def test_the_figures_are_those_of_predicts_answers(report, predicted):
    numbers, _ = report
    labels, p_fake = predicted
    expected = {
        "auc": sk.roc_auc_score(labels == 0, p_fake),
        "accuracy": sk.accuracy_score(labels == 0, p_fake >= 0.5),
        "average_precision": sk.average_precision_score(labels == 0, p_fake),
        "log_loss": sk.log_loss(labels == 0, p_fake),
        "brier": sk.brier_score_loss(labels == 0, p_fake),
    }
    assert {k: numbers[k]["value"] for k in expected} == pytest.approx(expected, abs=1e-4)


def test_thresholds_of_the_checkpoint_are_applied_unchanged(report, run, predicted):
    numbers, _ = report
    labels, p_fake = predicted
    thresholds = Detector(run).thresholds
    rows = numbers["thresholds"]
    assert [row["promise"] for row in rows] == [None, 0.01, 0.05, 0.1]
    assert [row["threshold"] for row in rows] == [0.5, *thresholds.values()]
    for row in rows:
        called = p_fake >= row["threshold"]
        assert row["false_alarm_rate"]["value"] == pytest.approx(called[labels == 1].mean())
        assert row["recall_fake"]["value"] == pytest.approx(called[labels == 0].mean())
        for name in ("false_alarm_rate", "recall_fake"):
            low, high = row[name]["ci95"]
            assert low <= row[name]["value"] <= high
        if row["promise"]:  # fitted on these very pictures: the promise must be kept
            assert row["fitted_on"] == pytest.approx(
                {k: row[k]["value"] for k in ("false_alarm_rate", "recall_fake")}
            )
            assert row["false_alarm_rate"]["value"] <= row["promise"]


def test_intervals_are_drawn_by_group(report):
    numbers, html = report
    assert numbers["n_groups"] == 12
    assert "12 sources" in html


def test_intervals_of_the_rates_are_those_of_whole_groups(report, portraits, predicted):
    numbers, _ = report
    labels, p_fake = predicted
    files = sorted((portraits / "Test").glob("*/[0-9]*.jpg"))
    groups = [f"source {int(file.stem) // 2}" for file in files]
    row = numbers["thresholds"][0]
    called = p_fake >= row["threshold"]
    answers = np.stack([called, ~called], axis=1)
    by_group, single = (metrics.metrics_with_intervals(labels, answers, g) for g in (groups, None))
    assert row["recall_fake"]["ci95"] == pytest.approx(by_group["recall_fake"]["ci95"])
    low, high = by_group["recall_real"]["ci95"]
    assert row["false_alarm_rate"]["ci95"] == pytest.approx([1 - high, 1 - low])
    assert single["recall_fake"]["ci95"] != by_group["recall_fake"]["ci95"]


def test_unreadable_pictures_are_named_and_do_not_count(report):
    numbers, html = report
    assert numbers["unreadable"] == ["Test/Fake/broken.jpg"]
    assert (numbers["n_fake"], numbers["n_real"]) == (12, 12)
    assert "Test/Fake/broken.jpg" in html


def test_robustness_has_every_severity(report):
    numbers, html = report
    rows = numbers["robustness"]["rows"]
    assert numbers["robustness"]["n"] == 6
    assert len(rows) == 1 + 5 * len(corruptions.CORRUPTIONS)
    assert "6 of these pictures" in html
    for kind in corruptions.CORRUPTIONS:
        assert sum(row["kind"] == kind for row in rows) == 5


def test_the_report_says_what_made_it(report, run):
    numbers, html = report
    assert numbers["checkpoint"] == f"{run}/checkpoints/0"
    assert numbers["data_digest"].startswith("sha256:")
    assert numbers["command"].startswith("python -m mnv4_jax.evaluate --checkpoint=")
    assert {"jax", "mnv4_jax", "python"} <= set(numbers["versions"])
    for said in (numbers["data_digest"], numbers["date"], numbers["versions"]["jax"]):
        assert said in html
    assert "&lt;b&gt;&amp;below" in html  # of the command; a folder's name is no markup
    assert "<b>&below" not in html


def test_the_page_needs_nothing_else(report, predicted):
    _, html = report
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    labels, p_fake = predicted
    wrong = ((p_fake >= 0.5) != (labels == 0)).sum()
    assert html.count("<img ") == 2 * (min(20, wrong) + min(20, 24 - wrong))
    assert html.count("<svg ") == 6 + len(corruptions.CORRUPTIONS)
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))


def test_several_sets_an_uncalibrated_checkpoint_and_no_robustness(
    uncalibrated_run, portraits, picture_folder, monkeypatch, tmp_path
):
    numbers, html = evaluated(
        monkeypatch,
        f"--checkpoint={uncalibrated_run}",
        f"--data={picture_folder}",
        f"--data={portraits}",
        f"--out={tmp_path}",
        "--robustness=0",
    )
    assert numbers["n"] == 16
    assert [other["n"] for other in numbers["other_data_sets"]] == [24]
    assert numbers["calibration"] is None
    assert len(numbers["thresholds"]) == 1
    assert "Across data sets" in html
    assert "carries no calibration" in html
    assert html.count("<svg ") == 2 * 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": "nowhere"}, "nowhere does not exist"),
        ({"split": "Validation"}, "no Validation folder"),
        ({"checkpoint": "nowhere"}, "no such folder"),
        ({"out": "a_file"}, "is a file"),
        ({"out": "a_file/below"}, "is a file"),
    ],
)
def test_what_the_user_gets_wrong_is_one_line(run, portraits, tmp_path, monkeypatch, change, said):
    (tmp_path / "a_file").write_text("")
    flags = {"checkpoint": run, "data": portraits, "out": tmp_path}
    flags |= {k: v if k == "split" else tmp_path / v for k, v in change.items()}
    with pytest.raises(UserError, match=said) as error:
        evaluated(monkeypatch, *(f"--{name}={value}" for name, value in flags.items()))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flag", ["--split=Tset", "--robustness=-1", "--robustness=x", "--nosuch"])
def test_a_wrong_flag_is_one_line_and_status_2(flag, capsys):
    with pytest.raises(SystemExit) as status:
        evaluate.parse(["--checkpoint=a", "--data=b", "--out=c", flag])
    assert status.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert flag.split("=")[0] in line


def test_what_holds_no_evidence_is_counted_and_not_judged(
    run, portraits, tmp_path, monkeypatch, report
):
    shutil.copytree(portraits / "Test", tmp_path / "Test")
    (tmp_path / "Test" / "groups.csv").unlink()
    (tmp_path / "Test" / "Fake" / "small.png").write_bytes(encoded(smooth(90, 31), "PNG"))
    (tmp_path / "Test" / "Real" / "flat.png").write_bytes(encoded(smooth(90, 90) * 0, "PNG"))
    numbers, html = evaluated(
        monkeypatch,
        f"--checkpoint={run}",
        f"--data={tmp_path}",
        f"--out={tmp_path / 'out'}",
        "--robustness=0",
    )
    assert numbers["no_score"] == [
        {"file": "Test/Fake/small.png", "reason": "too small: 31 px, needs 64"},
        {"file": "Test/Real/flat.png", "reason": "one colour only"},
    ]
    assert numbers["unreadable"] == ["Test/Fake/broken.jpg"]
    assert numbers["n"] == 24
    for name in ("auc", "accuracy", "log_loss"):
        assert numbers[name]["value"] == pytest.approx(report[0][name]["value"])
    assert "2 pictures are too small or of one colour" in html
    for file in (tmp_path / "Test").glob("*/[0-9]*.jpg"):
        file.unlink()
    with pytest.raises(UserError, match=r"none of 3 .* \(2 are too small or of one colour\)"):
        evaluated(
            monkeypatch, f"--checkpoint={run}", f"--data={tmp_path}", f"--out={tmp_path / 'out'}"
        )


def test_without_a_checkpoint_the_detector_in_the_box_is_evaluated(
    portraits, tmp_path, monkeypatch
):
    numbers, _ = evaluated(
        monkeypatch, f"--data={portraits}", f"--out={tmp_path / 'out'}", "--robustness=0"
    )
    files = sorted((portraits / "Test" / "Real").glob("[0-9]*.jpg"))
    called_real = Detector()(files) < 0.5
    assert numbers["recall_real"]["value"] == pytest.approx(called_real.mean())
    assert numbers["checkpoint"].endswith("shipped/detector.safetensors")


def test_a_set_without_a_readable_picture_is_an_error(run, tmp_path, monkeypatch):
    for name in ("Fake", "Real"):
        (tmp_path / "Test" / name).mkdir(parents=True)
        (tmp_path / "Test" / name / "a.jpg").write_bytes(b"no")
    with pytest.raises(UserError, match="none of 2 pictures can be read and scored"):
        evaluated(
            monkeypatch, f"--checkpoint={run}", f"--data={tmp_path}", f"--out={tmp_path / 'out'}"
        )


@pytest.mark.slow
def test_two_processes_write_the_same_report_once(report, run, portraits, tmp_path, request):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    # A model of the tests' own: the processes must know it as well.
    code = "import tests.small_net; from mnv4_jax import evaluate; evaluate.main()"
    processes = [
        subprocess.Popen(
            [
                sys.executable, "-c", code, f"--checkpoint={run}", f"--data={portraits}",
                f"--out={tmp_path / 'out'}", "--robustness=6", f"--coordinator={address}",
                "--num_processes=2", f"--process_id={i}",
            ],
            cwd=request.config.rootpath,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "report:" in outputs[0][0]
    assert "report:" not in outputs[1][0]
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    for name in ("n", "data_digest", "auc", "log_loss", "ece", "unreadable", "robustness"):
        _assert_close(numbers[name], report[0][name])


def _assert_close(a, b):
    if isinstance(a, dict):
        assert set(a) == set(b)
        for key in a:
            _assert_close(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _assert_close(x, y)
    elif isinstance(a, float):
        assert math.isclose(a, b, abs_tol=1e-5)
    else:
        assert a == b


def test_what_sources_csv_says_makes_rows(monkeypatch, run, portraits, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(portraits / "Test" / "Real", photos / "Test" / "Real")
    files = sorted((photos / "Test" / "Real").iterdir())
    rows = [f"Real/{file.name},{'old' if i % 2 else 'young'}\n" for i, file in enumerate(files)]
    (photos / "Test" / "sources.csv").write_text("file,age\n" + "".join(rows))
    numbers, html = evaluated(
        monkeypatch,
        *(f"--checkpoint={run}", f"--data={photos}", f"--out={tmp_path / 'report'}"),
        "--robustness=0",
    )
    groups = numbers["by_column"]["columns"]["age"]["groups"]
    called = Detector(run)(files) >= numbers["by_column"]["threshold"]
    assert groups["young"]["false_alarm_rate"]["value"] == pytest.approx(called[::2].mean())
    assert groups["old"]["n_real"] == len(files) // 2
    assert "By what sources.csv says" in html


@pytest.mark.parametrize(
    ("text", "message"),
    [("name,age\n", "expected a column file"), ("file,age\nReal/x.jpg,3\n", "names none of the")],
)
def test_a_wrong_sources_csv_is_one_line(monkeypatch, run, portraits, tmp_path, text, message):
    shutil.copytree(portraits / "Test" / "Real", tmp_path / "Test" / "Real")
    (tmp_path / "Test" / "sources.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        evaluated(
            monkeypatch, f"--checkpoint={run}", f"--data={tmp_path}", f"--out={tmp_path / 'out'}"
        )


@pytest.mark.slow  # a minute of compilation
def test_an_attack_is_judged_and_shown(run, portraits, tmp_path, monkeypatch):
    numbers, html = evaluated(
        monkeypatch,
        f"--checkpoint={run}",
        f"--data={portraits}",
        f"--out={tmp_path}",
        "--robustness=0",
        "--attack=2",
        "--attack_pictures=4",
        "--attack_steps=2",
        f"--attack_transfer={run}",
    )
    attack = numbers["attack"]
    assert (attack["n"], attack["steps"]) == (4, 2)
    assert attack["threshold"] == numbers["by_column"]["threshold"]
    names = {row["attack"] for row in attack["rows"]}
    assert {"none", "pgd", "square", "transfer", "worst", "worst, JPEG 75"} <= names
    assert {row["budget"] for row in attack["rows"]} == {0, 2}
    assert "<h3>Attacked</h3>" in html
    assert "ten times the difference" in html


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--attack=-1"], r"--attack=-1: whole 255ths from 1 to 255"),
        (["--attack=0.5"], r"--attack=0.5: whole 255ths"),
        (["--attack=2", "--attack_steps=0"], r"--attack_steps=0: must be 1 or more"),
        (["--attack_transfer=x"], r"--attack_transfer needs --attack"),
    ],
)
def test_an_attack_that_makes_no_sense_is_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as caught:
        evaluate.parse(["--checkpoint=a", "--data=b", "--out=c", *flags])
    assert caught.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_an_attack_on_one_class_is_one_line(run, portraits, tmp_path, monkeypatch):
    only = tmp_path / "only" / "Test" / "Real"
    only.mkdir(parents=True)
    for file in sorted((portraits / "Test" / "Real").iterdir())[:3]:
        shutil.copy(file, only)
    arguments = [f"--checkpoint={run}", f"--data={tmp_path / 'only'}", f"--out={tmp_path / 'o'}"]
    with pytest.raises(UserError, match="--attack needs both classes, and there are only real"):
        evaluated(monkeypatch, *arguments, "--robustness=0", "--attack=1")


def test_the_largest_face_is_scored_if_asked_for(monkeypatch, run, tmp_path):
    finder, expected = FaceFinder(), []
    for label, name in enumerate(("Fake", "Real")):
        folder = tmp_path / "set/Test" / name
        folder.mkdir(parents=True)
        for i in range(2):
            wall = np.full((300, 560, 3), 130, np.uint8)
            wall[20:212, 20:212] = cv2.resize(demo.draw(7 + i, label)[0], (192, 192))
            cv2.imwrite(str(folder / f"{i}.png"), wall[..., ::-1])
            (face,) = finder(wall)
            expected.append(Detector(run)([face.pixels])[0])
    cv2.imwrite(str(folder / "wall.png"), wall[:, 250:])
    arguments = [f"--checkpoint={run}", f"--data={tmp_path / 'set'}", "--robustness=0"]
    numbers, _ = evaluated(monkeypatch, *arguments, "--faces", f"--out={tmp_path / 'faces'}")
    assert (numbers["n"], numbers["unreadable"]) == (4, ["Test/Real/wall.png"])
    loss = sk.log_loss([1, 1, 0, 0], expected)
    assert numbers["log_loss"]["value"] == pytest.approx(loss, abs=1e-4)
    numbers, _ = evaluated(monkeypatch, *arguments, f"--out={tmp_path / 'all'}")
    assert numbers["n"] == 4 and numbers["log_loss"]["value"] != pytest.approx(loss, abs=1e-4)
