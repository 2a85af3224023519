"""Metrics of predicted probabilities: do they mean what they say?

references [N] labels, probabilities [N, L] rows summing to 1; column i stands for labels[i] (default: for label i)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from research.errors import InputError
from research.metrics.arrays import mean

Score = float | NDArray[np.float64]


def expected_calibration_error(
    references: ArrayLike,
    probabilities: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    bins: int = 15,
    weights: ArrayLike | None = None,
) -> Score:
    """Mean gap between confidence and accuracy over bins of confidence, in [0, 1] (Guo et al. 2017, eq. 3).

    Lower is better. Confidence is the largest probability; bins are equally wide, bin m of M being ((m-1)/M, m/M].
    Finite samples overestimate it, resamples more so: its bootstrap intervals lean upwards.

    Args:
        references: [N].
        probabilities: [N, L].
        labels: [L] what the columns stand for; default 0..L-1.
        bins: number of bins; 15 in the paper.
        weights: None, [N] or [R, N] example weights; with [R, N] the result is [R].

    Raises:
        InputError: mismatched shapes, no examples, a reference without a column, or rows that are not distributions.
    """
    if bins < 1:
        raise InputError(f"bins must be at least 1, not {bins}.")
    columns, probabilities = _checked(references, probabilities, labels)
    confidence = probabilities.max(-1)
    right = probabilities.argmax(-1) == columns
    bin_of = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    gaps = (right - confidence)[:, None] * (bin_of[:, None] == np.arange(bins))
    return np.abs(mean(gaps, weights=weights)).sum(-1)


def brier_score(
    references: ArrayLike, probabilities: ArrayLike, labels: ArrayLike | None = None, *, weights: ArrayLike | None = None
) -> Score:
    """Mean squared distance between probabilities and the one-hot reference, in [0, 2] (Brier 1950); lower is better.

    Summed over all labels: with two labels it is twice the score that looks at the positive label only.
    Arguments and errors as `expected_calibration_error`.
    """
    columns, probabilities = _checked(references, probabilities, labels)
    truth = columns[:, None] == np.arange(probabilities.shape[1])
    return mean(((probabilities - truth) ** 2).sum(-1), weights=weights)


def _checked(references: ArrayLike, probabilities: ArrayLike, labels: ArrayLike | None) -> tuple[NDArray, NDArray]:
    """The column of each reference [N], and the probabilities [N, L] as float64."""
    references, probabilities = np.asarray(references), np.asarray(probabilities, np.float64)
    if references.ndim != 1 or probabilities.ndim != 2 or len(references) != len(probabilities):
        raise InputError(
            f"calibration needs references [N] and probabilities [N, L], not {list(references.shape)} "
            f"and {list(probabilities.shape)}."
        )
    if not probabilities.size:
        raise InputError("a metric needs at least one example.")
    labels = np.arange(probabilities.shape[1]) if labels is None else np.asarray(labels)
    if len(labels) != probabilities.shape[1]:
        raise InputError(f"{len(labels)} labels do not fit probabilities with {probabilities.shape[1]} columns.")
    if len(outside := np.setdiff1d(references, labels)):
        raise InputError(f"reference {outside[0].item()!r} has no column in the probabilities.")
    # A tolerance that a bfloat16 softmax meets and logits do not.
    proper = (np.abs(probabilities.sum(-1) - 1) < 0.01) & (probabilities >= 0).all(-1)
    if not proper.all():
        row = np.flatnonzero(~proper)[0]
        raise InputError(f"row {row} of the probabilities is not a distribution; are these logits?")
    order = np.argsort(labels)
    return order[np.searchsorted(labels, references, sorter=order)], probabilities
