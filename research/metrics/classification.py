"""Metrics of predicted labels: one label an example, or (multi-label) a row of zeros and ones over the labels.

single-label  references [N]      predictions [N]       labels of any kind: numbers or strings
multi-label   references [N, L]   predictions [N, L]    zeros and ones; column = label
                    |
    per example and label: hit, predicted, referred  [N, 3, L]  --mean(weights)-->  [..., 3, L]  -->  F1 [..., L]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from research.errors import InputError
from research.metrics.arrays import mean, same_shape

Score = float | NDArray[np.float64]


def accuracy(references: ArrayLike, predictions: ArrayLike, *, weights: ArrayLike | None = None) -> Score:
    """Share of examples predicted right; in multi-label tasks, of examples with every label right (subset accuracy).

    Args:
        references: [N], or [N, L] zeros and ones.
        predictions: as `references`.
        weights: None, [N] or [R, N] example weights; with [R, N] the result is [R]. So in every metric below.

    Raises:
        InputError: mismatched shapes, no examples, or scores in the place of labels. So in every metric below.
    """
    references, predictions = _checked(references, predictions)
    right = references == predictions
    return mean(right if right.ndim == 1 else right.all(-1), weights=weights)


def macro_f1(
    references: ArrayLike, predictions: ArrayLike, labels: ArrayLike | None = None, *, weights: ArrayLike | None = None
) -> Score:
    """Unweighted mean over the label set of each label's F1 = 2 hits / (times predicted + times referred).

    A label that is neither predicted nor referred to has F1 0 and still counts in the mean (scikit-learn's
    `labels=..., zero_division=0`): the divisor is the same in every run, subset and resample. The price: a bootstrap
    resample lacks a label of n examples with probability exp(-n), so that intervals lean downwards where n is 1 to 3.

    Args:
        labels: [L] the task's label set, required for single-label tasks. A prediction outside it (unparsable
            generated text) is simply wrong; a reference outside it is refused. In multi-label tasks the columns are
            the label set.
    """
    if labels is None and np.ndim(references) == 1:
        raise InputError("macro_f1 needs `labels`, so that every run averages over the same label set.")
    return _f1(*_rates(references, predictions, labels, weights)).mean(-1)


def micro_f1(
    references: ArrayLike, predictions: ArrayLike, labels: ArrayLike | None = None, *, weights: ArrayLike | None = None
) -> Score:
    """F1 of the counts summed over labels; 0 where nothing is predicted and nothing referred to.

    Equal to accuracy in single-label tasks unless predictions fall outside `labels` (default: the labels that occur).
    """
    return _f1(*(rate.sum(-1) for rate in _rates(references, predictions, labels, weights)))


def weighted_f1(
    references: ArrayLike, predictions: ArrayLike, labels: ArrayLike | None = None, *, weights: ArrayLike | None = None
) -> Score:
    """Mean of the labels' F1, each counting as often as the references name it; 0 where they name none.

    Labels without a reference have no share: `labels` (default: the labels that occur) only checks the references.
    """
    hits, predicted, referred = _rates(references, predictions, labels, weights)
    return _ratio((_f1(hits, predicted, referred) * referred).sum(-1), referred.sum(-1))


def matthews(references: ArrayLike, predictions: ArrayLike, *, weights: ArrayLike | None = None) -> Score:
    """Matthews correlation coefficient, for K labels (Gorodkin 2004, R_K), in [-1, 1]; single-label only.

    0 where the references or the predictions are all one label, as in scikit-learn.
    """
    if np.ndim(references) != 1:
        raise InputError("matthews is defined for one label an example; references must have shape [N].")
    hits, predicted, referred = _rates(references, predictions, None, weights)
    covariance = hits.sum(-1) - (predicted * referred).sum(-1)
    spread = (1 - (predicted**2).sum(-1)) * (1 - (referred**2).sum(-1))
    return _ratio(covariance, np.sqrt(np.maximum(spread, 0)))


def _rates(
    references: ArrayLike, predictions: ArrayLike, labels: ArrayLike | None, weights: ArrayLike | None
) -> tuple[NDArray, NDArray, NDArray]:
    """How often each label is hit, predicted and referred to, as shares of the examples: three arrays [..., L]."""
    references, predictions = _checked(references, predictions)
    if references.ndim == 1:
        labels = np.union1d(references, predictions) if labels is None else np.asarray(labels)
        _same_kind(references, labels, "labels")
        if len(np.unique(labels)) != len(labels):
            raise InputError("`labels` names a label twice.")
        if len(outside := np.setdiff1d(references, labels)):
            raise InputError(f"reference {outside[0].item()!r} is not one of the {len(labels)} labels.")
        references, predictions = references[:, None] == labels, predictions[:, None] == labels
    elif labels is not None and len(np.asarray(labels)) != references.shape[1]:
        raise InputError(f"{len(np.asarray(labels))} labels do not fit {references.shape[1]} columns.")
    hit = np.logical_and(references, predictions)
    rates = mean(np.stack([hit, predictions, references], axis=1), weights=weights)
    return rates[..., 0, :], rates[..., 1, :], rates[..., 2, :]


def _f1(hits: NDArray, predicted: NDArray, referred: NDArray) -> NDArray:
    return _ratio(2 * hits, predicted + referred)


def _ratio(numerator: NDArray, denominator: NDArray) -> NDArray:
    """`numerator / denominator`, and 0 where the denominator is 0."""
    return numerator / np.where(denominator > 0, denominator, 1) * (denominator > 0)


def _same_kind(references: NDArray, others: NDArray, name: str) -> None:
    if (references.dtype.kind in "UST") != (others.dtype.kind in "UST"):
        raise InputError(f"references are {references.dtype.name} but {name} {others.dtype.name}: they never agree.")


def _checked(references: ArrayLike, predictions: ArrayLike) -> tuple[NDArray, NDArray]:
    references, predictions = (
        np.asarray(np.asarray(array).tolist() if np.asarray(array).dtype == object else array)
        for array in (references, predictions)
    )  # strings in a pandas column are objects
    same_shape(references, predictions)
    _same_kind(references, predictions, "predictions")
    if references.ndim not in (1, 2):
        raise InputError(f"labels must have shape [N] or [N, L], not {list(references.shape)}.")
    for name, array in (("references", references), ("predictions", predictions)):
        if array.dtype.kind == "f" and len(fractions := array[array != np.trunc(array)]):
            raise InputError(f"{name} must be labels, but hold {fractions[0]:g}.")
        if array.ndim == 2 and not np.isin(array, (0, 1)).all():
            raise InputError(f"multi-label {name} must hold zeros and ones only.")
    return references, predictions
