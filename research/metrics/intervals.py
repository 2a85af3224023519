"""How sure is a score? Bootstrap confidence intervals over test examples, and over seeds and test examples.

    one run    values [N, ...]     --bootstrap-->      Interval(mean, low, high)
    S runs     values [S, N, ...]  --hierarchical-->   Interval(mean, low, high)

A *statistic* is any metric of this room: `statistic(references, values, weights=[R, N]) -> [R]`, or, without
references, `statistic(values, weights=[R, N]) -> [R]`, such as the `mean` of per-example scores. Other arguments are
bound beforehand: `find("macro_f1", labels)`. A resample is a row of weights: how often each example was drawn.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from research.errors import InputError
from research.metrics.arrays import mean

CHUNK = 2**21  # weights held at once: 16 MiB, whatever the number of examples


class Interval(NamedTuple):
    """A score and the bounds of its confidence interval, all in the score's units."""

    mean: float
    low: float
    high: float


def bootstrap(
    values: ArrayLike,
    statistic: Callable = mean,
    *,
    references: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    method: Literal["percentile", "BCa"] = "BCa",
) -> Interval:
    """Interval of one run's score over test examples (Efron 1979; BCa: Efron 1987), by `scipy.stats.bootstrap`.

    Args:
        values: [N, ...] predictions, probabilities or per-example scores; N >= 2.
        statistic: see the module.
        references: [N, ...], where the statistic takes them.
        method: bias-corrected and accelerated, or plain percentile; where the former is undefined (every resample
            scores the same, as at 100 % accuracy), the percentile bounds.

    Raises:
        InputError: fewer than two examples, or an impossible level, method or number of resamples.
    """
    from scipy import stats

    if method not in ("percentile", "BCa"):
        raise InputError(f"method must be 'percentile' or 'BCa', not {method!r}.")
    values, references = as_runs(np.asarray(values)[None], references)
    examples = values.shape[1]
    if examples < 2:
        raise InputError("a bootstrap over examples needs at least two of them.")
    _check(level, resamples)

    def resampled(drawn: NDArray, axis: int) -> NDArray:  # SciPy resamples example numbers, [..., N] at a time
        rows = np.moveaxis(drawn, axis, -1)
        weights = count_rows(rows.reshape(-1, rows.shape[-1]), examples)
        return evaluate(statistic, references, values[0], weights).reshape(rows.shape[:-1])

    with warnings.catch_warnings(action="ignore", category=stats.DegenerateDataWarning), np.errstate(invalid="ignore"):
        result = stats.bootstrap(
            (np.arange(examples),),
            resampled,
            vectorized=True,
            axis=-1,
            n_resamples=resamples,
            batch=max(1, CHUNK // examples),
            confidence_level=level,
            method=method,
            rng=np.random.default_rng(seed),
        )
    bounds = tuple(result.confidence_interval)
    if np.isnan(bounds).any():
        bounds = _quantiles(result.bootstrap_distribution, level)
    return Interval(float(evaluate(statistic, references, values[0])), float(bounds[0]), float(bounds[1]))


def hierarchical(
    values: ArrayLike,
    statistic: Callable = mean,
    *,
    references: ArrayLike | None = None,
    baseline: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of the mean score of S runs (seeds) on the same N examples, over both seeds and examples.

    Every seed meets every example, so the two are resampled independently and crossed: the pigeonhole bootstrap
    (Owen 2007, Annals of Applied Statistics), with percentile bounds. The score of a resample is the mean over the
    drawn seeds of each one's statistic on the drawn examples. Of the S seeds S-1 are drawn, with replacement: for a
    mean over few units this makes the bootstrap's variance unbiased (McCarthy & Snowden 1985), where drawing S would
    report half of it at S=2. With one seed it is over examples alone.

    How far to trust it, from simulations at 91 % accuracy on 500 examples, level 0.95: it covers the truth in 98 to
    99 % of cases where seeds differ less than test samples do (crossing overstates noise private to one seed and
    example, Owen 2007: the safe side), and in 85 %, 87 % and 95 % at 2, 3 and 5 seeds where seeds differ by 2 %
    accuracy, more than test samples do (no draw reaches beyond the best and the worst seed).

    Args:
        values: [S, N, ...] predictions, probabilities or per-example scores; one run is values[None].
        statistic: see the module.
        references: [N, ...], where the statistic takes them.
        baseline: [S, N, ...] of another system with the same seeds; the interval is then of its statistic subtracted
            from that of `values`, paired in seeds and examples.

    Returns:
        The mean over seeds with its bounds; resamples where the statistic is nan are left out.

    Raises:
        InputError: mismatched shapes, no examples, or an impossible level or number of resamples.
    """
    values, references = as_runs(values, references)
    systems = [values] if baseline is None else [values, as_runs(baseline, references)[0]]
    if systems[0].shape != systems[-1].shape:
        raise InputError(f"values have shape {list(values.shape)} but the baseline {list(systems[-1].shape)}.")
    _check(level, resamples)

    def per_seed(weights: NDArray | None) -> NDArray:  # [R, S]; [S] without weights
        scores = [np.stack([evaluate(statistic, references, run, weights) for run in system], -1) for system in systems]
        return scores[0] if baseline is None else scores[0] - scores[1]

    rng = np.random.default_rng(seed)
    draws = []
    for size in chunks(resamples, values.shape[1]):
        scores = per_seed(draw_counts(rng, size, values.shape[1], values.shape[1]))
        seeds = draw_counts(rng, size, len(values), max(1, len(values) - 1))
        draws.append((seeds * scores).sum(-1) / seeds.sum(-1))
    return Interval(float(per_seed(None).mean()), *_quantiles(np.concatenate(draws), level))


def evaluate(statistic: Callable, references: NDArray | None, values: NDArray, weights: NDArray | None = None) -> NDArray:
    """The statistic of one run's values [N, ...]: a number, or [R] under weights [R, N]."""
    given = (values,) if references is None else (references, values)
    return np.asarray(statistic(*given, weights=weights))


def chunks(resamples: int, examples: int) -> Iterator[int]:
    """Sizes that sum to `resamples`, each keeping its weights within CHUNK."""
    size = max(1, CHUNK // examples)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def draw_counts(rng: np.random.Generator, resamples: int, units: int, draws: int) -> NDArray[np.float64]:
    """How often each of `units` comes up in `draws` draws with replacement: [resamples, units]."""
    return count_rows(rng.integers(0, units, (resamples, draws)), units)


def count_rows(drawn: NDArray, units: int) -> NDArray[np.float64]:
    """[R, D] unit numbers -> [R, units] how often each row holds each."""
    flat = drawn + units * np.arange(len(drawn))[:, None]
    return np.bincount(flat.ravel(), minlength=len(drawn) * units).reshape(len(drawn), units).astype(np.float64)


def as_runs(values: ArrayLike, references: ArrayLike | None) -> tuple[NDArray, NDArray | None]:
    """`values` [S, N, ...] and `references` [N, ...] as arrays that fit.

    Raises:
        InputError: naming the shapes that do not.
    """
    values = np.asarray(values)
    if values.ndim < 2 or 0 in values.shape:
        raise InputError(f"values must be [seeds, examples, ...] and not empty, but have shape {list(values.shape)}.")
    if references is not None and len(references := np.asarray(references)) != values.shape[1]:
        raise InputError(f"{len(references)} references do not fit {values.shape[1]} examples.")
    return values, references


def _quantiles(draws: NDArray, level: float) -> tuple[float, float]:
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return float("nan"), float("nan")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, not {level}.")
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, not {resamples}.")
