"""Metrics of predicted numbers: references [N], predictions [N], real and finite."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from research.errors import InputError
from research.metrics.arrays import as_weights, mean, same_shape

Score = float | NDArray[np.float64]


def pearson(references: ArrayLike, predictions: ArrayLike, *, weights: ArrayLike | None = None) -> Score:
    """Pearson's correlation coefficient, in [-1, 1]; nan where references or predictions are constant, as in SciPy.

    Args:
        references: [N].
        predictions: [N].
        weights: None, [N] or [R, N] example weights; with [R, N] the result is [R]. So in every metric below.

    Raises:
        InputError: mismatched shapes, no examples, or values that are not finite numbers. So in every metric below.
    """
    references, predictions = _checked(references, predictions)
    return _correlation(references, predictions, as_weights(weights, len(references)))


def spearman(references: ArrayLike, predictions: ArrayLike, *, weights: ArrayLike | None = None) -> Score:
    """Spearman's correlation: Pearson's of the ranks, ties sharing their mean rank; nan where either is constant."""
    references, predictions = _checked(references, predictions)
    weights = as_weights(weights, len(references))
    return _correlation(_ranks(references, weights), _ranks(predictions, weights), weights)


def mean_squared_error(references: ArrayLike, predictions: ArrayLike, *, weights: ArrayLike | None = None) -> Score:
    """Mean of the squared differences, in squared units of the references; lower is better."""
    references, predictions = _checked(references, predictions)
    return mean((references - predictions) ** 2, weights=weights)


def _correlation(x: NDArray, y: NDArray, weights: NDArray) -> NDArray:
    """Correlation of x and y, each [N] or [R, N], under weights [N] or [R, N]."""
    def average(values: NDArray) -> NDArray:
        return (weights * values).sum(-1) / weights.sum(-1)

    def centred(values: NDArray) -> tuple[NDArray, NDArray]:
        middle = average(values)
        deviations = values - middle[..., None]
        spread = np.sqrt(average(deviations**2))
        # The mean of equal numbers is off by rounding: a spread below that rounding is no spread.
        return deviations, np.where(spread > 1e-13 * np.abs(middle), spread, np.nan)

    (x, spread_x), (y, spread_y) = centred(x), centred(y)
    return np.clip(average(x * y) / (spread_x * spread_y), -1, 1)


def _ranks(values: NDArray, weights: NDArray) -> NDArray:
    """Mean ranks [..., N] of `values` [N] in the sample where example i occurs weights[..., i] times."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)
    occurrences = np.add.reduceat(weights[..., order], starts, axis=-1)  # [..., distinct values]
    ranks = np.cumsum(occurrences, axis=-1) - (occurrences - 1) / 2
    return ranks[..., np.searchsorted(values[order][starts], values)]


def _checked(references: ArrayLike, predictions: ArrayLike) -> tuple[NDArray, NDArray]:
    try:
        references, predictions = np.asarray(references, np.float64), np.asarray(predictions, np.float64)
    except (TypeError, ValueError):
        raise InputError("metrics of regression need numbers as references and predictions.") from None
    same_shape(references, predictions)
    if references.ndim != 1:
        raise InputError(f"metrics of regression need shape [N], not {list(references.shape)}.")
    for name, array in (("references", references), ("predictions", predictions)):
        if len(bad := np.flatnonzero(~np.isfinite(array))):
            raise InputError(f"{name} hold {array[bad[0]]} at example {bad[0]}.")
    return references, predictions
