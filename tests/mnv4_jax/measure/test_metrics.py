"""Every metric against scikit-learn or its definition; intervals against their promise."""

import numpy as np
import pytest
from scipy import stats
from sklearn import calibration as sk_calibration
from sklearn import metrics as sk

from mnv4_jax.measure import metrics


def scores(n=400, seed=0, decimals=8):
    """Overlapping classes, 1 in 3 fake; few decimals make ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) > 1 / 3).astype(np.int32)
    logits = rng.normal(size=(n, 2)) + np.eye(2)[labels]
    return labels, np.round(logits, decimals)


def oracle(labels, logits, weights=None):
    """The same metrics as scikit-learn has them, from p_fake."""
    fake = labels == metrics.FAKE
    z = logits[:, 0] - logits[:, 1]
    p = 1 / (1 + np.exp(-z))
    w = {"sample_weight": weights}
    fpr, tpr, _ = sk.roc_curve(fake, z, drop_intermediate=False, **w)
    expected = {
        "accuracy": sk.accuracy_score(fake, p >= 0.5, **w),
        "balanced_accuracy": sk.balanced_accuracy_score(fake, p >= 0.5, **w),
        "auc": sk.roc_auc_score(fake, z, **w),
        "average_precision": sk.average_precision_score(fake, z, **w),
        "log_loss": sk.log_loss(fake, p, **w),
        "brier": sk.brier_score_loss(fake, p, **w),
    }
    for rate in (0.01, 0.05, 0.1):
        expected[f"tpr_at_fpr_{round(rate * 100)}"] = tpr[fpr <= rate].max()
    for name, positive in (("fake", True), ("real", False)):
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            fake, p >= 0.5, pos_label=positive, average="binary", zero_division=0, **w
        )
        expected |= {f"precision_{name}": precision, f"recall_{name}": recall, f"f1_{name}": f1}
    return expected


@pytest.mark.parametrize("decimals", [8, 0])
def test_metrics_equal_scikit_learns_with_and_without_ties(decimals):
    labels, logits = scores(decimals=decimals)
    ours = metrics.binary_metrics(labels, logits)
    expected = oracle(labels, logits)
    assert {k: ours[k] for k in expected} == pytest.approx(expected, abs=1e-12)
    assert ours["loss"] == ours["log_loss"]
    assert set(ours) - set(expected) == {"loss", "eer", "ece"}  # their oracles are below


def test_weights_count_as_repeated_examples():
    """What the bootstrap relies on: a weight is a number of copies, 0 included."""
    labels, logits = scores(200, decimals=1)
    weights = np.random.default_rng(1).integers(0, 4, (3, 200))
    weights[0, np.argsort(logits[:, 1] - logits[:, 0])[:5]] = 0  # nothing at the highest scores
    ours = metrics.weighted_metrics(labels, metrics.log_odds(logits), weights)
    for row, w in enumerate(weights):
        copies = np.repeat(np.arange(200), w)
        expected = metrics.binary_metrics(labels[copies], logits[copies])
        del expected["loss"]
        assert {k: v[row] for k, v in ours.items()} == pytest.approx(expected, abs=1e-12)
        theirs = oracle(labels, logits, w)
        assert {k: ours[k][row] for k in theirs} == pytest.approx(theirs, abs=1e-12)


def test_eer_is_where_both_error_rates_meet():
    labels, logits = scores(2000)
    fpr, tpr, _ = sk.roc_curve(labels == 0, metrics.log_odds(logits), drop_intermediate=False)
    rates = np.linspace(0, 1, 100_001)
    gap = np.abs(rates + np.interp(rates, fpr, tpr) - 1)
    assert metrics.binary_metrics(labels, logits)["eer"] == pytest.approx(
        rates[gap.argmin()], abs=1e-4
    )


@pytest.mark.parametrize(("fake", "expected"), [(3.0, 0.0), (-3.0, 1.0), (0.0, 0.5)])
def test_eer_at_the_ends(fake, expected):
    """Perfect, perfectly wrong, and one score for all."""
    labels = np.array([0, 0, 1, 1])
    logits = np.where(labels[:, None] == 0, [[fake, 0]], [[0, 0]])
    assert metrics.binary_metrics(labels, logits)["eer"] == expected


def test_ece_is_the_gap_of_the_reliability_diagram():
    labels, logits = scores(3000)
    p = 1 / (1 + np.exp(-metrics.log_odds(logits)))
    share, mean = sk_calibration.calibration_curve(labels == 0, p, n_bins=metrics.ECE_BINS)
    edges = np.linspace(0, 1, metrics.ECE_BINS + 1)
    counts = np.histogram(p, edges)[0]
    expected = (np.abs(share - mean) * counts[counts > 0]).sum() / len(p)
    assert metrics.binary_metrics(labels, logits)["ece"] == pytest.approx(expected, abs=1e-12)


def test_ece_of_a_hand_made_set():
    """Ten pictures, all called 90% fake, of which six are: a gap of 0.3."""
    logits = np.tile([np.log(9.0), 0.0], (10, 1))
    labels = np.array([0] * 6 + [1] * 4)
    assert metrics.binary_metrics(labels, logits)["ece"] == pytest.approx(0.3)


def test_a_missing_class_is_nan_not_a_number():
    values = metrics.binary_metrics(np.zeros(4, int), np.eye(4, 2))
    for name in ("auc", "eer", "balanced_accuracy", "recall_real", "tpr_at_fpr_5"):
        assert np.isnan(values[name]), name
    assert values["recall_fake"] == values["accuracy"] == 0.75  # ties are called fake


def test_a_diverged_network_has_no_metrics():
    labels, logits = scores(50)
    logits[7, 0] = np.nan
    assert all(np.isnan(v) for v in metrics.binary_metrics(labels, logits).values())


def test_huge_logits_neither_overflow_nor_tie():
    """p_fake saturates at 1.0 in float64 from log-odds of 37 on; the ranking must not."""
    logits = np.array([[2000.0, 0], [900, 0], [100, 0], [-2000, 0]])
    values = metrics.binary_metrics(np.array([0, 0, 1, 1]), logits)
    assert values["auc"] == 1
    assert values["log_loss"] == pytest.approx(25)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """The AUC of N(1, 1) against N(0, 1) is Φ(1/√2) = 0.7602."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        labels = np.arange(120) % 2
        logits = np.stack([rng.normal(size=120) + (labels == 0), np.zeros(120)], axis=1)
        auc = metrics.metrics_with_intervals(labels, logits, resamples=200, seed=seed)["auc"]
        covered += auc["ci95"][0] <= 0.76025 <= auc["ci95"][1]
    assert 88 <= covered <= 100


def test_the_interval_is_95_percent_of_scikit_learns_resamples():
    labels, logits = scores(150, decimals=1)
    groups = [f"source {i // 3}" for i in range(150)]
    chunks = metrics.bootstrap_weights(150, groups, resamples=120, seed=5)
    aucs = [
        sk.roc_auc_score(labels == 0, logits[:, 0] - logits[:, 1], sample_weight=weights)
        for weights in np.concatenate(list(chunks))
    ]
    ours = metrics.metrics_with_intervals(labels, logits, groups, resamples=120, seed=5)["auc"]
    assert ours["ci95"] == pytest.approx(np.quantile(aucs, [0.025, 0.975]), abs=1e-12)
    assert len(aucs) == 120


def test_groups_widen_the_interval_by_the_root_of_their_size():
    """Each example copied 16 times knows no more than once: the interval must not shrink."""
    labels, logits = scores(100)
    single = metrics.metrics_with_intervals(labels, logits)["auc"]
    copies = np.repeat(np.arange(100), 16)
    groups = [f"source {i}" for i in copies]
    grouped = metrics.metrics_with_intervals(labels[copies], logits[copies], groups)["auc"]
    blind = metrics.metrics_with_intervals(labels[copies], logits[copies])["auc"]
    width = [x["ci95"][1] - x["ci95"][0] for x in (single, grouped, blind)]
    assert width[1] == pytest.approx(width[0], rel=0.1)
    assert width[2] == pytest.approx(width[0] / 4, rel=0.15)


def test_no_error_in_n_pictures_is_not_certainty():
    labels = np.repeat([metrics.FAKE, metrics.REAL], [10, 30])
    called = labels == metrics.FAKE
    rates = metrics.rates_of(labels, called, resamples=10)
    exact = stats.binomtest(0, 30).proportion_ci(method="exact")  # Clopper and Pearson
    assert rates["false_alarm_rate"]["ci95"] == pytest.approx([0, exact.high])
    exact = stats.binomtest(10, 10).proportion_ci(method="exact")
    assert rates["recall_fake"]["ci95"] == pytest.approx([exact.low, 1])
    # Thirty photographs of three people are three draws.
    groups = [f"{i % 3}" for i in range(40)]
    rates = metrics.rates_of(labels, called, groups, resamples=10)
    exact = stats.binomtest(0, 3).proportion_ci(method="exact")
    assert rates["false_alarm_rate"]["ci95"] == pytest.approx([0, exact.high])


def test_one_group_alone_has_no_interval():
    labels, logits = scores(50)
    found = metrics.metrics_with_intervals(labels, logits, ["a"] * 50, resamples=10)
    assert np.isnan(found["auc"]["ci95"]).all() and found["auc"]["value"] > 0.5


def test_metrics_by_set_are_the_mean_over_sets_whatever_their_size():
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.integers(0, 2, 300), np.zeros(40, int)])
    logits = rng.normal(size=(340, 2)) + np.stack([1 - labels, labels], axis=1)
    set_of = np.repeat([0, 2], [300, 40])
    found = metrics.metrics_by_set(labels, logits, set_of, ["both", "empty", "fakes"])
    score = logits[:, 0] - logits[:, 1]
    both = sk.roc_auc_score(labels[:300] == 0, score[:300])
    rows = (set_of == 2) | (labels == 1)  # fakes alone, against the real ones of all sets
    fakes = sk.roc_auc_score(labels[rows] == 0, score[rows])
    assert found["sets"]["both"]["auc"] == pytest.approx(both)
    assert found["sets"]["fakes"] == pytest.approx(found["sets"]["fakes"] | {"n": 40, "auc": fakes})
    assert found["auc"] == pytest.approx((both + fakes) / 2)
    assert list(found["sets"]) == ["both", "fakes"]
