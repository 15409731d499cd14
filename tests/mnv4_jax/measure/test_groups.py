import numpy as np
import pytest
from scipy.stats import norm

from mnv4_jax.measure.groups import rates_by_group

LABELS = np.array([1] * 8 + [0] * 4)
P_FAKE = np.array([0.9, 0.1, 0.2, 0.3, 0.8, 0.7, 0.2, 0.1, 0.9, 0.4, 0.6, 0.1])


def wilson(k, n):
    """Wilson 1927, from its formula."""
    z, p = norm.ppf(0.975), k / n
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]


def test_rates_and_gap_of_each_group():
    column = ["a"] * 4 + ["b"] * 4 + ["a", "b", "b", ""]
    found = rates_by_group(LABELS, P_FAKE, {"source": column}, 0.5)["source"]
    a, b = found["groups"]["a"], found["groups"]["b"]
    assert (a["n_real"], a["n_fake"], b["n_real"], b["n_fake"]) == (4, 1, 4, 2)
    assert a["false_alarm_rate"]["value"] == 1 / 4
    assert b["false_alarm_rate"]["value"] == 2 / 4
    assert b["false_alarm_rate"]["ci95"] == pytest.approx(wilson(2, 4))
    assert (a["recall_fake"]["value"], b["recall_fake"]["value"]) == (1.0, 0.5)
    assert found["gap"] == pytest.approx(1 / 4)
    assert list(found["groups"]) == ["a", "b"]  # "" is unknown, and no group


def test_ages_are_taken_in_bands_in_their_order():
    ages = ["3", "17", "18", "39", "40", "64", "65", "99", "3", "70", "", "20"]
    groups = rates_by_group(LABELS, P_FAKE, {"age": ages}, 0.5)["age"]["groups"]
    assert list(groups) == ["0-17", "18-39", "40-64", "65+"]
    assert [g["n_real"] for g in groups.values()] == [2, 2, 2, 2]


def test_a_group_without_such_pictures_has_no_rate():
    column = ["a"] * 8 + ["b"] * 4
    found = rates_by_group(LABELS, P_FAKE, {"set": column}, 0.5)["set"]
    assert found["groups"]["b"]["false_alarm_rate"] is None
    assert found["gap"] is None


def test_columns_that_group_nothing_are_left_out():
    columns = {"same": ["x"] * 12, "empty": [""] * 12}
    assert rates_by_group(LABELS, P_FAKE, columns, 0.5) == {}
    many = {"file": [str(i) for i in range(50)]}
    assert rates_by_group(np.ones(50, int), np.zeros(50), many, 0.5) == {}
