"""The report's attack section: what it measures, and whether it knows when not to be believed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mnv4_jax.attacks.gradient import pgd
from mnv4_jax.measure import metrics
from mnv4_jax.report import attacked

SIDE, N = 16, 24
LABELS = np.arange(N) % 2


class Reader(nnx.Module):
    """A detector that reads the label off the sign of a weak pattern; `hide` hides the gradient."""

    def __init__(self, hide: bool):
        pattern = np.where(np.random.default_rng(1).random((SIDE, SIDE, 3)) < 0.5, -1.0, 1.0)
        self.pattern = nnx.Param(jnp.asarray(pattern, jnp.float32))
        self.hide = hide

    def __call__(self, images):
        if self.hide:
            images = jnp.round(images * 255 / 8) * 8 / 255  # its gradient is 0
        score = 200 * jnp.mean((images - 0.5) * self.pattern[...], axis=(1, 2, 3))
        return jnp.stack([-score, score], axis=1)


def pictures(strength):
    pattern = np.asarray(Reader(False).pattern[...])
    sign = np.where(LABELS == 1, 1, -1)[:, None, None, None]
    noise = np.random.default_rng(0).integers(-20, 21, (N, SIDE, SIDE, 3))
    return np.clip(128 + noise + strength * sign * pattern, 0, 255).astype(np.uint8)


def detector(hide=False, strength=3):
    return attacked.Attacked(Reader(hide), pictures(strength), LABELS, temperature=2.0)


@pytest.fixture(scope="module")
def plain():
    return attacked.judge(detector(), (1, 6), steps=4, threshold=0.5)


def row(found, attack, budget, on):
    (only,) = [
        r for r in found["rows"] if (r["attack"], r["budget"], r["on"]) == (attack, budget, on)
    ]
    return only


def test_an_attack_within_the_signal_leaves_the_order_and_one_beyond_it_turns_it(plain):
    found, _ = plain
    assert row(found, "none", 0, "both")["auc"]["value"] > 0.99
    assert row(found, "worst", 1, "both")["auc"]["value"] > 0.9
    assert row(found, "worst", 6, "both")["auc"]["value"] < 0.05
    assert row(found, "worst", 6, "both")["accuracy"]["value"] < 0.05


def test_reals_are_left_alone_where_fakes_are_attacked(plain):
    found, _ = plain
    for name in ("pgd", "worst"):
        on_fakes, on_both = (row(found, name, 6, on) for on in ("fakes", "both"))
        clean = row(found, "none", 0, "fakes")
        assert on_fakes["false_alarm_rate"] == clean["false_alarm_rate"]
        assert on_both["false_alarm_rate"]["value"] > clean["false_alarm_rate"]["value"]
        assert on_fakes["recall_fake"] == on_both["recall_fake"]


def test_the_worst_is_at_least_as_bad_as_each_attack_and_grows_with_the_budget(plain):
    found, _ = plain
    for budget in (1, 6):
        worst = row(found, "worst", budget, "both")["accuracy"]["value"]
        for name in attacked.attacks(4):
            assert worst <= row(found, name, budget, "both")["accuracy"]["value"]


def test_the_calibration_and_the_pixels_are_those_of_the_detector():
    under = detector()
    x = jnp.asarray(under.images, jnp.float32) / 255
    np.testing.assert_allclose(
        under.logits(under.images), Reader(False)(x) / 2, rtol=1e-5, atol=1e-6
    )


def test_a_plain_detector_is_believed_and_one_that_hides_its_gradients_is_told(plain):
    found, _ = plain
    assert found["doubts"] == []
    hidden, _ = attacked.judge(detector(hide=True, strength=2), (6,), steps=4, threshold=0.5)
    assert any("gradients are hidden" in doubt for doubt in hidden["doubts"])


def test_a_transfer_attack_takes_the_other_models_gradients():
    other = Reader(False)
    other.pattern = nnx.Param(-Reader(False).pattern[...])  # its attack makes the answer surer
    model, images = Reader(False), pictures(3)
    by = attacked.Attacked(model, images, LABELS, temperature=1.0, other=other)
    helped = by.run("pgd", pgd, 4, steps=3)
    own = attacked.Attacked(model, images, LABELS, temperature=1.0)
    harmed = own.run("pgd", pgd, 4, steps=3)
    auc = lambda changed: metrics.metrics_with_intervals(LABELS, own.logits(changed))["auc"]  # noqa: E731
    assert auc(helped)["value"] >= auc(images)["value"]
    assert auc(harmed)["value"] < 0.5


def test_the_failures_are_fakes_and_the_worst_of_them(plain):
    _, worst = plain
    shown = attacked.failures(detector(), worst, [str(i) for i in range(N)])
    assert 0 < len(shown) <= 8
    falls = [f["p_after"] - f["p_before"] for f in shown]
    assert falls == sorted(falls)
    for failure in shown:
        assert LABELS[int(failure["id"])] == 0
        assert np.abs(failure["before"].astype(int) - failure["after"]).max() <= 6
        assert failure["p_after"] < failure["p_before"]
    assert jax.tree.all(jax.tree.map(lambda f: f is not None, shown))
