"""Temperature on sets miscalibrated by hand; thresholds by counting false alarms."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from mnv4_jax.measure import calibration, metrics


def calibrated_set(n=20_000, seed=0):
    """Labels drawn from softmax(logits) itself: temperature 1 by construction."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, 2))
    labels = (rng.random(n) >= softmax(logits, axis=1)[:, 0]).astype(int)
    return logits, labels


@pytest.mark.parametrize("factor", [0.2, 1.0, 4.0])
def test_temperature_undoes_the_factor_that_spoilt_the_logits(factor):
    logits, labels = calibrated_set()
    temperature = calibration.fit_temperature(factor * logits, labels)
    assert temperature == pytest.approx(factor, rel=0.05)
    ece = [metrics.binary_metrics(labels, factor * logits / t)["ece"] for t in (1.0, temperature)]
    assert ece[1] < 0.01
    if factor != 1:
        assert ece[0] > 0.05


def test_temperature_is_a_logistic_regression_through_the_origin():
    logits, labels = calibrated_set(500)
    z = metrics.log_odds(logits)[:, None]
    oracle = LogisticRegression(fit_intercept=False, C=1e9, tol=1e-10).fit(z, labels == 0)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(
        1 / oracle.coef_[0, 0], rel=1e-3
    )


def test_temperature_stays_bounded_where_no_optimum_exists():
    logits = np.array([[1.0, 0], [0, 1]])
    # Of one picture a class Platt's target is 2/3: sigmoid(1 / T) = 2/3.
    assert calibration.fit_temperature(logits, [0, 1]) == pytest.approx(1 / np.log(2), rel=1e-3)
    high = calibration.TEMPERATURES[1]
    assert calibration.fit_temperature(logits, [1, 0]) == pytest.approx(high, rel=0.01)


def test_a_separable_validation_split_makes_nothing_certain():
    """Validation without a mistake, and a test set of the same kind with a few."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    z = np.where(labels == 0, 3.0, -3.0) + rng.normal(size=400)
    seen = np.where(labels == 0, z, -z) > 0.5
    logits = np.stack([z, 0 * z], axis=1)
    fitted = calibration.fit(logits[seen], labels[seen])
    before, after = (
        metrics.binary_metrics(labels, logits / t)["log_loss"] for t in (1, fitted["temperature"])
    )
    assert seen.sum() > 380 and after < before + 0.05
    assert min(fitted["thresholds"].values()) > 1e-6


def test_p_fake_is_the_softmax_and_never_overflows():
    logits, _ = calibrated_set(100)
    expected = softmax(logits / 3, axis=1)[:, 0]
    np.testing.assert_allclose(calibration.p_fake(logits, 3), expected, rtol=1e-12)
    np.testing.assert_array_equal(calibration.p_fake([[9999, 0], [-9999, 0]]), [1, 0])


@pytest.mark.parametrize("decimals", [6, 1])  # 1: many ties
def test_thresholds_are_the_lowest_that_keep_the_false_alarm_rate(decimals):
    logits, labels = calibrated_set(1000)
    logits = np.round(logits, decimals)
    p = calibration.p_fake(logits, 2.0)
    thresholds = calibration.fit_thresholds(logits, labels, temperature=2.0)
    assert list(thresholds) == ["0.01", "0.05", "0.1"]
    for rate, threshold in thresholds.items():
        real = p[labels == 1]
        assert (real >= threshold).mean() <= float(rate)
        next_score = p[p < threshold].max()  # one picture lower would break the promise
        assert (real >= next_score).mean() > float(rate)


def test_thresholds_of_a_few_pictures_allow_no_false_alarm():
    logits = np.array([[2.0, 0], [1, 0], [0, 0]])
    thresholds = calibration.fit_thresholds(logits, np.array([0, 1, 1]))
    p = calibration.p_fake(logits)
    assert all(p[1] < t < p[0] for t in thresholds.values())


def test_thresholds_need_a_real_picture():
    with pytest.raises(ValueError, match="real"):
        calibration.fit_thresholds(np.zeros((2, 2)), np.zeros(2, int))


def test_fit_is_what_a_checkpoint_carries():
    logits, labels = calibrated_set(200)
    fitted = calibration.fit(logits, labels)
    assert set(fitted) == {
        "temperature",
        "thresholds",
        "clear_below",
        "achieved",
        "split",
        "n",
    }
    assert (fitted["split"], fitted["n"]) == ("Validation", 200)
    called = calibration.p_fake(logits, fitted["temperature"]) >= fitted["thresholds"]["0.05"]
    assert fitted["achieved"]["0.05"] == {
        "false_alarm_rate": called[labels == 1].mean(),
        "recall_fake": called[labels == 0].mean(),
    }
    assert calibration.fit(logits, np.zeros(200, int)) is None
    assert calibration.fit(np.full((200, 2), np.nan), labels) is None


@pytest.mark.parametrize("rate", calibration.FALSE_ALARM_RATES)
def test_at_most_the_promised_share_of_fakes_lies_below(rate):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 500)
    logits = rng.normal(size=(500, 2))
    clear = calibration.fit_clear_below(logits, labels)[f"{rate:g}"]
    fakes = calibration.p_fake(logits)[labels == 0]
    assert (fakes < clear).mean() <= rate < (fakes <= clear).mean() + 1 / len(fakes)


def test_thresholds_of_a_mixture_hold_in_every_set():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 900)
    set_of = np.repeat([0, 1, 2], 300)
    labels[set_of == 2] = 0  # fakes alone
    logits = rng.normal(size=(900, 2))
    logits[set_of == 1, 0] += 2  # photographs of this set look more like fakes
    fitted = calibration.fit(logits, labels, set_of=set_of)
    p = calibration.p_fake(logits, fitted["temperature"])
    real = labels == 1
    for rate, threshold in fitted["thresholds"].items():
        alarms = [(p[real & (set_of == s)] >= threshold).mean() for s in (0, 1)]
        assert max(alarms) <= float(rate)
    pooled = calibration.fit(logits, labels)
    assert fitted["thresholds"]["0.05"] > pooled["thresholds"]["0.05"]
    assert fitted["temperature"] == pooled["temperature"]
