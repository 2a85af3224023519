"""A Table as CSV, Markdown, LaTeX and a table for the terminal.

    Table --to_csv------> one line per row, raw numbers (shares between 0 and 1)
          --to_markdown-> pipes, best in bold
          --to_latex----> booktabs, best in bold, second underlined
          --to_rich-----> rich.Table, fits 100 columns

CSV is for programs and holds everything unrounded; the other three are for readers, in percent and with units.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from research.reports.quantities import COSTS, Quantity, quantity
from research.reports.table import Row, Table

if TYPE_CHECKING:
    import rich.table

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": "$<$",
    ">": "$>$",
    "[": "{[}",
    "–": "--",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    **{character: "\\" + character for character in "&%$#_{}"},
}  # a bracket at the start of a row would be read as the argument of the line break before it


def to_csv(table: Table) -> str:
    """One line per row: the row keys, each metric with `_low`, `_high` and `_p` (Holm-corrected), costs, seeds, failed, mark.

    Shares lie between 0 and 1; a number that is not known is empty.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [name + suffix for name in table.metrics for suffix in ("", "_low", "_high", "_p")]
    writer.writerow([*table.keys, *names, *COSTS, "seeds", "failed", "mark"])
    for row in table.rows:
        numbers = [number for name in table.metrics for number in row.metrics[name].numbers]
        numbers += [row.costs[name] for name in COSTS]
        cells = ["" if number is None else f"{number:.10g}" for number in numbers]
        writer.writerow([*map(str, row.keys.values()), *cells, row.seeds, row.failed, row.mark])
    return out.getvalue()


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured Markdown table, its notes, and the runs that failed."""
    heads = _heads(table)
    lines = [[_markdown(head) for head in heads], ["---"] * len(table.keys) + ["---:"] * (len(heads) - len(table.keys))]

    def cell(value: str, interval: str, mark: str, rank: int) -> str:
        return (f"**{value}**" if rank == 1 else value) + mark + (f" [{interval}]" if interval else "")

    lines += [[*map(_markdown, row.labels), *_numbers(table, row, cell)] for row in table.rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    if table.notes:
        text += "\n" + _markdown(" ".join(table.notes)) + "\n"
    if table.problems:
        text += "\nRuns without a result:\n\n" + "".join(f"- {_markdown(line)}\n" for line in table.problem_lines)
    return text


def to_latex(table: Table, label: str = "tab:results") -> str:
    """A `table` environment that needs only the booktabs package; best in bold, second best underlined."""

    def cell(value: str, interval: str, mark: str, rank: int) -> str:
        value = {1: rf"\textbf{{{value}}}", 2: rf"\underline{{{value}}}"}.get(rank, value)
        symbol = {"†": r"$^{\dagger}$", "‡": r"$^{\ddagger}$"}.get(mark, "")
        return value + symbol + (rf"\,{{\tiny [{interval}]}}" if interval else "")

    heads = _heads(table)
    depth = max(head.count(" ") for head in heads) + 1  # one word a line keeps the columns narrow
    stacked = [[""] * (depth - 1 - head.count(" ")) + head.split(" ") for head in heads]
    body = [[*map(_latex, row.labels), *(text.replace("–", "--") for text in _numbers(table, row, cell))] for row in table.rows]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{2pt}",
        rf"\caption{{{_latex(' '.join(table.notes))}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{@{{}}{'l' * len(table.keys)}{'r' * (len(heads) - len(table.keys))}@{{}}}}",
        r"\toprule",
        *(" & ".join(map(_latex, line)) + r" \\" for line in zip(*stacked, strict=True)),
        r"\midrule",
        *(" & ".join(line) + r" \\" for line in body),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if table.problems:
        listed = "; ".join(map(_latex, table.problem_lines))
        lines += [r"\par\smallskip", rf"Runs without a result: {listed}\par"]
    return "\n".join([*lines, r"\end{table}", ""])


def to_rich(table: Table, title: str | None = None) -> rich.table.Table:
    """The table for a terminal of 100 columns or more; notes and failed runs are its caption."""
    import rich.box
    import rich.table
    from rich.text import Text

    caption = Text("\n".join(table.notes), style="dim")
    for line in table.problem_lines:
        caption.append(f"\n{line}", style="red")
    out = rich.table.Table(
        title=title and Text(title, style="bold"),
        caption=caption,
        caption_justify="left",
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for position, head in enumerate(_heads(table)):
        key = position < len(table.keys)
        breakable = head.replace(" ", "\n") if position >= len(table.keys) + len(table.metrics) else head
        out.add_column(
            Text(breakable),
            justify="left" if key else "right",
            vertical="bottom",
            overflow="fold",
            no_wrap=not key,
            min_width=min(12, max(len(row.labels[position]) for row in table.rows)) if key else None,
        )

    def cell(value: str, interval: str, mark: str, rank: int) -> Text:
        text = Text.assemble((value, "bold" if rank == 1 else ""), (mark or (" " if interval else ""), "bold yellow"))
        return text.append(f" {interval:>9}", style="dim") if interval else text

    for row in table.rows:
        out.add_row(*map(Text, row.labels), *_numbers(table, row, cell))
    return out


def _heads(table: Table) -> list[str]:
    """Column headers: row keys, metrics, costs, seeds."""
    return [*table.titles, *(quantity(name).heading for name in (*table.metrics, *COSTS)), "Seeds"]


def _numbers(table: Table, row: Row, cell: Callable) -> list:
    """Every cell of `row` right of its keys, each made by `cell(value, interval, mark, rank)`."""
    cells = []
    for name in table.metrics:
        estimate, column = row.metrics[name], quantity(name)
        mark = row.mark if name == table.metrics[0] else ""
        cells.append(cell(column.text(estimate.mean), interval(estimate, column), mark, table.rank(name, row)))
    cells += [cell(column.text(row.costs[name]), "", "", 0) for name, column in COSTS.items()]
    return [*cells, cell(row.seeds_text, "", "", 0)]


def interval(estimate, column: Quantity) -> str:
    """`low–high` as a reader sees it; empty where there is no interval."""
    return "" if estimate.low is None else f"{column.text(estimate.low)}–{column.text(estimate.high)}"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)
