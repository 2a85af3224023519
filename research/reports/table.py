"""Runs grouped, averaged over seeds, and compared with a baseline.

    [RunRecord]  --by row keys-->  groups of seeds  --estimates-->  Row(metrics with intervals, costs, p)  -->  Table
    full  0 1 2                    full: 3 runs                     93.8 [92.1, 95.3]   22,713,216   ...
    lora  0 1 2                    lora: 3 runs                     91.2 [89.0, 93.1] ‡     73,728   ...

A group that would average over anything but seeds is refused: such a mean has no meaning a reader could guess.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from research.errors import InputError, nearest
from research.reports.estimates import Estimate, Resampling, adjusted, estimate, paired
from research.reports.quantities import COSTS, quantity
from research.reports.records import RunRecord

LEVELS = ((0.01, "‡"), (0.05, "†"))


@dataclass(frozen=True)
class Row:
    """One line of the table: the finished runs that differ in their seed only."""

    keys: Mapping[str, Any]
    runs: tuple[RunRecord, ...]
    metrics: Mapping[str, Estimate]
    costs: Mapping[str, float | None]
    failed: int = 0
    baseline: bool = False
    mark: str = ""

    @property
    def seeds(self) -> int:
        """Finished runs averaged here."""
        return len(self.runs)

    @property
    def seeds_text(self) -> str:
        """Finished runs, and of how many where some are missing."""
        return f"{self.seeds} of {self.seeds + self.failed}" if self.failed else str(self.seeds)

    @property
    def labels(self) -> list[str]:
        """The values of the row keys, as a reader sees them."""
        return [show(value) for value in self.keys.values()]

    @property
    def label(self) -> str:
        """All labels in one."""
        return ", ".join(self.labels)


@dataclass(frozen=True)
class Table:
    """Rows in the order of the runs. `notes` are the sentences of the caption; `problems` the runs without a result."""

    keys: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    problems: tuple[RunRecord, ...]
    notes: tuple[str, ...]

    @property
    def titles(self) -> list[str]:
        """Headers of the key columns."""
        return [key.replace("_", " ").replace(".", " ").capitalize() for key in self.keys]

    @property
    def problem_lines(self) -> list[str]:
        """One line for each run without a result: its name, what it chose, what went wrong."""
        return [f"{called(run)} {run.status}: {run.error}" for run in self.problems]

    def rank(self, metric: str, row: Row) -> int:
        """1 for the best row by `metric`, 2 for the second, else 0; values that print alike share a rank."""
        column = quantity(metric)
        printed = [(each, column.text(each.metrics[metric].mean)) for each in self.rows]
        values = {each.label: float(text.replace(",", "")) for each, text in printed if text != "–"}
        order = sorted(set(values.values()), reverse=column.better == "higher")
        place = order.index(values[row.label]) + 1 if len(order) > 1 and row.label in values else 0
        return place if place <= 2 else 0


def build(
    records: Sequence[RunRecord],
    rows: Sequence[str] = ("tuning",),
    baseline: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = ("accuracy", "macro_f1"),
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Table:
    """The table of `records`.

    Args:
        rows: keys whose values make a row (a choice of the sweep, or a dotted key of the configuration).
        baseline: values of some row keys; each row is compared with the row that differs from it in these only, so
            `{"tuning": "full"}` with rows `("task", "tuning")` compares within each task.
        metrics: test metrics, the first of which is compared with the baseline.
        level: coverage of the intervals. resamples: of the bootstrap. seed: of the resampling.

    Raises:
        InputError: no finished run; a key, metric or baseline that the runs lack; a row that would mix more than seeds.
    """
    done = [run for run in records if run.done]
    if not done:
        raise InputError(f"none of the {len(records)} runs finished; there is nothing to tabulate.")
    if not rows or not metrics:
        raise InputError("a table needs at least one row key and one metric.")
    for run in done:
        for name in metrics:
            if run.metrics.get(name) is None:
                raise InputError(f"run {run.id} has no test metric {name!r}.{nearest(name, run.metrics)}")
    groups = _groups(done, rows)
    problems = tuple(run for run in records if not run.done)
    missing = [_key(run, rows) for run in problems]
    how = Resampling(level, resamples, seed)
    made = [
        Row(
            keys={key: runs[0].value(key) for key in rows},
            runs=tuple(runs),
            metrics={name: estimate(runs, name, how) for name in metrics},
            costs=_costs(runs),
            failed=missing.count(group),
        )
        for group, runs in groups.items()
    ]
    notes = [_interval_note(made, metrics, how)]
    if baseline is not None:
        made, note = _compared(made, baseline, metrics, how)
        notes.append(note)
    if any(row.seeds > 1 for row in made):
        notes.append("Examples/s and wall time are medians over seeds, peak memory the largest.")
    return Table(tuple(rows), tuple(metrics), tuple(made), problems, tuple(notes))


def show(value: Any) -> str:
    """A choice as a reader writes it: `lora`, `0.001`, `yes`, `none`."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def described(run: RunRecord) -> str:
    """What a run chose: `tuning lora, seed 0`."""
    return ", ".join(f"{key} {show(value)}" for key, value in run.choices.items()) or run.id


def called(run: RunRecord) -> str:
    """Name and choices of a run: `trec-lora (tuning lora, seed 0)`."""
    return f"{run.name} ({described(run)})" if run.choices else run.name


def _key(run: RunRecord, rows: Sequence[str]) -> str | None:
    """The values of the row keys as one string; None for an unfinished run whose configuration does not say."""
    try:
        return json.dumps([run.value(key) for key in rows], sort_keys=True, default=str)
    except InputError:
        if run.done:
            raise
        return None


def _groups(done: Sequence[RunRecord], rows: Sequence[str]) -> dict[str, list[RunRecord]]:
    """Runs by the values of the row keys, checked to differ in their seed only."""
    groups: dict[str, list[RunRecord]] = {}
    for run in done:
        groups.setdefault(_key(run, rows), []).append(run)
    for runs in groups.values():
        for key in {key: None for run in runs for key in run.choices if key not in (*rows, "seed")}:
            if len({json.dumps(run.choices.get(key), sort_keys=True, default=str) for run in runs}) > 1:
                raise InputError(f"rows {', '.join(rows)} would average over {key!r}, which is not a seed; add it to the rows.")
        seeds: dict[Any, RunRecord] = {}
        for run in runs:
            if run.seed in seeds:
                raise InputError(f"runs {seeds[run.seed].id} and {run.id} have the same row and the same seed {run.seed}.")
            seeds[run.seed] = run
    return groups


def _costs(runs: Sequence[RunRecord]) -> dict[str, float | None]:
    """Each cost over the seeds: the largest peak memory, the median of everything else; None where no run states it."""
    found = {name: [run.result[name] for run in runs if run.result.get(name) is not None] for name in COSTS}
    return {name: (max if name == "peak_memory_mb" else median)(values) if values else None for name, values in found.items()}


def _interval_note(made: Sequence[Row], metrics: Sequence[str], how: Resampling) -> str:
    """The sentences that say what the numbers and their intervals are, and where they are not alike."""
    methods = {
        "seeds and examples": f"crossed bootstrap over seeds and test examples, {how.resamples:,} resamples",
        "examples": f"bootstrap over test examples of one seed, {how.resamples:,} resamples",
        "seeds": "Student's t over seeds only, as the metric cannot be computed again from stored predictions",
    }
    used: dict[str, list[str]] = {}
    for row in made:
        for name in metrics:
            where = f"{row.label} {quantity(name).title}" if len(made) * len(metrics) > 1 else ""
            used.setdefault(row.metrics[name].over, []).append(where)
    percent = f"{100 * how.level:g} % interval"
    mean = "Mean over seeds" if any(row.seeds > 1 for row in made) else "One run"
    if not set(used) - {""}:
        return f"{mean}; the runs do not allow an interval."
    ways = sorted(set(used) - {""}, key=lambda way: -len(used[way]))
    text = f"{mean} with {percent} ({methods[ways[0]]})"
    text += "".join(f"; for {_listed(used[way])}: {methods[way]}" for way in ways[1:])
    if "" in used:
        text += f"; no interval for {_listed(used[''])}"
    few = any(row.metrics[name].over == "seeds and examples" and row.seeds < 5 for row in made for name in metrics)
    return text + "." + (" Below five seeds it understates what other seeds would bring." if few else "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _compared(made: list[Row], baseline: Mapping[str, Any], metrics: Sequence[str], how: Resampling) -> tuple[list[Row], str]:
    """The rows with p-values (Holm-corrected for each metric over the rows) and marks, and the sentence that says so."""
    known = made[0].keys
    for key in baseline:
        if key not in known:
            raise InputError(f"the baseline names {key!r}, which is no row key.{nearest(key, known)}")
    references = [row for row in made if all(row.keys[key] == value for key, value in baseline.items())]
    named = ", ".join(f"{key} {show(value)}" for key, value in baseline.items())
    if not references:
        raise InputError(f"no finished row is the baseline {named}; the rows are: {'; '.join(row.label for row in made)}.")

    def against(row: Row, metric: str) -> float | None:
        other = next((each for each in references if each.keys == {**row.keys, **baseline}), None)
        return None if other is None or other is row else paired(row.runs, other.runs, metric, how)

    pvalues = {name: adjusted([against(row, name) for row in made]) for name in metrics}
    out = []
    for position, row in enumerate(made):
        estimates = {name: replace(row.metrics[name], p=pvalues[name][position]) for name in metrics}
        p = estimates[metrics[0]].p
        mark = "" if p is None else next((mark for bound, mark in LEVELS if p < bound), "")
        out.append(replace(row, metrics=estimates, baseline=row in references, mark=mark))
    tested = sum(p is not None for p in pvalues[metrics[0]])
    if not tested:
        return out, f"No row could be compared with {named}: that takes predictions on the same examples and a shared seed."
    return out, (
        f"† p < 0.05, ‡ p < 0.01 against {named}: two-sided paired permutation test of {quantity(metrics[0]).title} "
        f"over test examples, Holm-corrected for {tested} comparison{'s' * (tested > 1)}."
    )
