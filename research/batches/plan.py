"""What a batch holds and where: the Batching config, and the Plan it makes of the lengths of a data set.

    lengths [N] --Batching.plan--> Plan --members(order)--> examples of every batch of an epoch  [batches, size], -1: none
                                    |
                                    +----fit(lengths)-----> Layout: the row, first column and slot of each example of a batch

A plan never looks at the seed: its shapes hold for every epoch of every seed, so no program is compiled twice. A new way of
batching is one file in `plans/` with one subclass of `Batching`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Int
from pydantic import Field

from research.config import Config, variant
from research.errors import InputError

ATTENTION = 700
"""Row length at which the attention core costs as much as everything else in a layer (a 384-wide layer on CPU, measured)."""


class Shape(NamedTuple):
    """The shape of a batch: B rows of T tokens with S places for examples in each."""

    rows: int
    length: int
    slots: int

    @property
    def cost(self) -> float:
        """Work of a step on a batch of this shape, in tokens."""
        return cost(self.rows, self.length)


class Layout(NamedTuple):
    """Where the n examples of a batch stand, in the order of their ids."""

    shape: Shape
    rows: Int[np.ndarray, " n"]
    starts: Int[np.ndarray, " n"]  # column of the first token
    slots: Int[np.ndarray, " n"]  # place in the row, from 0


@dataclass(frozen=True)
class Plan:
    """How the examples of one data set become batches. Subclasses say how a batch is laid out."""

    size: int
    shapes: tuple[Shape, ...]  # every shape that any batch of any epoch may have, cheapest first
    packed: ClassVar[bool] = False  # whether rows hold several examples, so that positions must be given

    def members(self, order: Int[np.ndarray, " N"]) -> Int[np.ndarray, "batches size"]:
        """The examples of every batch of an epoch that takes them in this order; -1 fills up the last batch."""
        count = -(-len(order) // self.size)
        chunks = np.full((count, self.size), -1, np.int64)
        chunks.ravel()[: len(order)] = order
        return chunks

    def fit(self, lengths: Int[np.ndarray, " n"]) -> Layout:
        """Lay out one batch of examples of these lengths (n <= size) in one of `shapes`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Unpacked(Plan):
    """One example a row, in the shortest of the plan's lengths that holds the longest of the batch."""

    def fit(self, lengths: Int[np.ndarray, " n"]) -> Layout:
        longest = lengths.max()
        shape = next(shape for shape in self.shapes if shape.length >= longest)
        rows = np.arange(len(lengths))
        return Layout(shape, rows, np.zeros_like(rows), np.zeros_like(rows))


class Batching(Config):
    """How examples are grouped into batches. `kind` names a module of `research/batches/plans`, or one of the user's."""

    kind: str
    size: int = Field(32, gt=0)  # examples in a global batch

    def plan(self, lengths: Int[np.ndarray, " N"], row_multiple: int = 1) -> Plan:
        """The plan for a data set whose examples have these lengths, with rows in multiples of `row_multiple`.

        Raises:
            InputError: the data cannot be batched so, for example an example longer than the given lengths.
        """
        raise NotImplementedError


def batching(values: Mapping[str, Any]) -> Batching:
    """The validated config of `{"kind": "packed", "size": 32, ...}`.

    Raises:
        InputError: `kind` is missing or unknown.
        pydantic.ValidationError: a key or value that this kind does not take.
    """
    if not isinstance(kind := values.get("kind"), str):
        raise InputError("batching needs a kind, such as 'packed'.")
    return variant("research.batches.plans", Batching, kind).model_validate(dict(values))


def shuffled(count: int, seed: int, epoch: int) -> Int[np.ndarray, " count"]:
    """A permutation of `range(count)` that depends on `seed` and `epoch` alone.

    It sorts raw Philox bits, the stream that NumPy promises never to change; `Generator.permutation` has no such promise.
    """
    return np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(count), kind="stable")


def cost(rows: Any, length: Any) -> Any:
    """Work of a training step on `rows` rows of `length` tokens, in tokens: attention makes long rows dearer."""
    return rows * length * (1 + length / ATTENTION)


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-int(value) // multiple) * multiple


def refuse_longer(lengths: Int[np.ndarray, " N"], limit: int, key: str) -> None:
    """Raises InputError, naming the longest example, if it is longer than `limit`, which `key` of the config sets."""
    longest = int(np.argmax(lengths))
    if lengths[longest] > limit:
        raise InputError(
            f"example {longest} has {lengths[longest]} tokens, but {key} allows {limit}: raise {key} or truncate the text."
        )
