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
    # Shifting changes no correlation, and keeps the squares below from drowning their differences.
    x, y = references - references.mean(), predictions - predictions.mean()
    return _correlation(*np.moveaxis(mean(np.stack([x, y, x * x, y * y, x * y], -1), weights=weights), -1, 0))


def spearman(references: ArrayLike, predictions: ArrayLike, *, weights: ArrayLike | None = None) -> Score:
    """Spearman's correlation: Pearson's of the ranks, ties sharing their mean rank; nan where either is constant."""
    references, predictions = _checked(references, predictions)
    weights = as_weights(weights, len(references))
    x, y = _ranks(references, weights), _ranks(predictions, weights)
    return _correlation(
        *(np.einsum("...n,...n->...", weights, product) / weights.sum(-1) for product in (x, y, x * x, y * y, x * y))
    )


def mean_squared_error(references: ArrayLike, predictions: ArrayLike, *, weights: ArrayLike | None = None) -> Score:
    """Mean of the squared differences, in squared units of the references; lower is better."""
    references, predictions = _checked(references, predictions)
    return mean((references - predictions) ** 2, weights=weights)


def _correlation(x: NDArray, y: NDArray, xx: NDArray, yy: NDArray, xy: NDArray) -> NDArray:
    """Correlation from the means of x, y and their products."""
    variances = np.stack([xx - x * x, yy - y * y])
    # The variance of equal numbers is rounding error, about 1e-16 of their squares.
    variances[variances <= 1e-13 * np.stack([xx, yy])] = np.nan
    return np.clip((xy - x * y) / np.sqrt(variances.prod(0)), -1, 1)


def _ranks(values: NDArray, weights: NDArray) -> NDArray:
    """Mean ranks [..., N] of `values` [N] in the sample where example i occurs weights[..., i] times."""
    order = np.argsort(values)
    below = np.zeros((*weights.shape[:-1], len(values) + 1))  # occurrences among the i smallest
    np.cumsum(np.take(weights, order, axis=-1), axis=-1, out=below[..., 1:])
    first, last = (np.searchsorted(values[order], values, side=side) for side in ("left", "right"))
    return (np.take(below, first, axis=-1) + np.take(below, last, axis=-1) + 1) / 2


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
