"""Metrics of single runs against scikit-learn, SciPy and tables worked by hand; weights against copied examples."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from research.errors import InputError
from research.metrics import compute, find, known, reads
from research.metrics.calibration import brier_score, expected_calibration_error
from research.metrics.classification import accuracy, macro_f1, matthews, micro_f1, weighted_f1
from research.metrics.regression import mean_squared_error, pearson, spearman

LABELS = np.arange(4)
F1 = {macro_f1: "macro", micro_f1: "micro", weighted_f1: "weighted"}
label_pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30).map(np.array)


@settings(deadline=None, max_examples=60)
@given(label_pairs)
def test_single_label_metrics_equal_scikit_learn(pairs):
    references, predictions = pairs.T
    assert accuracy(references, predictions) == sklearn_metrics.accuracy_score(references, predictions)
    for function, average in F1.items():
        expected = sklearn_metrics.f1_score(references, predictions, labels=LABELS, average=average, zero_division=0)
        assert function(references, predictions, LABELS) == pytest.approx(expected, abs=1e-12)
    if len(np.unique(pairs)) > 1:  # scikit-learn warns about a single label
        expected = sklearn_metrics.matthews_corrcoef(references, predictions)
        assert matthews(references, predictions) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_multi_label_metrics_equal_scikit_learn(examples, labels, seed):
    references, predictions = np.random.default_rng(seed).integers(0, 2, (2, examples, labels))
    assert accuracy(references, predictions) == pytest.approx((references == predictions).all(1).mean())
    if labels > 1:  # scikit-learn reads one column as binary single-label
        for function, average in F1.items():
            expected = sklearn_metrics.f1_score(references, predictions, average=average, zero_division=0)
            assert function(references, predictions) == pytest.approx(expected, abs=1e-12)


def test_label_set_of_f1():
    # Worked by hand: a: hits 1, predicted 1, referred 2 -> 2/3; b: 1, 2, 1 -> 2/3; c occurs nowhere -> 0.
    references, predictions = ["a", "a", "b"], ["a", "b", "b"]
    assert macro_f1(references, predictions, ["a", "b"]) == pytest.approx(2 / 3)
    assert macro_f1(references, predictions, ["a", "b", "c"]) == pytest.approx(4 / 9)
    # A prediction that is no label is wrong, but no label's false positive: a: 2/3, b: 1; micro: 2 * 2 / (2 + 3).
    unparsable = ["a", "what?", "b"]
    assert macro_f1(references, unparsable, ["b", "a"]) == pytest.approx(5 / 6)
    assert micro_f1(references, unparsable, ["a", "b"]) == pytest.approx(4 / 5)
    assert accuracy(np.array(references, object), np.array(unparsable, object)) == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="reference 'b' is not one of the 1 labels"):
        macro_f1(references, predictions, ["a"])
    with pytest.raises(InputError, match="needs `labels`"):
        macro_f1(references, predictions)


@pytest.mark.parametrize("offset", [0, 1e7])
def test_regression_metrics_equal_scipy(offset):
    rng = np.random.default_rng(0)
    references = rng.integers(0, 6, 50) + offset  # with ties
    predictions = references + rng.normal(size=50).round(1)
    assert pearson(references, predictions) == pytest.approx(stats.pearsonr(references, predictions).statistic)
    assert spearman(references, predictions) == pytest.approx(stats.spearmanr(references, predictions).statistic)
    expected = sklearn_metrics.mean_squared_error(references, predictions)
    assert mean_squared_error(references, predictions) == pytest.approx(expected)
    assert pearson(references, references) == pytest.approx(1)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 + 0.3])
def test_degenerate_correlations(constant):
    varied, flat = np.arange(7.0), np.full(7, constant)
    for function in (pearson, spearman):
        assert np.isnan(function(varied, flat)) and np.isnan(function(flat, varied))
        flat[-1] = 5
        only_the_flat = np.random.default_rng(0).integers(1, 4, (20, 7)) * (np.arange(7) < 6)
        assert np.isnan(function(varied, flat, weights=only_the_flat)).all()
        flat[-1] = constant
    assert matthews([0, 1, 1], [1, 1, 1]) == matthews([1, 1, 1], [0, 1, 1]) == matthews([1, 1], [1, 1]) == 0


def test_calibration_by_hand():
    probabilities = np.array([[0.7, 0.3], [0.2, 0.8], [0.9, 0.1]])
    references = ["x", "y", "x"]
    # Of five bins, (.6,.8] holds .7 and .8, (.8, 1] holds .9: gaps .3 + .2 and .1; the first wrong, -.7 + .2.
    error = expected_calibration_error(references, probabilities, ["x", "y"], bins=5)
    assert error == pytest.approx((0.5 + 0.1) / 3)
    error = expected_calibration_error(["y", "y", "x"], probabilities, ["x", "y"], bins=5)
    assert error == pytest.approx((0.5 + 0.1) / 3)
    # One bin: mean confidence 2.4/3 against accuracy 2/3.
    error = expected_calibration_error(["y", "y", "x"], probabilities, ["x", "y"], bins=1)
    assert error == pytest.approx(0.4 / 3)
    assert brier_score(references, probabilities, ["x", "y"]) == pytest.approx(2 * (0.09 + 0.04 + 0.01) / 3)
    assert brier_score([1, 0, 1], probabilities[:, ::-1], [1, 0]) == pytest.approx(2 * (0.49 + 0.64 + 0.81) / 3)
    rng = np.random.default_rng(0)
    probabilities, references = rng.dirichlet(np.ones(4), 200), rng.integers(0, 4, 200)
    expected = sklearn_metrics.brier_score_loss(references, probabilities, scale_by_half=False)
    assert brier_score(references, probabilities) == pytest.approx(expected)


def test_calibrated_probabilities_have_little_error():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), 20_000)
    references = (rng.random((20_000, 1)) > probabilities.cumsum(1)).sum(1)
    assert expected_calibration_error(references, probabilities) < 0.02
    sharpened = probabilities**3 / (probabilities**3).sum(1, keepdims=True)
    assert expected_calibration_error(references, sharpened) > 0.1


@pytest.mark.parametrize("name", sorted(known()))
def test_weights_stand_for_copies(name):
    """Under weights [R, N] each metric gives what it gives on the examples copied that often."""
    rng = np.random.default_rng(0)
    if name in ("pearson", "spearman", "mean_squared_error"):
        references, values = rng.integers(0, 5, (2, 40)) / 2
    else:
        references = rng.integers(0, 4, 40)
        values = rng.dirichlet(np.ones(4), 40) if reads(name) == "probabilities" else rng.integers(0, 4, 40)
    weights = rng.multinomial(40, np.full(40, 1 / 40), 6)
    metric = find(name, LABELS)
    copied = [metric(np.repeat(references, row), np.repeat(values, row, axis=0)) for row in weights]
    np.testing.assert_allclose(metric(references, values, weights=weights), copied, rtol=1e-12)
    assert metric(references, values, weights=weights[0]) == pytest.approx(copied[0], rel=1e-12)


def test_compute_by_name():
    references, predictions = [0, 1, 2, 2], [0, 1, 1, 2]
    probabilities = np.eye(3)[predictions]
    names = ["accuracy", "macro_f1", "brier_score"]
    scores = compute(names, references, predictions, probabilities, labels=[0, 1, 2])
    assert scores == {"accuracy": 0.75, "macro_f1": pytest.approx(7 / 9), "brier_score": 0.5}
    assert list(scores) == names and all(type(score) is float for score in scores.values())
    assert set(known()) == {
        "accuracy",
        "macro_f1",
        "micro_f1",
        "weighted_f1",
        "matthews",
        "pearson",
        "spearman",
        "mean_squared_error",
        "expected_calibration_error",
        "brier_score",
    }
    with pytest.raises(InputError, match=r"unknown metric 'acuracy'.*Did you mean 'accuracy'"):
        compute(["acuracy"], references, predictions)
    with pytest.raises(InputError, match="'brier_score' needs probabilities"):
        compute(["brier_score"], references, predictions)


LOGITS = np.array([[2.0, -1.0], [0.3, 0.7]])
REFUSED = {
    "2.*3": (accuracy, [0, 1], [0, 1, 1]),
    "at least one example": (accuracy, [], []),
    "hold 0.3": (accuracy, [0, 1], [1.0, 0.3]),
    "int64 but predictions str": (accuracy, [0, 1], ["a", "b"]),
    "zeros and ones": (micro_f1, [[0, 2]], [[0, 1]]),
    "names a label twice": (macro_f1, [0, 1], [0, 1], [0, 1, 1]),
    "1 labels do not fit 2 columns": (macro_f1, [[0, 1]], [[0, 1]], [7]),
    "one label an example": (matthews, [[0, 1]], [[0, 1]]),
    "nan at example 1": (pearson, [1, 2], [1, float("nan")]),
    "need numbers": (mean_squared_error, ["a"], ["b"]),
    "row 0 .* logits": (brier_score, [0, 1], LOGITS),
    "reference 2 has no column": (expected_calibration_error, [0, 2], np.full((2, 2), 0.5)),
    "bins must be at least 1": (functools.partial(expected_calibration_error, bins=0), [0, 1], np.full((2, 2), 0.5)),
    "references .N. and probabilities": (brier_score, [0, 1, 1], np.full((2, 2), 0.5)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message):
    metric, *arguments = REFUSED[message]
    with pytest.raises(InputError, match=message):
        metric(*arguments)
