"""One HTML page with everything a reader needs, working offline: no script, style, font or image comes from elsewhere.

    Table, records --context--> plain dicts and strings --page.html.j2 (autoescape), page.css, page.js--> str

The template holds the structure, the style sheet the looks, the script the sorting and the copy buttons. Without the
script the page is complete, only not sortable.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from os.path import relpath
from pathlib import Path
from typing import Any

from research.reports import formats, plots
from research.reports.quantities import COSTS, quantity
from research.reports.records import RunRecord
from research.reports.table import Row, Table, called, described, show

_FILES = ("config.json", "metrics.jsonl", "predictions.jsonl", "result.json")
_COUNTS = ("steps", "epochs", "compilations")


def page(
    table: Table,
    records: Sequence[RunRecord],
    directory: str | Path,
    figures: Mapping[str, tuple[str, str]],
    *,
    title: str = "Report",
    question: str = "",
    environment: Mapping[str, Any] | None = None,
) -> str:
    """The page as one string of HTML; links to runs and tables are relative to `directory`, where it will be stored.

    Args:
        figures: name -> (SVG, caption), as `plots.figures` draws them.
        environment: what the runs were made with, by name; the `environment` of each result.json is added to it.
    """
    import jinja2

    def beside(name: str) -> str:
        return (files("research.reports") / name).read_text(encoding="utf-8")

    engine = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    drawn = [{"svg": plots.inline(svg, name, caption), "caption": caption} for name, (svg, caption) in figures.items()]
    base = _common([flat(run.config) for run in records])
    return engine.from_string(beside("page.html.j2")).render(
        title=title,
        question=question,
        table=table,
        summary=_summary(table, records),
        columns=_columns(table),
        rows=[_row(table, row) for row in table.rows],
        figures=drawn,
        sources={"LaTeX": formats.to_latex(table), "Markdown": formats.to_markdown(table), "CSV": formats.to_csv(table)},
        problems=[(called(run), run) for run in table.problems],
        base=base,
        runs=[_run(run, table, base, Path(directory)) for run in records],
        environment=_environment(records, environment),
        style=beside("page.css"),
        script=beside("page.js"),
        palettes=[[f"--s{number}: {pair[mode]};" for number, pair in enumerate(plots.PALETTE)] for mode in (0, 1)],
    )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as `dotted.key -> value`, in its own order."""
    out: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + str(key)] = show(value)
    return out


def _common(configs: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What every configuration agrees on."""
    return {key: value for key, value in configs[0].items() if all(config.get(key) == value for config in configs)}


def _summary(table: Table, records: Sequence[RunRecord]) -> list[str]:
    """The facts under the title."""

    def counted(numbers: set[int], noun: str) -> str:
        span = " to ".join(f"{number:,}" for number in sorted({min(numbers), max(numbers)}))
        return f"{span} {noun}{'' if numbers == {1} else 's'}"

    facts = [counted({len(records)}, "run"), counted({row.seeds for row in table.rows}, "seed") + " a row"]
    sizes = {len(run.predictions.index) for row in table.rows for run in row.runs if run.predictions}
    return facts + ([counted(sizes, "test example")] if sizes else [])


def _columns(table: Table) -> list[dict[str, Any]]:
    """Headers: text, unit, whether numeric, and which direction a first click sorts in ("" where it does not)."""
    numeric = [all(isinstance(row.keys[key], int | float) for row in table.rows) for key in table.keys]
    columns = [
        {"title": title, "unit": "", "number": number, "first": "ascending"}
        for title, number in zip(table.titles, numeric, strict=True)
    ]
    for name in (*table.metrics, *COSTS):
        column = quantity(name)
        columns.append(
            {
                "title": column.title,
                "unit": column.unit,
                "number": True,
                "first": "descending" if column.better == "higher" else "ascending",
            }
        )
    if _whisker(table, table.rows[0]):
        columns.insert(len(table.keys) + 1, {"title": "Interval", "unit": "", "number": False, "first": ""})
    return [*columns, {"title": "Seeds", "unit": "", "number": True, "first": "descending"}]


def _row(table: Table, row: Row) -> dict[str, Any]:
    """The cells of a row; the first metric is followed by its drawn interval."""
    cells = []
    for name in table.metrics:
        estimate, column, first = row.metrics[name], quantity(name), name == table.metrics[0]
        cells.append(
            _cell(
                estimate.mean,
                column.text(estimate.mean),
                interval=formats.interval(estimate, column),
                rank=table.rank(name, row),
                mark=row.mark if first else "",
                hint="" if estimate.p is None else f"p = {estimate.p:.2g} against the baseline",
            )
        )
        if first and (whisker := _whisker(table, row)):
            cells.append(_cell(None, "", whisker=whisker))
    cells += [_cell(row.costs[name], column.text(row.costs[name])) for name, column in COSTS.items()]
    labels = [
        {"text": label, "sort": value if isinstance(value, int | float) else label}
        for label, value in zip(row.labels, row.keys.values(), strict=True)
    ]
    return {"labels": labels, "baseline": row.baseline, "cells": [*cells, _cell(row.seeds, row.seeds_text)]}


def _cell(sort: float | None, text: str, **more: Any) -> dict[str, Any]:
    return {"sort": sort, "text": text, "interval": "", "mark": "", "rank": 0, "hint": "", "whisker": None, **more}


def _whisker(table: Table, row: Row) -> dict[str, float | None] | None:
    """Where low, mean, high and the baseline's mean of the first metric lie, in percent of the cell's width.

    None for every row of a table that has nothing to compare: one row, or no interval at all.
    """
    name = table.metrics[0]
    bounds = [each.metrics[name].bounds for each in table.rows]
    if len(bounds) < 2 or all(low == high for low, high in bounds):
        return None
    left, right = min(low for low, _ in bounds), max(high for _, high in bounds)
    base = [each.metrics[name].mean for each in table.rows if each.baseline]
    places = {
        "low": row.metrics[name].bounds[0],
        "mean": row.metrics[name].mean,
        "high": row.metrics[name].bounds[1],
        "base": base[0] if len(base) == 1 else None,
    }
    return {key: None if value is None else round(3 + 94 * (value - left) / (right - left), 2) for key, value in places.items()}


def _run(run: RunRecord, table: Table, base: Mapping[str, str], directory: Path) -> dict[str, Any]:
    """What the page tells of one run."""

    def metrics(values: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [
            (quantity(name).heading, quantity(name).text(value))
            for name, value in values.items()
            if isinstance(value, int | float)
        ]

    counts = [(name.capitalize(), f"{run.result[name]:,g}") for name in _COUNTS if name in run.result]
    costs = metrics({name: run.result.get(name) for name in COSTS})
    first = quantity(table.metrics[0])
    where = Path(relpath(run.directory, directory)).as_posix()
    groups = {"Test": metrics(run.metrics), "Dev": metrics(run.result.get("dev") or {}), "Cost": counts + costs}
    return {
        "run": run,
        "chose": described(run),
        "where": where,
        "headline": f"{first.text(run.metrics[first.name])} {first.unit}".strip() if run.done else run.status,
        "files": [(name, f"{where}/{name}") for name in _FILES if (run.directory / name).exists()],
        "config": [(key, value, key not in base) for key, value in flat(run.config).items()],
        "groups": {heading: values for heading, values in groups.items() if values},
    }


def _environment(records: Sequence[RunRecord], extra: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Names and values of what made the runs (every distinct value where they differ) and what wrote this page."""
    found: dict[str, dict[str, None]] = {}
    for environment in (extra or {}, *(run.result.get("environment") or {} for run in records)):
        for key, value in flat(environment).items():
            found.setdefault(key, {})[value] = None
    try:
        own = f"graft-lm {version('graft-lm')}, "
    except PackageNotFoundError:
        own = ""
    writer = f"{own}Python {platform.python_version()}, matplotlib {version('matplotlib')}"
    return [(key, "; ".join(values)) for key, values in found.items()] + [("report written with", writer)]
