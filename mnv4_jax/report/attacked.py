"""Measures a detector on pictures that were changed to deceive it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from input_pipeline.decode import decode
from input_pipeline.sources import Source, Subset
from mnv4_jax.attacks.budget import margin
from mnv4_jax.attacks.gradient import apgd, fgsm, pgd
from mnv4_jax.attacks.square import square
from mnv4_jax.detector.detector import Detector
from mnv4_jax.measure import calibration, metrics
from mnv4_jax.measure.corruptions import encode_jpeg
from mnv4_jax.models.weights import merge, split

_BATCH = 16  # more do not fit the cache of a CPU core
_RESAMPLES = 200
_JPEG = (90, 75)  # qualities at which platforms compress uploads
_LARGE = 64  # 255ths: a budget at which no accuracy can be left
_SHOWN = 8

Attack = Callable[..., jax.Array]


def attacks(steps: int) -> dict[str, Attack]:
    """The attacks of a report by name; `steps` gradients each, and five times as many queries."""
    return {
        "fgsm": fgsm,
        "pgd": pgd,  # compiled once for any number of steps, see `Attacked.run`
        "apgd-ce": functools.partial(apgd, steps=steps),
        "apgd-margin": functools.partial(apgd, steps=steps, loss="margin"),
        "square": functools.partial(square, queries=5 * steps),
    }


class Attacked:
    """A detector under attack: some pictures, and its answers when they are changed.

    Args:
      model: a `classifier.Classifier`; normalisation and Gabor bank are inside.
      images: [N, H, W, 3] uint8 as the network gets them; labels: [N].
      temperature: of the calibration.
      other: take the gradients of this model (a transfer attack) instead of `model`.
    """

    def __init__(
        self,
        model: nnx.Module,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        temperature: float,
        other: nnx.Module | None = None,
    ):
        self.images, self.labels = images, labels
        self._temperature = temperature
        self._graphdef, self._weights = split(model)
        self._source = split(other) if other is not None else (self._graphdef, self._weights)
        self._scores = jax.jit(lambda weights, x: self._logits(self._graphdef, weights, x))
        self._attacks: dict[Any, Callable] = {}

    def _logits(self, graphdef, weights, x):
        return merge(graphdef, weights)(x) / self._temperature

    def logits(self, images: np.ndarray) -> np.ndarray:
        """[N, H, W, 3] uint8 -> [N, 2] calibrated logits."""
        return self._in_batches(
            lambda x, _, __: self._scores(self._weights, x), images, np.zeros(len(images), np.int32)
        )

    def run(
        self, name: str, attack: Attack, budget: float, *, seed: int = 0, **settings: float
    ) -> np.ndarray:
        """The pictures changed by `attack` within `budget` (255ths): [N, H, W, 3] uint8.

        Each `name` is compiled only once; the numerical `settings` may vary.
        """
        if name not in self._attacks:
            graphdef, _ = self._source

            def run(weights, images, labels, budget, key, settings):
                logits = functools.partial(self._logits, graphdef, weights)
                return attack(logits, images, labels, budget, key, **settings)

            self._attacks[name] = jax.jit(run)
        compiled, weights = self._attacks[name], self._source[1]
        changed = self._in_batches(
            lambda x, labels, key: compiled(
                weights, x, labels, jnp.float32(budget / 255), key, settings
            ),
            self.images,
            self.labels,
            seed=seed,
        )
        return np.round(changed * 255).astype(np.uint8)

    def _in_batches(self, compute, images, labels, *, seed: int = 0) -> np.ndarray:
        """`compute` of every batch, all of one shape: pads the last one with its first picture."""
        done = []
        for k, start in enumerate(range(0, len(images), _BATCH)):
            rows = np.arange(start, start + _BATCH)
            rows[rows >= len(images)] = start
            x = jnp.asarray(images[rows], jnp.float32) / 255
            key = jax.random.fold_in(jax.random.key(seed), k)
            result = np.asarray(compute(x, jnp.asarray(labels[rows]), key))
            done.append(result[: len(images) - start])
        return np.concatenate(done)


def pixels_of(source: Source, picks: Sequence[int], detector: Detector) -> np.ndarray:
    """[N, H, W, 3] uint8 of `picks`, as the network gets them."""
    with detector.batches(Subset(source, list(picks)), batch_size=1) as batches:
        return np.concatenate([batch["image"].copy() for batch in batches])


def judge(
    detector: Attacked,
    budgets: Sequence[int],
    *,
    steps: int,
    threshold: float,
    transfer: Attacked | None = None,
) -> tuple[dict[str, Any], np.ndarray]:
    """The metrics of `detector` under attack at each of `budgets` (255ths, whole numbers).

    Args:
      steps: gradients an attack may take.
      threshold: fixed on Validation, for detection and false alarms.
      transfer: the same detector with another model's gradients.

    Returns:
      {"n", "steps", "threshold", "rows", "sanity", "doubts"}, JSON values. A row is an attack (or
      "worst": the worst attack for each picture; or "worst, JPEG 90") at a budget, on "fakes" alone
      or on "both" classes, with {"value", "ci95"} of auc, accuracy, recall_fake, false_alarm_rate.
      "doubts" lists reasons not to trust the attack; empty if there are none.
      And the pictures [N, H, W, 3] uint8 of the worst attack at the largest budget.
    """
    labels = detector.labels
    plan = [(name, detector, attack) for name, attack in attacks(steps).items()]
    if transfer:
        plan.append(("transfer", transfer, pgd))
    clean = detector.logits(detector.images)
    rows = _rows("none", 0, clean, clean, labels, threshold)
    # Does not depend on the budget. Nor does `best` start again: a change within a smaller budget
    # is also within a larger one.
    compressed = {
        quality: detector.logits(_compressed(detector.images, quality)) for quality in _JPEG
    }
    best, best_logits = detector.images, clean
    margins: dict[tuple[str, int], np.ndarray] = {}
    for budget in budgets:
        for name, by, attack in plan:
            settings = {"steps": steps} if attack is pgd else {}
            changed = by.run(name, attack, budget, **settings)
            logits = detector.logits(changed)
            rows += _rows(name, budget, clean, logits, labels, threshold)
            margins[name, budget] = _margin(logits, labels)
            wins = margins[name, budget] > _margin(best_logits, labels)
            best = np.where(wins[:, None, None, None], changed, best)
            best_logits = np.where(wins[:, None], logits, best_logits)
        rows += _rows("worst", budget, clean, best_logits, labels, threshold)
        for quality, plain in compressed.items():
            sent = detector.logits(_compressed(best, quality))
            rows += _rows(f"worst, JPEG {quality}", budget, plain, sent, labels, threshold)
    sanity, doubts = _sanity(detector, budgets, steps, margins)
    return {
        "n": len(labels), "steps": steps, "threshold": threshold, "rows": rows,
        "sanity": sanity, "doubts": doubts,
    }, best  # fmt: skip


def failures(detector: Attacked, changed: np.ndarray, ids: Sequence[str]) -> list[dict[str, Any]]:
    """At most 8 fakes that `changed` [N, H, W, 3] hides best: {"id", "before", "after",
    "p_before", "p_after"}, the pictures as uint8 [H, W, 3]."""
    before, after = (
        calibration.p_fake(detector.logits(images), 1.0) for images in (detector.images, changed)
    )
    fakes = np.flatnonzero(detector.labels == metrics.FAKE)
    worst = fakes[np.argsort(after[fakes] - before[fakes], kind="stable")][:_SHOWN]
    return [
        {
            "id": ids[i],
            "before": detector.images[i],
            "after": changed[i],
            "p_before": before[i],
            "p_after": after[i],
        }
        for i in worst
    ]


def _compressed(images: np.ndarray, quality: int) -> np.ndarray:
    return np.stack([decode(encode_jpeg(image, quality)) for image in images])


def _rows(name, budget, clean, attacked, labels, threshold) -> list[dict[str, Any]]:
    """One row with only fakes attacked, one with all pictures attacked."""
    fakes = np.where((labels == metrics.FAKE)[:, None], attacked, clean)
    return [
        {"attack": name, "budget": budget, "on": on, **_rates(labels, logits, threshold)}
        for on, logits in (("fakes", fakes), ("both", attacked))
    ]


def _rates(labels: np.ndarray, logits: np.ndarray, threshold: float) -> dict[str, Any]:
    found = metrics.metrics_with_intervals(labels, logits, resamples=_RESAMPLES)
    called = calibration.p_fake(logits, 1.0) >= threshold
    return {
        "auc": found["auc"],
        "accuracy": found["accuracy"],
        **metrics.rates_of(labels, called, resamples=_RESAMPLES),
    }


def _margin(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.asarray(margin(jnp.asarray(logits), jnp.asarray(labels)))


def _sanity(
    detector: Attacked, budgets: Sequence[int], steps: int, margins: Mapping
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows {"what", "accuracy"} of attacks that must, or must not, do harm; and any doubts.

    After Carlini et al., On Evaluating Adversarial Robustness (arXiv:1902.06705), section 3.
    """
    labels, budget = detector.labels, budgets[len(budgets) // 2]
    right = lambda values: float((values < 0).mean())  # noqa: E731

    def accuracy_of(steps, budget):
        changed = detector.run("pgd", pgd, budget, steps=steps)
        return right(_margin(detector.logits(changed), labels))

    clean = right(_margin(detector.logits(detector.images), labels))
    once = right(margins["pgd", budget])
    rng = np.random.default_rng(0)
    noise = rng.choice([-budget, budget], detector.images.shape)
    noisy = np.clip(detector.images + noise, 0, 255).astype(np.uint8)
    by_noise = right(_margin(detector.logits(noisy), labels))
    by_few = accuracy_of(max(1, steps // 4), budget)
    by_many = accuracy_of(2 * steps, budget)
    by_large = accuracy_of(steps, _LARGE)
    white = np.max([margins[n, budget] for n in ("fgsm", "pgd", "apgd-ce", "apgd-margin")], axis=0)
    black = margins["square", budget]
    rows = [
        {"what": "no attack", "accuracy": clean},
        {"what": f"random noise of ±{budget}/255", "accuracy": by_noise},
        {"what": f"pgd at {budget}/255, {max(1, steps // 4)} steps", "accuracy": by_few},
        {"what": f"pgd at {budget}/255, {steps} steps", "accuracy": once},
        {"what": f"pgd at {budget}/255, {2 * steps} steps", "accuracy": by_many},
        {"what": f"pgd at {_LARGE}/255", "accuracy": by_large},
        {"what": f"white box at {budget}/255, the worst of four", "accuracy": right(white)},
        {"what": f"black box (square) at {budget}/255", "accuracy": right(black)},
    ]
    slack = max(0.03, 1.5 / len(labels))
    doubts = []
    if by_many < once - slack:
        doubts.append(f"twice the steps find more: raise --attack_steps above {steps}")
    if by_large > 0.05 + slack:
        doubts.append(f"a budget of {_LARGE}/255 leaves {by_large:.0%}: gradients are hidden")
    if right(black) < right(white) - slack:
        doubts.append("the black box is stronger than the white one: gradients are hidden")
    if by_noise < clean - 0.1:
        doubts.append("random noise alone does harm: what falls here is not all the attack's doing")
    return rows, doubts
