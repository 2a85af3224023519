"""Batches of examples of similar length, padded to one of a few lengths.

lengths   5..16 | 17..24 | 25..48      three buckets, so three compiled programs
batch     32 of one bucket; what is left over of a bucket moves up into the next
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field

from research.batches.plan import Batching, Plan, Shape, Unpacked, cost, refuse_longer, round_up

Positive = Annotated[int, Field(gt=0)]


class Buckets(Batching):
    """Batches of similar length. Their order and membership are random in each epoch, their lengths are not."""

    kind: Literal["buckets"] = "buckets"
    buckets: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] = 4  # how many lengths at most, or the lengths
    multiple: Positive = 8  # lengths chosen from the data are multiples of this

    def plan(self, lengths: Int[np.ndarray, " N"], row_multiple: int = 1) -> Plan:
        size = min(self.size, len(lengths))
        if isinstance(self.buckets, int):
            edges = best_edges(lengths, self.buckets, self.multiple)
        else:
            edges = sorted(set(self.buckets))
            refuse_longer(lengths, edges[-1], "buckets")
        shapes = tuple(Shape(round_up(size, row_multiple), edge, 1) for edge in edges)
        return Bucketed(size, shapes, np.searchsorted(edges, lengths))


@dataclass(frozen=True)
class Bucketed(Unpacked):
    """Unpacked batches whose members come from neighbouring buckets."""

    buckets: Int[np.ndarray, " N"]  # the bucket of each example

    def members(self, order: Int[np.ndarray, " N"]) -> Int[np.ndarray, "batches size"]:
        turns = np.argsort(self.buckets[order], kind="stable")
        chunks = super().members(order[turns])
        # A batch takes its turn where its first example stood in the order, so every bucket is spread over the epoch.
        return chunks[np.argsort(turns[:: self.size])]


def best_edges(lengths: Int[np.ndarray, " N"], count: int, multiple: int) -> list[int]:
    """At most `count` lengths, multiples of `multiple`, that cost least when each example is padded to the next of them.

    Exact, by dynamic programming over the histogram: least[j] is the least cost of the examples up to the j-th length.
    """
    values, counts = np.unique(-(-lengths // multiple) * multiple, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    least = np.concatenate([[0.0], np.full(len(values), np.inf)])
    cuts = []
    for _ in range(min(count, len(values))):
        options = [least[:j] + (below[j] - below[:j]) * cost(1, values[j - 1]) for j in range(1, len(values) + 1)]
        cuts.append([int(option.argmin()) for option in options])
        least = np.array([0.0, *(option.min() for option in options)])
    edges, j = [], len(values)
    for cut in reversed(cuts):
        if j:
            edges.append(int(values[j - 1]))
            j = cut[j - 1]
    return edges[::-1]
