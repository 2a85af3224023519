"""Is system A better than B, or lucky? Paired tests on the same test examples, and corrections for testing often.

a, b [S, N, ...] predictions of S seeds   --permutation_test-->   Comparison(difference, pvalue, exact)
a, b [N] right or wrong                   --mcnemar-->            McNemar(only_a, only_b, pvalue)
p-values of several comparisons           --holm | benjamini_hochberg-->   adjusted p-values
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from research.errors import InputError
from research.metrics.arrays import mean, same_shape
from research.metrics.intervals import as_runs, chunks, evaluate


class Comparison(NamedTuple):
    """Score of A minus score of B (mean over seeds), its two-sided p-value, and whether that is exact or sampled."""

    difference: float
    pvalue: float
    exact: bool


class McNemar(NamedTuple):
    """Examples only A got right, only B got right, and the two-sided p-value."""

    only_a: int
    only_b: int
    pvalue: float


def permutation_test(
    a: ArrayLike,
    b: ArrayLike,
    statistic: Callable = mean,
    *,
    references: ArrayLike | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Paired approximate randomisation test of any metric (Noreen 1989; Yeh 2000).

    Under the null hypothesis the two systems are interchangeable on each test example, so their outputs are swapped at
    random and the difference in score recomputed. p = (k+1)/(R+1), where k of R sampled swaps differ at least as much
    as observed (Phipson & Smyth 2010: never zero). Only examples on which the systems disagree matter; where there are
    at most R ways to swap those, all are enumerated and p is exact.

    With several seeds an example is swapped in all of them at once. The example is what was sampled: its outputs under
    different seeds resemble each other, and swapping each (seed, example) by itself would count them as S*N independent
    observations and find significance too easily. The conclusion holds for *these seeds' models* on new examples. About
    strategies it errs where seeds matter: with 500 examples, two sets of seeds of one strategy differ "significantly"
    (p <= 0.05) in 7 to 8 % of simulated cases at a standard deviation over seeds of 0.6 % accuracy, and in half at 2 %.
    `intervals.hierarchical(a, ..., baseline=b)` includes the seeds: claim a better strategy where that excludes 0, too.

    Args:
        a: [S, N, ...] predictions, probabilities or per-example scores; one run is a[None].
        b: as `a`, on the same examples.
        statistic: as in intervals.py, e.g. `find("macro_f1", labels)`; default: the mean of per-example scores.
        references: [N, ...], where the statistic takes them.

    Raises:
        InputError: mismatched shapes, no examples, or no resamples.
    """
    (a, references), (b, _) = as_runs(a, references), as_runs(b, references)
    if a.shape != b.shape:
        raise InputError(f"the two systems' outputs have shapes {list(a.shape)} and {list(b.shape)}.")
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, not {resamples}.")
    differs = (a != b).any(axis=(0, *range(2, a.ndim)))
    pooled = np.concatenate([a[:, ~differs], a[:, differs], b[:, differs]], axis=1)  # [S, N + D, ...]
    if references is not None:
        references = np.concatenate([references[~differs], references[differs], references[differs]])

    def scores(own: NDArray) -> NDArray:  # [R, D]: is each differing example the system's own? -> its scores [R]
        weights = np.concatenate([np.ones((len(own), pooled.shape[1] - 2 * own.shape[1])), own, 1 - own], axis=1)
        return np.mean([evaluate(statistic, references, run, weights) for run in pooled], axis=0)

    places = int(differs.sum())
    score_a, score_b = float(scores(np.ones((1, places)))[0]), float(scores(np.zeros((1, places)))[0])
    # Equal differences must count as equal however they were rounded; an undefined one counts against significance.
    threshold = abs(score_a - score_b) - 1e-12 * max(abs(score_a), abs(score_b))
    exact = 2**places <= resamples
    extreme = total = 0
    for own in _swaps(places, pooled.shape[1], None if exact else resamples, np.random.default_rng(seed)):
        extreme += int((~(np.abs(scores(own) - scores(1 - own)) < threshold)).sum())
        total += len(own)
    pvalue = extreme / total if exact else (extreme + 1) / (total + 1)
    return Comparison(score_a - score_b, float("nan") if np.isnan(threshold) else pvalue, exact)


def _swaps(places: int, width: int, resamples: int | None, rng: np.random.Generator) -> Iterator[NDArray]:
    """Which places to swap, [R, places] zeros and ones, in chunks: `resamples` random ones, or (None) each one once."""
    start = 0
    for size in chunks(2**places if resamples is None else resamples, width):
        if resamples is None:
            yield (np.arange(start, start + size)[:, None] >> np.arange(places)) & 1
        else:
            yield rng.integers(0, 2, (size, places), dtype=np.int8)
        start += size


def mcnemar(a: ArrayLike, b: ArrayLike, method: Literal["exact", "chi-square"] = "exact") -> McNemar:
    """McNemar's test (1947) that two systems are right equally often, from the examples only one of them got right.

    Args:
        a: [N] zeros and ones: which examples A got right.
        b: the same for B.
        method: the exact two-sided binomial test, or the chi-square statistic with continuity correction,
            (max(0, |n_a - n_b| - 1))^2 / (n_a + n_b) (Edwards 1948), for at least about 25 such examples.

    Raises:
        InputError: mismatched shapes, no examples, other values than zeros and ones, or an unknown method.
    """
    from scipy import stats

    a, b = np.asarray(a), np.asarray(b)
    same_shape(a, b)
    if a.ndim != 1 or not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise InputError("mcnemar takes two arrays [N] of zeros and ones: which examples each system got right.")
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    discordant = max(1, only_a + only_b)
    if method == "exact":
        pvalue = stats.binomtest(min(only_a, only_b), discordant).pvalue if only_a + only_b else 1.0
    elif method == "chi-square":
        pvalue = stats.chi2.sf(max(0, abs(only_a - only_b) - 1) ** 2 / discordant, df=1)
    else:
        raise InputError(f"method must be 'exact' or 'chi-square', not {method!r}.")
    return McNemar(only_a, only_b, float(pvalue))


def holm(pvalues: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p-values, in the given order, that bound the chance of even one false discovery (Holm 1979).

    Raises:
        InputError: a value outside [0, 1].
    """
    pvalues = _probabilities(pvalues)
    order = np.argsort(pvalues, kind="stable")
    steps = np.maximum.accumulate(pvalues[order] * np.arange(len(pvalues), 0, -1))
    adjusted = np.empty_like(pvalues)
    adjusted[order] = np.minimum(1, steps)
    return adjusted


def benjamini_hochberg(pvalues: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p-values, in the given order, that bound the expected share of false discoveries (B. & H. 1995).

    Raises:
        InputError: a value outside [0, 1].
    """
    from scipy import stats

    pvalues = _probabilities(pvalues)
    return stats.false_discovery_control(pvalues, method="bh") if len(pvalues) else pvalues


def _probabilities(pvalues: ArrayLike) -> NDArray[np.float64]:
    pvalues = np.asarray(pvalues, np.float64)
    if pvalues.ndim != 1 or not ((pvalues >= 0) & (pvalues <= 1)).all():
        raise InputError("p-values must be a list of numbers between 0 and 1.")
    return pvalues
