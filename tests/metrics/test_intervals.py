"""Bootstrap intervals: against a plain loop that copies examples, against theory, and by coverage of a known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from research.errors import InputError
from research.metrics import find
from research.metrics.intervals import CHUNK, Interval, bootstrap, hierarchical

LABELS = np.arange(3)


def predictions_of(rng, seeds, references, accuracy):
    right = rng.random((seeds, len(references))) < accuracy
    return np.where(right, references, rng.integers(0, 3, right.shape))


@pytest.mark.parametrize("name", ["accuracy", "macro_f1"])
def test_hierarchical_equals_a_loop_over_resampled_predictions(name):
    rng = np.random.default_rng(0)
    references = rng.integers(0, 3, 60)
    predictions = predictions_of(rng, 4, references, 0.8)

    def score(examples, seeds):
        if name == "accuracy":
            return (predictions[seeds][:, examples] == references[examples]).mean()
        return np.mean(
            [
                f1_score(references[examples], predictions[seed, examples], labels=LABELS, average="macro", zero_division=0)
                for seed in seeds
            ]
        )

    draws = [score(rng.integers(0, 60, 60), rng.integers(0, 4, 3)) for _ in range(400)]
    interval = hierarchical(predictions, find(name, LABELS), references=references, resamples=20_000)
    assert interval.mean == pytest.approx(score(np.arange(60), np.arange(4)))
    np.testing.assert_allclose(interval[1:], np.quantile(draws, [0.025, 0.975]), atol=0.015)


def test_seeds_and_examples_both_widen_the_interval():
    rng = np.random.default_rng(0)
    only_examples = np.tile(rng.normal(size=400), (5, 1))
    interval = hierarchical(only_examples, resamples=8000)
    half = stats.norm.ppf(0.975) * only_examples[0].std() / 20
    assert interval.high - interval.mean == pytest.approx(half, rel=0.05)
    assert interval.mean - interval.low == pytest.approx(half, rel=0.05)
    # Of two seeds one is drawn: either score with probability 1/2, never their mean.
    only_seeds = np.tile([[0.0], [1.0]], 50)
    assert hierarchical(only_seeds, level=0.4) == hierarchical(only_seeds, level=0.95) == Interval(0.5, 0, 1)
    wide, narrow = hierarchical(only_examples, level=0.99), hierarchical(only_examples, level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_baseline_gives_the_paired_difference():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(1, 300)) * 5
    a, b = shared + rng.normal(size=(2, 3, 300)) * 0.1 + np.array([[[1.0]], [[0.0]]])
    interval = hierarchical(a, baseline=b)
    assert interval.mean == pytest.approx((a - b).mean())
    assert 0.97 < interval.low < 1 < interval.high < 1.03  # what the systems share cancels
    assert hierarchical(a, baseline=a) == Interval(0, 0, 0)


def test_deterministic_whatever_the_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    values = rng.random((3, 50))
    first = hierarchical(values, seed=1)
    assert first == hierarchical(values, seed=1) != hierarchical(values, seed=2)
    monkeypatch.setattr("research.metrics.intervals.CHUNK", 50 * 7)
    assert CHUNK > 50 * 7
    np.testing.assert_allclose(hierarchical(values, seed=1), first, atol=0.01)


def test_bootstrap_of_a_mean_equals_scipy():
    values = np.random.default_rng(0).exponential(size=80)
    for method in ("percentile", "BCa"):
        expected = stats.bootstrap((values,), np.mean, n_resamples=9999, method=method, rng=np.random.default_rng(1))
        interval = bootstrap(values, method=method, resamples=9999, seed=1)
        assert interval.mean == pytest.approx(values.mean())
        np.testing.assert_allclose(interval[1:], expected.confidence_interval)  # the same draws, counted


def test_bootstrap_of_macro_f1_and_of_a_perfect_run():
    rng = np.random.default_rng(0)
    references = rng.integers(0, 3, 300)
    predictions = predictions_of(rng, 1, references, 0.8)
    metric = find("macro_f1", LABELS)
    percentile = bootstrap(predictions[0], metric, references=references, method="percentile", resamples=4000)
    crossed = hierarchical(predictions, metric, references=references, resamples=4000)
    np.testing.assert_allclose(percentile, crossed, atol=0.005)
    bca = bootstrap(predictions[0], metric, references=references)
    np.testing.assert_allclose(bca, percentile, atol=0.02)
    assert bootstrap(references, metric, references=references) == Interval(1, 1, 1)
    assert np.isnan(bootstrap(np.ones(9), find("pearson"), references=np.arange(9.0))).all()


@pytest.mark.parametrize("seeds, spread", [(1, 0.0), (5, 0.02)])
def test_coverage_of_accuracy(seeds, spread):
    """Nominal 95 % intervals hold the true accuracy in 90 to 99.5 % of simulated experiments."""
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        easiness, skill = rng.beta(4, 1, 150), rng.normal(0, spread, (seeds, 1))  # means 0.8 and 0
        chance = np.clip(easiness + skill, 0, 1)
        interval = hierarchical(rng.random(chance.shape) < chance, resamples=400, seed=trial)
        hits += interval.low <= 0.8 <= interval.high
    assert 0.90 <= hits / 300 <= 0.995


def test_refusals():
    values = np.zeros((2, 5))
    for message, call in {
        "seeds, examples": lambda: hierarchical(np.zeros(5)),
        "not empty": lambda: hierarchical(np.zeros((0, 5))),
        "4 references do not fit 5 examples": lambda: hierarchical(values, find("accuracy"), references=np.zeros(4)),
        "baseline": lambda: hierarchical(values, baseline=np.zeros((3, 5))),
        "level": lambda: hierarchical(values, level=95),
        "resamples": lambda: hierarchical(values, resamples=0),
        "at least two": lambda: bootstrap([1.0]),
        "method": lambda: bootstrap([1.0, 2.0], method="bca"),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
