"""The sweep's source against the corruptions themselves, and its figures against a direct score."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from input_pipeline.sources import open_source
from mnv4_jax.detector.detector import Detector
from mnv4_jax.measure import corruptions
from mnv4_jax.report import robustness


@pytest.fixture(scope="module")
def source(portraits):
    return open_source(str(portraits), "Test")


def test_every_damage_reaches_every_pick(source):
    picks = [3, 8]
    damaged = robustness.Damaged(source, picks)
    count = 1 + 5 * len(corruptions.CORRUPTIONS)
    assert len(damaged) == 2 * count
    np.testing.assert_array_equal(damaged.read(1), source.read(8))  # undamaged first
    for i in range(2, len(damaged)):
        kind, level = damaged.damages[i // 2]
        pick = picks[i % 2]
        expected = corruptions.corrupt(source.read(pick), kind, level, seed=pick)
        np.testing.assert_array_equal(damaged.read(i), expected)
    assert damaged.labels.tolist() == source.labels[picks].tolist() * count


def test_a_picture_too_large_for_a_jpeg_costs_only_itself(run, portraits, tmp_path):
    class Wide:
        groups = None
        ids, labels = ("wide", "a", "b", "c"), np.array([0, 0, 1, 1])

        def __len__(self):
            return 4

        def read(self, i):
            return np.full((3, 70_000 if i == 0 else 40, 3), 50 * i, np.uint8)

    rows = robustness.sweep(Detector(run), Wide(), range(4), threshold=0.5)
    assert all(np.isfinite(row["auc"]["value"]) for row in rows)


def test_half_of_the_choice_is_fake_where_there_are_as_many():
    labels, index = np.array([0] * 3 + [1] * 50), np.arange(100, 153)
    chosen = robustness.choose(labels, index, 20)
    assert (chosen < 103).sum() == 3
    assert (chosen >= 103).sum() == 10
    assert (np.diff(chosen) > 0).all()


def test_the_sweep_scores_each_damage(run, source):
    detector = Detector(run)
    detector.temperature = 1.0
    picks = robustness.choose(source.labels[:-1], np.arange(24), 8)
    rows = robustness.sweep(detector, source, picks, threshold=0.5)
    assert [(row["kind"], row["level"]) for row in rows[1:]] == [
        (kind, level) for kind, c in corruptions.CORRUPTIONS.items() for level in c.levels
    ]
    labels = source.labels[picks]
    for row in (rows[0], rows[7], rows[-1]):
        images = [source.read(int(pick)) for pick in picks]
        if row["kind"] != "none":
            images = [
                corruptions.corrupt(image, row["kind"], row["level"], seed=int(pick))
                for image, pick in zip(images, picks, strict=True)
            ]
        p = detector(images)
        assert row["auc"]["value"] == pytest.approx(roc_auc_score(labels == 0, p))
        assert row["false_alarm_rate"] == (p[labels == 1] >= 0.5).mean()
