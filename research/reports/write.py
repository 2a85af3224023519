"""The whole report on disk: table.csv, table.md, table.tex, figures as SVG, report.html, each replaced atomically."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.files import write_text
from research.reports import formats, plots
from research.reports.page import page
from research.reports.records import RunRecord
from research.reports.table import Table, build


def write(
    records: Sequence[RunRecord],
    directory: str | Path,
    rows: Sequence[str] = ("tuning",),
    baseline: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = ("accuracy", "macro_f1"),
    *,
    title: str = "Report",
    question: str = "",
    environment: Mapping[str, Any] | None = None,
    **options: Any,
) -> Table:
    """Write table.csv, table.md, table.tex, the figures of `plots.figures` as SVG, and report.html to `directory`.

    Nothing is written unless everything could be made. Arguments up to `metrics`, `options` and errors as `build`, the others
    as `page`. Returns the table, for `to_rich`.
    """
    directory = Path(directory)
    table = build(records, rows, baseline, metrics, **options)
    texts = {"table.csv": formats.to_csv(table), "table.md": formats.to_markdown(table), "table.tex": formats.to_latex(table)}
    figures = plots.figures(table)
    texts |= {f"{name}.svg": svg for name, (svg, _) in figures.items()}
    texts["report.html"] = page(table, records, directory, figures, title=title, question=question, environment=environment)
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(directory / name, text)
    return table
