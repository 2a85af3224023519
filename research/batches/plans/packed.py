"""Several short examples in a row, kept apart by segments: what a plain shuffled batch holds, in half the tokens.

segments   [ 1 1 1 1 1 1 1 2 2 2 2 2 3 3 3 3 ]     every batch holds the same `size` random examples as a padded
           [ 1 1 1 1 1 1 2 2 2 2 2 2 3 3 3 0 ]     batch of the same seed, so training means the same
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field

from research.batches.packing import best_fit, choose_shapes, slot_limit
from research.batches.plan import Batching, Layout, Plan, Shape, refuse_longer, round_up

CANDIDATES = 16
"""Row lengths that are tried."""


class Packed(Batching):
    """Random batches packed best fit decreasing into one of a few shapes, chosen from the data to cost least."""

    kind: Literal["packed"] = "packed"
    row_length: int | None = Field(None, gt=0)  # tokens in a row; None: chosen from the data
    shapes: int = Field(3, gt=0)  # shapes in use; one more is kept for batches that none of them holds
    multiple: int = Field(8, gt=0)  # row lengths chosen from the data are multiples of this

    def plan(self, lengths: Int[np.ndarray, " N"], row_multiple: int = 1) -> Plan:
        size = min(self.size, len(lengths))
        if self.row_length is not None:
            refuse_longer(lengths, self.row_length, "row_length")
        capacities = self._capacities(lengths) if self.row_length is None else [self.row_length]
        pairs = choose_shapes(lengths, size, capacities, self.shapes, row_multiple)
        return PackedPlan(size, tuple(Shape(rows, length, min(size, slot_limit(lengths, length))) for rows, length in pairs))

    def _capacities(self, lengths: Int[np.ndarray, " N"]) -> list[int]:
        """Row lengths worth trying: the longest example's and others from what holds most of them to twice the longest."""
        longest = round_up(lengths.max(), self.multiple)
        spread = np.linspace(np.quantile(lengths, 0.9), 2 * longest, CANDIDATES - 1)
        return sorted({longest, *(round_up(length, self.multiple) for length in spread)})


@dataclass(frozen=True)
class PackedPlan(Plan):
    """Several examples a row, in the cheapest of the shapes that holds the batch."""

    packed: ClassVar[bool] = True

    def fit(self, lengths: Int[np.ndarray, " n"]) -> Layout:
        sizes = lengths.tolist()
        packings: dict[int, list[int]] = {}  # row length -> row of each example
        for shape in self.shapes:
            if shape.length < max(sizes):
                continue
            rows = packings.get(shape.length) or packings.setdefault(shape.length, best_fit(sizes, shape.length, shape.slots))
            if max(rows) < shape.rows:
                return Layout(shape, *_columns(sizes, rows))
        raise AssertionError("the last shape holds every batch")


def _columns(lengths: list[int], rows: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Examples stand in their rows in the order of the batch: rows, first columns and slots."""
    filled, held = [0] * (max(rows) + 1), [0] * (max(rows) + 1)
    starts, slots = [], []
    for length, row in zip(lengths, rows, strict=True):
        starts.append(filled[row])
        slots.append(held[row])
        filled[row] += length
        held[row] += 1
    return np.array(rows), np.array(starts), np.array(slots)
