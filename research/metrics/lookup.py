"""Metrics by name: the public functions of classification.py, regression.py and calibration.py, new ones included.

["accuracy", "macro_f1"] --find--> functions --(references, predictions or probabilities)--> {name: float}
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Literal

from numpy.typing import ArrayLike

from research.errors import InputError, nearest
from research.metrics import calibration, classification, regression


def known() -> dict[str, Callable]:
    """Every metric that can be asked for by name."""
    return {
        name: function
        for module in (classification, regression, calibration)
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    }


def find(name: str, labels: ArrayLike | None = None) -> Callable:
    """The metric called `name`, taking `(references, predictions, *, weights=None)`: the task's label set is bound.

    Metrics that need no label set ignore `labels`, which describes the task and is not an option of the metric.

    Raises:
        InputError: no metric has that name.
    """
    if name not in known():
        raise InputError(f"unknown metric {name!r}.{nearest(name, known())}")
    function = known()[name]
    takes_labels = labels is not None and "labels" in inspect.signature(function).parameters
    return functools.partial(function, labels=labels) if takes_labels else function


def reads(name: str) -> Literal["predictions", "probabilities"]:
    """What the metric compares with the references: predictions, or (calibration) probabilities."""
    return "probabilities" if "probabilities" in inspect.signature(find(name)).parameters else "predictions"


_LOWER = {"loss", "mean_squared_error", "expected_calibration_error", "brier_score"}


def direction(name: str) -> Literal["higher", "lower"]:
    """Which way the metric called `name` improves; the loss counts as one.

    Raises:
        InputError: no metric has that name.
    """
    if name not in known() and name != "loss":
        raise InputError(f"unknown metric {name!r}.{nearest(name, [*known(), 'loss'])}")
    return "lower" if name in _LOWER else "higher"


def compute(
    names: Iterable[str],
    references: ArrayLike,
    predictions: ArrayLike,
    probabilities: ArrayLike | None = None,
    labels: ArrayLike | None = None,
) -> dict[str, float]:
    """The named metrics of one run's predictions.

    Args:
        names: metrics, as in `known()`.
        references: [N] labels or numbers, or [N, L] zeros and ones (multi-label).
        predictions: the same shape as `references`.
        probabilities: [N, L]; only metrics of calibration read them.
        labels: [L] the task's label set: what F1 averages over, and what the columns of `probabilities` stand for.

    Raises:
        InputError: unknown metric, mismatched or empty arrays, or probabilities needed and not given.
    """
    scores = {}
    for name in names:
        probabilistic = reads(name) == "probabilities"
        if probabilistic and probabilities is None:
            raise InputError(f"metric {name!r} needs probabilities, and none were given.")
        scores[name] = float(find(name, labels)(references, probabilities if probabilistic else predictions))
    return scores
