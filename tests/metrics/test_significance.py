"""Paired tests against enumeration, SciPy and the binomial distribution; corrections against tables worked by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from research.errors import InputError
from research.metrics import find
from research.metrics.significance import benjamini_hochberg, holm, mcnemar, permutation_test

LABELS = np.arange(3)


def test_exact_pvalue_by_hand():
    # A wins three examples, B one, two are equal: of the 2^4 sign patterns, |sum| >= 2 in 2 + 8 of them.
    a, b = np.array([[1, 1, 1, 0, 1, 0]]), np.array([[0, 0, 0, 1, 1, 0]])
    result = permutation_test(a, b)
    assert result.exact and result.pvalue == 10 / 16 and result.difference == pytest.approx(2 / 6)
    assert permutation_test(b, a).pvalue == 10 / 16
    assert permutation_test(a, a) == (0, 1, True)


@pytest.mark.parametrize("seeds", [1, 3])
def test_macro_f1_equals_brute_force_enumeration(seeds):
    rng = np.random.default_rng(0)
    references = rng.integers(0, 3, 7)
    a, b = rng.integers(0, 3, (2, seeds, 7))
    b[0, :2] = a[0, :2]  # under other seeds the systems still disagree here

    def difference(mask):
        pair = np.where(mask, b, a), np.where(mask, a, b)
        scores = [
            [f1_score(references, run, labels=LABELS, average="macro", zero_division=0) for run in system] for system in pair
        ]
        return np.mean(scores[0]) - np.mean(scores[1])

    observed = difference(np.zeros(7, bool))
    every = [abs(difference(np.array(mask))) >= abs(observed) - 1e-12 for mask in itertools.product([0, 1], repeat=7)]
    result = permutation_test(a, b, find("macro_f1", LABELS), references=references)
    assert result == (pytest.approx(observed), np.mean(every), True)


def test_sampled_pvalue_agrees_with_exact_and_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.4, 1, (1, 12)), rng.normal(0, 1, (1, 12))
    exact = permutation_test(a, b)
    sampled = permutation_test(a, b, resamples=4000)
    expected = stats.permutation_test(
        (a[0], b[0]), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", vectorized=True, n_resamples=np.inf
    ).pvalue
    assert exact.exact and exact.pvalue == pytest.approx(expected)
    assert not sampled.exact and sampled.pvalue == pytest.approx(exact.pvalue, abs=0.03)
    # Never zero: one part in R + 1 at the least.
    far = permutation_test(a + 100, b, resamples=999)
    assert far.pvalue == pytest.approx(1 / 1000, abs=0.001) and far.pvalue >= 1 / 1000


def test_any_metric_can_be_tested():
    """Swapping by weights equals swapping the predictions themselves, for a rank statistic too."""
    rng = np.random.default_rng(0)
    references = rng.normal(size=7)
    a, b = references + rng.normal(size=(2, 7)) * np.array([[0.3], [3.0]])

    def difference(mask):
        first, second = np.where(mask, b, a), np.where(mask, a, b)
        return stats.spearmanr(references, first).statistic - stats.spearmanr(references, second).statistic

    observed = difference(np.zeros(7, bool))
    every = [abs(difference(np.array(mask))) >= abs(observed) - 1e-12 for mask in itertools.product([0, 1], repeat=7)]
    result = permutation_test(a[None], b[None], find("spearman"), references=references)
    assert result == (pytest.approx(observed), np.mean(every), True)


@pytest.mark.parametrize("seeds", [1, 4])
def test_pvalues_are_uniform_under_the_null(seeds):
    """Examples that a system finds easy or hard under all its seeds: swapping per seed and example would fail this."""
    rng = np.random.default_rng(0)
    pvalues = []
    for trial in range(300):
        a, b = rng.normal(size=(2, 1, 100)) + rng.normal(size=(2, seeds, 100))
        pvalues.append(permutation_test(a, b, resamples=199, seed=trial).pvalue)
    assert 0.02 <= np.mean(np.array(pvalues) <= 0.05) <= 0.09
    assert stats.kstest(pvalues, "uniform").statistic < 0.08


def test_power():
    rng = np.random.default_rng(0)
    references = rng.integers(0, 3, 300)
    a, b = (np.where(rng.random((3, 300)) < share, references, (references + 1) % 3) for share in (0.9, 0.8))
    for metric in (find("accuracy"), find("macro_f1", LABELS)):
        result = permutation_test(a, b, metric, references=references, resamples=2000)
        assert result.difference > 0.05 and result.pvalue < 0.01


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60).map(np.array))
def test_mcnemar(pairs):
    a, b = pairs.T
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    result = mcnemar(a, b)
    assert result[:2] == (only_a, only_b)
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1
    assert result.pvalue == pytest.approx(expected)
    # On right-or-wrong scores the exact permutation test is the exact McNemar test.
    if only_a + only_b <= 10:
        assert permutation_test(a[None], b[None]).pvalue == pytest.approx(expected)


def test_mcnemar_chi_square_by_hand():
    # n = 15 + 5: (|15 - 5| - 1)^2 / 20 = 4.05, P(chi2_1 > 4.05) = 0.04417.
    a, b = np.repeat([1, 0, 1, 0], [15, 5, 40, 10]), np.repeat([0, 1, 1, 0], [15, 5, 40, 10])
    assert mcnemar(a, b, method="chi-square").pvalue == pytest.approx(0.04417, abs=1e-5)
    assert mcnemar(a, a, method="chi-square").pvalue == 1
    assert mcnemar([1, 0], [0, 1], method="chi-square").pvalue == 1


def test_corrections_by_hand():
    pvalues = [0.01, 0.04, 0.03, 0.005]
    # Holm, sorted: 4*.005, 3*.01, 2*.03, then 1*.04 raised to .06. Benjamini-Hochberg: 4/1*.005, 4/2*.01, 4/3*.03, .04.
    np.testing.assert_allclose(holm(pvalues), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(benjamini_hochberg(pvalues), [0.02, 0.04, 0.04, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    for correct in (holm, benjamini_hochberg):
        assert len(correct([])) == 0
        assert correct([0.2]) == [0.2]
        with pytest.raises(InputError, match="between 0 and 1"):
            correct([0.2, float("nan")])


def test_refusals():
    for message, call in {
        r"\[1, 3\] and \[1, 4\]": lambda: permutation_test(np.zeros((1, 3)), np.zeros((1, 4))),
        "seeds, examples": lambda: permutation_test(np.zeros(3), np.zeros(3)),
        "resamples": lambda: permutation_test(np.zeros((1, 3)), np.ones((1, 3)), resamples=0),
        "zeros and ones": lambda: mcnemar([0.5], [1]),
        "method must be": lambda: mcnemar([0], [1], method="asymptotic"),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
