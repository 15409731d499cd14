"""The report's contract: numbers against scikit-learn and `predict`, a page that stands alone."""

import json
import math
import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as sk

from input_pipeline.cli import UserError
from mnv4_jax import corruptions, evaluate, metrics, predict


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
    return labels, predict.Detector(run)(files)


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
    thresholds = predict.Detector(run).thresholds
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


def test_unreadable_pictures_are_named_and_do_not_count(report):
    numbers, html = report
    assert numbers["unreadable"] == ["Test/Fake/broken.jpg"]
    assert (numbers["n_fake"], numbers["n_real"]) == (12, 12)
    assert "Test/Fake/broken.jpg" in html


def test_robustness_has_every_severity(report):
    numbers, html = report
    rows = numbers["robustness"]["rows"]
    assert numbers["robustness"]["n"] == 6
    assert len(rows) == 41
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
    assert html.count("<svg ") == 6 + 8
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


def test_a_set_with_one_readable_class_is_an_error(run, tmp_path, monkeypatch, portraits):
    for name in ("Fake", "Real"):
        (tmp_path / "Test" / name).mkdir(parents=True)
        (tmp_path / "Test" / name / "a.jpg").write_bytes(
            (portraits / "Test" / "Real" / "01.jpg").read_bytes() if name == "Real" else b"no"
        )
    with pytest.raises(UserError, match="1 readable pictures, of one class"):
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
