"""A metric of one row: its mean over seeds, how sure that is, and whether it differs from another row's.

    runs of one row --predictions [S, N]--> crossed bootstrap over seeds and test examples --> Estimate
                    --no predictions------> Student's t over the seeds' metrics
    two rows        --predictions---------> paired permutation test --> p --Holm over rows--> p

The number shown is always the mean of what the runs reported. Predictions are believed only where they reproduce it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from research.errors import InputError
from research.metrics import lookup
from research.reports.records import RunRecord

TOLERANCE = 1e-4  # between a reported metric (perhaps float32) and the same metric of the stored predictions


@dataclass(frozen=True)
class Resampling:
    """How intervals and p-values are made: their coverage, the number of resamples, and the seed of the resampling."""

    level: float = 0.95
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds, the bounds of its interval (None: unknown), what that covers, and p against the baseline."""

    mean: float
    low: float | None = None
    high: float | None = None
    over: str = ""  # seeds and examples | examples | seeds | "" without an interval
    p: float | None = None

    @property
    def numbers(self) -> tuple[float, float | None, float | None, float | None]:
        """(mean, low, high, p)."""
        return self.mean, self.low, self.high, self.p

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high); the mean itself where there is no interval."""
        return (self.mean, self.mean) if self.low is None or self.high is None else (self.low, self.high)


class Sample(NamedTuple):
    """Stored predictions of S runs on the same N examples, and the metric that reads them."""

    references: np.ndarray  # [N, ...]
    values: np.ndarray  # [S, N, ...] predictions, or probabilities where the metric reads those
    statistic: Callable


def estimate(runs: Sequence[RunRecord], metric: str, how: Resampling) -> Estimate:
    """`metric` over `runs`, which differ in their seed only."""
    from research.metrics.intervals import hierarchical

    reported = [float(run.metrics[metric]) for run in runs]
    mean = float(np.mean(reported))
    if found := sample(runs, metric):
        _, low, high = hierarchical(
            found.values, found.statistic, references=found.references, level=how.level, resamples=how.resamples, seed=how.seed
        )
        over = "seeds and examples" if len(runs) > 1 else "examples"
    elif len(runs) > 1:
        from scipy.stats import t

        half = float(t.ppf((1 + how.level) / 2, len(runs) - 1) * np.std(reported, ddof=1) / len(runs) ** 0.5)
        low, high, over = mean - half, mean + half, "seeds"
    else:
        return Estimate(mean)
    return Estimate(mean, low, high, over) if np.isfinite([low, high]).all() else Estimate(mean)


def sample(runs: Sequence[RunRecord], metric: str) -> Sample | None:
    """The predictions of all `runs` as arrays; None where they cannot stand for the reported metric.

    That is: a run kept none, the runs were tested on different examples, the metric is not computed example by example,
    or the metric of the predictions is not the one reported.
    """
    kept = [run.predictions for run in runs]
    if metric not in lookup.known() or not all(kept):
        return None
    if any((each.index, each.reference) != (kept[0].index, kept[0].reference) for each in kept[1:]):
        return None
    values = [each.probabilities if lookup.reads(metric) == "probabilities" else each.prediction for each in kept]
    if any(value is None for each in values for value in each):
        return None
    labels = runs[0].result.get("labels") or _occurring(kept)
    statistic = lookup.find(metric, labels)
    try:
        found = Sample(np.asarray(kept[0].reference), np.asarray(values), statistic)
        again = [float(statistic(found.references, each)) for each in found.values]
    except (InputError, ValueError, TypeError):  # ragged or otherwise not what the metric is defined on
        return None
    agrees = all(abs(value - run.metrics[metric]) <= TOLERANCE for value, run in zip(again, runs, strict=True))
    return found if agrees else None


def _occurring(kept: Sequence) -> list | None:
    """The labels that occur, sorted; None where they cannot be labels of one task."""
    try:
        return sorted({label for each in kept for label in (*each.reference, *each.prediction)})
    except TypeError:
        return None


def paired(runs: Sequence[RunRecord], others: Sequence[RunRecord], metric: str, how: Resampling) -> float | None:
    """p-value of a paired permutation test that two rows score alike, on the seeds that both have.

    None where the rows share no seed or their predictions cannot be compared.
    """
    from research.metrics.significance import permutation_test

    partner = {other.seed: other for other in others}
    pairs = [(run, partner[run.seed]) for run in runs if run.seed in partner]
    if not pairs or (found := sample([*(run for run, _ in pairs), *(other for _, other in pairs)], metric)) is None:
        return None
    own, other = found.values[: len(pairs)], found.values[len(pairs) :]
    pvalue = permutation_test(own, other, found.statistic, references=found.references, seed=how.seed).pvalue
    return pvalue if np.isfinite(pvalue) else None


def adjusted(pvalues: Sequence[float | None]) -> list[float | None]:
    """Holm's correction over the comparisons that were made; None stays None."""
    from research.metrics.significance import holm

    made = iter(holm([p for p in pvalues if p is not None]).tolist())
    return [None if p is None else next(made) for p in pvalues]
