"""One HTML page with everything a reader needs, working offline: no script, style, font or image comes from elsewhere.

    Table, records --context--> plain dicts and strings --page.html.j2 (autoescape), page.css, page.js--> str

The template holds the structure, the style sheet the looks, the script the sorting and the copy buttons. Without the
script the page is complete, only not sortable.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from os.path import relpath
from pathlib import Path
from typing import Any

from research.reports import formats, plots
from research.reports.quantities import COSTS, Quantity, quantity
from research.reports.records import RunRecord
from research.reports.table import Row, Table, described, show

_FILES = ("config.json", "metrics.jsonl", "predictions.jsonl", "result.json")
_NUMBERS = ("steps", "epochs", "compilations", *COSTS)


def page(
    table: Table,
    records: Sequence[RunRecord],
    directory: str | Path,
    *,
    title: str = "Report",
    question: str = "",
    environment: Mapping[str, Any] | None = None,
) -> str:
    """The page as one string of HTML; links to runs and tables are relative to `directory`, where it will be stored.

    Args:
        environment: what the runs were made with, by name; the `environment` of each result.json is added to it.
    """
    import jinja2

    here = files("research.reports")
    engine = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    base, _ = _common([flat(run.config) for run in records])
    return engine.from_string((here / "page.html.j2").read_text(encoding="utf-8")).render(
        title=title, question=question, table=table, summary=_summary(table, records),
        columns=_columns(table), rows=[_row(table, row) for row in table.rows], figures=_figures(table),
        sources=[(name, text) for name, text in (("LaTeX", formats.to_latex(table)), ("Markdown", formats.to_markdown(table)),
                                                 ("CSV", formats.to_csv(table)))],
        problems=[(run, described(run)) for run in table.problems], base=base,
        runs=[_run(run, table, base, Path(directory)) for run in records], environment=_environment(records, environment),
        series=plots.PALETTE, style=(here / "page.css").read_text(encoding="utf-8"),
        script=(here / "page.js").read_text(encoding="utf-8"),
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


def _common(configs: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], set[str]]:
    """What every configuration agrees on, and the keys on which some differ."""
    keys = {key: None for config in configs for key in config}
    same = {key: configs[0][key] for key in keys if len({config.get(key) for config in configs}) == 1}
    return same, set(keys) - set(same)


def _summary(table: Table, records: Sequence[RunRecord]) -> list[str]:
    """The facts under the title."""
    done = sum(run.done for run in records)
    seeds = sorted({row.seeds for row in table.rows})
    sizes = sorted({len(run.predictions.index) for row in table.rows for run in row.runs if run.predictions})
    span = [f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}" for values in (seeds, sizes) if values]
    facts = [f"{len(records)} run{'s' * (len(records) != 1)}" + (f", {len(records) - done} without a result" if table.problems else ""),
             f"{span[0]} seed{'s' * (seeds != [1])} a row"]
    return facts + [f"{span[1]} test examples"] * (len(span) > 1)


def _columns(table: Table) -> list[dict[str, Any]]:
    """Headers: text, whether numeric, and which direction a first click sorts in."""
    numeric = [quantity(name) for name in (*table.metrics, *COSTS)]
    columns = [{"title": title, "unit": "", "number": False, "first": "ascending"} for title in table.titles]
    columns += [{"title": column.title, "unit": column.unit, "number": True,
                 "first": "descending" if column.better == "higher" else "ascending"} for column in numeric]
    columns.append({"title": "Seeds", "unit": "", "number": True, "first": "descending"})
    return columns


def _row(table: Table, row: Row) -> dict[str, Any]:
    """The cells of a row. The first metric also gets a drawn interval."""
    cells = []
    for name in table.metrics:
        estimate, column = row.metrics[name], quantity(name)
        hint = "" if estimate.p is None else f"p = {estimate.p:.2g} against the baseline, Holm-corrected"
        cells.append({"sort": estimate.mean, "text": column.text(estimate.mean), "interval": formats.interval(estimate, column),
                      "mark": row.mark if name == table.metrics[0] else "", "rank": table.rank(name, row), "hint": hint,
                      "whisker": _whisker(table, name, row) if name == table.metrics[0] else None})
    cells += [_plain(row.costs[name], column) for name, column in COSTS.items()]
    cells.append({**_plain(row.seeds, Quantity("seeds", "Seeds", digits=0)), "text": row.seeds_text})
    return {"labels": row.labels, "cells": cells, "baseline": row.baseline}


def _plain(value: float | None, column: Quantity) -> dict[str, Any]:
    return {"sort": value, "text": column.text(value), "interval": "", "mark": "", "rank": 0, "hint": "", "whisker": None}


def _whisker(table: Table, name: str, row: Row) -> dict[str, Any] | None:
    """Positions in percent of the cell's width: low, mean, high, and the baseline's mean; None without intervals."""
    estimates = [each.metrics[name] for each in table.rows if each.metrics[name].low is not None]
    own = row.metrics[name]
    if own.low is None or len(table.rows) < 2:
        return None
    low, high = min(each.low for each in estimates), max(each.high for each in estimates)
    bases = [each.metrics[name].mean for each in table.rows if each.baseline]

    def place(value: float) -> float:
        return round(4 + 92 * (value - low) / ((high - low) or 1), 2)

    return {"low": place(own.low), "mean": place(own.mean), "high": place(own.high),
            "baseline": place(bases[0]) if len(bases) == 1 else None}


def _figures(table: Table) -> list[dict[str, str]]:
    """The drawn figures: inline SVG and caption. A figure that the runs left no data for is absent."""
    first = quantity(table.metrics[0])
    every = (
        ("tradeoff", plots.trade_off(table), f"Test {first.title.lower()} against the number of trainable parameters. "
         "Bars are the table's intervals" + ("; the dashed line is the baseline." if any(row.baseline for row in table.rows) else ".")),
        ("curves", plots.learning_curves(table, table.metrics[0]),
         f"Learning curves: {first.title.lower()} on dev, mean over seeds; bands reach from the lowest to the highest seed."),
        ("loss", plots.learning_curves(table, "loss", "train"),
         "Training loss, mean over seeds; bands reach from the lowest to the highest seed."),
    )
    return [{"name": name, "svg": plots.inline(plots.to_svg(figure, name), name, caption), "caption": caption}
            for name, figure, caption in every if figure is not None]


def _run(run: RunRecord, table: Table, base: Mapping[str, str], directory: Path) -> dict[str, Any]:
    """What the page tells of one run."""
    def numbers(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [(quantity(name).heading, quantity(name).text(value)) for name, value in metrics.items()
                if isinstance(value, int | float) and not isinstance(value, bool)]

    costs = {name: run.result[name] for name in _NUMBERS if isinstance(run.result.get(name), int | float)}
    first = quantity(table.metrics[0])
    where = Path(relpath(run.directory, directory)).as_posix()
    return {
        "run": run, "chose": described(run), "where": where,
        "headline": f"{first.text(run.metrics[first.name])} {first.unit}".strip() if run.done else run.status,
        "files": [(name, f"{where}/{name}") for name in _FILES if (run.directory / name).exists()],
        "config": [(key, value, key not in base) for key, value in flat(run.config).items()],
        "groups": [(heading, values) for heading, values in
                   (("Test", numbers(run.metrics)), ("Dev", numbers(run.result.get("dev") or {})),
                    ("Cost", [(name.replace("_", " ").capitalize() if name not in COSTS else quantity(name).heading,
                               quantity(name).text(value) if name in COSTS else f"{value:,.4g}") for name, value in costs.items()]))
                   if values],
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
