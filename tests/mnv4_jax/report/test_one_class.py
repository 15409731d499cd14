"""Only real or only fake pictures: rates against `predict`'s answers, the rest null."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from scipy import stats

from input_pipeline.cli import UserError
from input_pipeline.sources import open_source
from mnv4_jax import evaluate
from mnv4_jax.detector.detector import Detector
from mnv4_jax.measure.corruptions import CORRUPTIONS, corrupt
from mnv4_jax.report import one_class, robustness

COMPARES = {
    "auc", "balanced_accuracy", "eer", "average_precision", "tpr_at_fpr_1", "tpr_at_fpr_5",
    "tpr_at_fpr_10", "precision_fake", "precision_real", "f1_fake", "f1_real", "ece",
}  # fmt: skip


@pytest.fixture(scope="module")
def real_only(portraits, tmp_path_factory):
    return alone(portraits, "Real", tmp_path_factory.mktemp("photographs"))


def alone(portraits, name, root):
    """A set of the 12 pictures of one class; groups.csv puts three pictures in each of four."""
    shutil.copytree(portraits / "Test" / name, root / "Test" / name)
    (root / "Test" / name / "broken.jpg").unlink(missing_ok=True)
    files = sorted((root / "Test" / name).iterdir())
    with open(root / "Test" / "groups.csv", "w", newline="") as file:
        rows = [(f"{name}/{path.name}", f"video {i // 3}") for i, path in enumerate(files)]
        csv.writer(file).writerows([("file", "group"), *rows])
    return root


def evaluated(monkeypatch, capsys, run, data, out, n_damaged=4):
    monkeypatch.setattr(
        "sys.argv",
        ["", f"--checkpoint={run}", f"--data={data}", f"--out={out}", f"--robustness={n_damaged}"],
    )
    evaluate.main()
    text = (out / "report.json").read_text()
    numbers = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    return numbers, (out / "report.html").read_text(), capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "rate", "missing", "recall"),
    [
        ("Real", "false_alarm_rate", "recall_fake", "recall_real"),
        ("Fake", "recall_fake", "false_alarm_rate", "recall_fake"),
    ],
)
def test_one_class_gives_its_rates_and_null_with_a_reason_for_the_rest(
    run, portraits, monkeypatch, capsys, tmp_path, name, rate, missing, recall
):
    data = alone(portraits, name, tmp_path)
    (data / "Test" / name / "notes.txt").write_text("no picture")
    numbers, html, said = evaluated(monkeypatch, capsys, run, data, tmp_path / "out")
    files = sorted((data / "Test" / name).glob("*.jpg"))
    p_fake = Detector(run)(files)
    assert numbers["n"] == 12
    assert len(numbers["thresholds"]) == 4
    for row in numbers["thresholds"]:
        assert row[rate]["value"] == pytest.approx((p_fake >= row["threshold"]).mean())
        low, high = row[rate]["ci95"]
        assert low <= row[rate]["value"] <= high
        assert low < high
        assert row[missing]["value"] is None
        assert row[missing]["ci95"] == [None, None]
        assert f"only {name.lower()} pictures" in row[missing]["reason"]
    for metric in COMPARES:
        assert numbers[metric]["value"] is None, metric
        assert numbers[metric]["ci95"] == [None, None], metric
        assert "needs both classes" in numbers[metric]["reason"]
    right = (p_fake >= 0.5) == (name == "Fake")
    assert numbers["accuracy"]["value"] == pytest.approx(right.mean())
    assert numbers[recall]["value"] == pytest.approx(right.mean())

    assert [group["n"] for group in numbers["by_group"]] == [3] * 4
    for group in numbers["by_group"]:
        start = 3 * int(group["group"].removeprefix("video "))
        expected = [
            (p_fake[start : start + 3] >= row["threshold"]).mean() for row in numbers["thresholds"]
        ]
        assert group["rates"] == pytest.approx(expected)

    assert len(numbers["robustness"]["rows"]) == 1 + 5 * len(CORRUPTIONS)
    assert numbers["robustness"]["n"] == 4
    for row in numbers["robustness"]["rows"]:
        assert row["auc"]["value"] is None
        assert row["ci95"][0] <= row[rate] <= row["ci95"][1]
    assert html.count("<svg ") == 1 + len(CORRUPTIONS)
    assert f"There are only {name.lower()} pictures here" in html
    assert "video 3" in html
    assert not re.search(r"[>( ]nan\b", html, re.IGNORECASE)
    assert f"only {name.lower()} pictures" in said
    assert numbers["passed_over"] == {".txt": 1}
    assert "1 file passed over: 1 .txt" in said
    assert said.count("at p_fake ≥") == 4


def test_damage_is_judged_on_the_damaged_pictures(run, real_only, monkeypatch, capsys, tmp_path):
    numbers, _, _ = evaluated(monkeypatch, capsys, run, real_only, tmp_path, n_damaged=12)
    source = open_source(str(real_only), "Test", one_class=True)
    picks = robustness.choose(source.labels, np.arange(12), 12)
    threshold = numbers["robustness"]["threshold"]
    for row in numbers["robustness"]["rows"][6::11]:
        images = [
            corrupt(source.read(i), row["kind"], row["level"], seed=i) for i in picks.tolist()
        ]
        assert row["false_alarm_rate"] == pytest.approx((Detector(run)(images) >= threshold).mean())


def test_no_alarm_in_n_pictures_is_not_certainty():
    for n in (5, 300):
        low, high = one_class.rate(np.zeros(n, bool))["ci95"]
        assert low == 0
        assert high == pytest.approx(stats.beta.ppf(0.975, 1, n))  # Clopper and Pearson
    # Ten pictures of two sources are two draws.
    low, high = one_class.rate(np.ones(10, bool), ["a"] * 5 + ["b"] * 5)["ci95"]
    assert low == pytest.approx(stats.beta.ppf(0.025, 2, 1))
    assert high == 1
    assert np.isnan(one_class.rate(np.ones(10, bool), ["a"] * 10)["ci95"]).all()


def test_whole_groups_are_drawn_for_an_interval():
    called = np.repeat([True, False, False, True], 25)
    single = one_class.rate(called)["ci95"]
    grouped = one_class.rate(called, np.repeat(list("abcd"), 25).tolist())["ci95"]
    assert grouped[1] - grouped[0] > 3 * (single[1] - single[0])


def test_training_still_wants_both(real_only):
    with pytest.raises(UserError, match="no Fake folder"):
        open_source(str(real_only), "Test")
