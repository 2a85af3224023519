"""Where the names of points and lines are written in a figure, so that none covers another or anything drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each series' name right of its last point, pushed apart where they would overlap."""
    axes.figure.canvas.draw()
    height = 13.5 * axes.figure.dpi / 72
    right = max(x for x, *_ in ends)
    order = sorted(ends, key=lambda end: end[1])
    wanted = [axes.transData.transform((right, y))[1] for _, y, _, _ in order]
    placed = spread(wanted, height)
    for (_, y, label, color), target, want in zip(order, placed, wanted, strict=True):
        axes.annotate(
            label,
            (right, y),
            xytext=(8, (target - want) * 72 / axes.figure.dpi),
            textcoords="offset points",
            color=color,
            va="center",
            annotation_clip=False,
            fontweight="bold",
            parse_math=False,
        )


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Ascending `positions` moved as little as possible (least squares) so that neighbours are at least `gap` apart.

    Subtracting gap * i turns the task into isotonic regression, solved by pooling adjacent violators.
    """
    pools: list[list[float]] = []  # [mean, count]
    for number, position in enumerate(positions):
        pools.append([position - gap * number, 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, count = pools.pop()
            total = pools[-1][1] + count
            pools[-1] = [(pools[-1][0] * pools[-1][1] + mean * count) / total, total]
    flat = [mean for mean, count in pools for _ in range(int(count))]
    return [value + gap * number for number, value in enumerate(flat)]


def label_points(axes: Axes, points: Sequence[tuple[float, float, float, float, str, str]], lines: Sequence[float]) -> None:
    """Write the name of each (x, y, low, high, name, colour) beside it, at the first place that covers nothing drawn.

    Covered would be a point, its error bar, one of the horizontal `lines`, or another name; where every place covers
    something, the one that covers least is taken.
    """
    canvas = axes.figure.canvas
    canvas.draw()
    drawn = [axes.transData.transform((x, y)) for x, _, low, high, *_ in points for y in np.linspace(low, high, 9)]
    drawn += [axes.transData.transform((axes.get_xlim()[0], y)) for y in lines]
    drawn = np.array(drawn)
    drawn_lines, boxes = drawn[len(points) * 9 :, 1], []
    for x, y, _, _, label, color in points:
        text = axes.annotate(
            label,
            (x, y),
            xytext=(9, 0),
            textcoords="offset points",
            color=color,
            va="center",
            fontweight="bold",
            parse_math=False,
        )

        def put(place: tuple[int, str], text: Annotation = text):
            up, side = place
            text.set(position=(9 if side == "left" else -9, up), ha=side)
            return text.get_window_extent(canvas.get_renderer())

        def covered(place: tuple[int, str]) -> int:
            box = put(place)
            inside = (drawn >= box.min).all(1) & (drawn <= box.max).all(1)
            crossed = (drawn_lines >= box.y0) & (drawn_lines <= box.y1)
            return int(inside.sum() + crossed.sum() + 9 * sum(box.overlaps(other) for other in boxes))

        best = min(((up, side) for up in (0, 12, -12, 24, -24) for side in ("left", "right")), key=covered)
        boxes.append(put(best))
