"""Figures: learning curves, and accuracy against what was trained.

    records --learning_curves--> Figure --to_svg--> standalone SVG (white ground, for papers)
    Table   --trade_off-------->        --inline--> SVG for the page: colours are CSS variables, so dark mode works

Text stays text. Colours follow Okabe and Ito (2008), darkened or lightened to keep contrast on white and on dark; every
series also has its own marker and is labelled in place, so that no reader depends on colour.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import numpy as np

from research.reports.placement import label_ends, label_points
from research.reports.quantities import quantity
from research.reports.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = (
    ("#0072b2", "#5cb3e8"),
    ("#c04a00", "#f5915a"),
    ("#00795a", "#37c79a"),
    ("#a8457f", "#e39ac4"),
    ("#7a5c00", "#e0b83f"),
    ("#5a4fcf", "#a79ff2"),
    ("#5f6770", "#aab2bb"),
)  # (on light, on dark)
INK, MUTED, GRID, GROUND = "#1b1f24", "#5c6570", "#e3e6ea", "#fefefe"
_MARKERS = "osD^vPX"
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "figure.facecolor": GROUND,
    "axes.facecolor": GROUND,
    "savefig.facecolor": GROUND,
}
_BINS = 25  # a training curve is averaged to at most so many points


def figures(table: Table) -> dict[str, tuple[str, str]]:
    """The figures of a report, name -> (standalone SVG, caption). One that the runs left no data for is absent."""
    first = quantity(table.metrics[0]).title.lower()
    bars = "with the table's intervals" + ("; dashed: the baseline." if any(row.baseline for row in table.rows) else ".")
    band = "mean over seeds; bands reach from the lowest to the highest seed."
    drawn = {
        "trade_off": (trade_off(table), f"Test {first} against the number of trainable parameters, {bars}"),
        "wall_time": (trade_off(table, "seconds"), f"Test {first} against wall time, {bars}"),
        "learning_curves": (learning_curves(table, table.metrics[0]), f"Learning curves: {first} on dev, {band}"),
        "training_loss": (learning_curves(table, "loss", "train"), "Training loss, mean over seeds and neighbouring steps."),
    }
    return {name: (to_svg(figure, name), caption) for name, (figure, caption) in drawn.items() if figure is not None}


def learning_curves(table: Table, metric: str, split: str = "dev") -> Figure | None:
    """`metric` on `split` against epoch (or step): mean over the seeds of each row, band from lowest to highest seed.

    Only steps that every seed of a row reached are drawn; a training curve is averaged over neighbouring steps and has no
    band. None where no run logged the metric.
    """
    import matplotlib

    series = [
        (row, number, curve) for number, row in enumerate(table.rows) if (curve := _curve(row, metric, split)) is not None
    ]
    if not series:
        return None
    column, by_epoch = quantity(metric), all(curve[0] for _, _, curve in series)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes()
        ends = []
        for row, number, (_, epochs, steps, values) in series:
            x, y = (epochs if by_epoch else steps), values * column.scale
            look = _look(number)
            if len(y) > 1 and split != "train":
                axes.fill_between(x, y.min(0), y.max(0), color=look["color"], alpha=0.16, linewidth=0)
            axes.plot(x, y.mean(0), linewidth=1.8, markersize=5, markevery=max(1, len(x) // 12), **look)
            ends.append((x[-1], y.mean(0)[-1], row.label, look["color"]))
        axes.set_xlabel("Epoch" if by_epoch else "Step")
        axes.set_ylabel(f"{split.capitalize()} {_lower(column.heading)}")
        axes.margins(x=0.02)
        label_ends(axes, ends)
    return figure


def trade_off(table: Table, cost: str = "trainable") -> Figure | None:
    """The table's first metric with its interval against a cost: trainable parameters (logarithmic), seconds, ...

    None unless at least two rows state that cost, and not the same.
    """
    import matplotlib

    name, across = table.metrics[0], quantity(cost)
    points = [(row, number) for number, row in enumerate(table.rows) if row.costs[cost]]
    if len({row.costs[cost] for row, _ in points}) < 2:
        return None
    column = quantity(name)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes()
        axes.set_xscale("log" if cost == "trainable" else "linear")
        axes.set_xlabel("Trainable parameters (log scale)" if cost == "trainable" else across.heading)
        axes.set_ylabel(f"Test {_lower(column.heading)}")
        axes.margins(x=0.14, y=0.12)
        labels = []
        for row, number in points:
            look, estimate = _look(number), row.metrics[name]
            y, low, high = (column.scale * value for value in (estimate.mean, *estimate.bounds))
            axes.errorbar(
                row.costs[cost],
                y,
                yerr=[[y - low], [high - y]],
                markersize=7,
                elinewidth=1.6,
                capsize=0 if estimate.low is None else 3.5,
                **look | {"linestyle": ""},
            )
            labels.append((row.costs[cost], y, low, high, row.label, look["color"]))
        lines = [column.scale * row.metrics[name].mean for row, _ in points if row.baseline]
        for y in lines:
            axes.axhline(y, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        label_points(axes, labels, lines)
    return figure


def to_svg(figure: Figure, name: str = "figure") -> str:
    """`figure` as a standalone SVG document, text as text, the same bytes each time."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(
            out,
            format="svg",
            bbox_inches="tight",
            pad_inches=0.06,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return out.getvalue()


def inline(svg: str, name: str, title: str) -> str:
    """A standalone SVG of `to_svg` made fit for a page: scoped ids, CSS variables for colours, an accessible name."""
    from html import escape

    body = svg[svg.index("<svg") :]
    body = re.sub(r"<style.*?</style>|<metadata.*?</metadata>|<defs>\s*</defs>", "", body, flags=re.S)
    body = re.sub(r'\s(xmlns(:xlink)?|version)="[^"]*"', "", body).replace("xlink:href", "href")
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"'DejaVu Sans'(, [\w' -]+)*", "inherit", body)
    body = re.sub(r"font: ([\d.]+px) inherit", r"font-size: \1", body)
    variables = {light: f"var(--s{number})" for number, (light, _) in enumerate(PALETTE)}
    variables |= {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", GROUND: "none"}
    body = re.sub("|".join(variables), lambda match: variables[match.group()], body)
    body = re.sub(r'\s(width|height)="[\d.]+pt"', "", body, count=2)
    return body.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def _axes() -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # measures text, which placing labels needs
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.tick_params(length=3)
    return figure, axes


def _look(number: int) -> dict[str, str]:
    """Colour and marker of series `number`; after all colours are used the line is dashed."""
    return {
        "color": PALETTE[number % len(PALETTE)][0],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": ("-", "--", ":", "-.")[number // len(PALETTE) % 4],
        "markeredgecolor": GROUND,
    }


def _lower(heading: str) -> str:
    return heading if heading[1:2].isupper() or "-" in heading else heading[0].lower() + heading[1:]


def _curve(row: Row, metric: str, split: str):
    """(has epochs, epochs [T], steps [T], values [seeds, T]) at the steps that every run reached; None if there are none."""
    runs = []
    for run in row.runs:
        lines = [line for line in run.curve if line.get("split") == split and isinstance(line.get(metric), int | float)]
        if lines:
            runs.append({line["step"]: line for line in lines})
    steps = sorted(set.intersection(*map(set, runs))) if runs else []
    if not steps:
        return None
    values = np.array([[run[step][metric] for step in steps] for run in runs], float)
    has_epochs = all("epoch" in run[step] for run in runs for step in steps)
    epochs = np.array([runs[0][step]["epoch"] if has_epochs else step for step in steps], float)
    columns = [epochs, np.array(steps, float), *values]
    if split == "train" and len(steps) > _BINS:
        bins = np.array_split(np.arange(len(steps)), _BINS)
        columns = [np.array([column[part].mean() for part in bins]) for column in columns]
    return has_epochs, columns[0], columns[1], np.stack(columns[2:])
