"""What every metric does first and last: check that its arrays belong together, and average over (weighted) examples.

terms [N, ...]  --mean(weights [R, N])-->  [R, ...]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from research.errors import InputError


def mean(values: ArrayLike, *, weights: ArrayLike | None = None) -> NDArray[np.float64]:
    """Mean over examples, the statistic under every metric here and a metric itself (of per-example scores).

    Args:
        values: [N, ...].
        weights: None, [N] or [R, N]: how often each example counts. Whole weights on whole values are summed
            without rounding, so that a count of zero is exactly zero in every resample.

    Returns:
        [...], or [R, ...] with weights [R, N].

    Raises:
        InputError: no examples, or weights for another number of examples.
    """
    values = np.asarray(values, np.float64)
    if not values.shape or not len(values):
        raise InputError("a metric needs at least one example.")
    weights = as_weights(weights, len(values))
    total = weights.sum(-1).reshape(weights.shape[:-1] + (1,) * (values.ndim - 1))
    return np.tensordot(weights, values, axes=1) / total


def as_weights(weights: ArrayLike | None, examples: int) -> NDArray[np.float64]:
    """`weights` as float64 [N] or [R, N]; ones where None."""
    weights = np.ones(examples) if weights is None else np.asarray(weights, np.float64)
    if weights.shape[-1:] != (examples,):
        raise InputError(f"weights of shape {list(weights.shape)} do not fit {examples} examples.")
    return weights


def same_shape(references: NDArray, predictions: NDArray) -> None:
    """Refuses arrays that are empty or do not pair up.

    Raises:
        InputError: naming both shapes.
    """
    if references.shape != predictions.shape:
        raise InputError(f"references have shape {list(references.shape)} but predictions {list(predictions.shape)}.")
    if not references.size:
        raise InputError("a metric needs at least one example.")
