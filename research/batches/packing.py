"""Bin packing: examples into rows, and the few row counts and lengths that suit a data set.

lengths of a batch   6 3 9 5 2      rows of 12    [ 9 9 9 9 9 9 9 9 9 3 3 3 ]    best fit decreasing: the longest
                                                  [ 6 6 6 6 6 6 5 5 5 5 5 . ]    first, each into the fullest row
                                                  [ 2 2 . . . . . . . . . . ]    that still holds it
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from research.batches.plan import cost, round_up, shuffled

TRIALS = 32768
"""Examples in the sample of batches that shapes are chosen on, about."""
NEVER = 2**31 - 1
"""Rows needed where an example is longer than the row."""


def best_fit(lengths: Sequence[int], capacity: int, slots: int = NEVER) -> list[int]:
    """The row of each example when examples are packed best fit decreasing; rows are numbered from 0 as they open.

    At most 11/9 of the fewest rows possible, and 4 more (Johnson et al. 1974), where `slots`, the most examples that a row
    takes, does not matter.

    Raises:
        ValueError: an example longer than `capacity`.
    """
    rows, held = [0] * len(lengths), [0] * len(lengths)
    free: list[tuple[int, int]] = []  # (columns left, row) of rows that take more, ascending
    opened = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        place = bisect_left(free, (lengths[index], -1))
        if place < len(free):
            left, row = free.pop(place)
        else:
            left, row = capacity, opened
            opened += 1
        if left < lengths[index]:
            raise ValueError(f"an example of {lengths[index]} tokens does not fit a row of {capacity}.")
        rows[index] = row
        held[row] += 1
        if held[row] < slots:
            insort(free, (left - lengths[index], row))
    return rows


def most_rows(lengths: Int[np.ndarray, " N"], size: int, capacity: int, slots: int = NEVER) -> int:
    """A number of rows that `best_fit` never exceeds, whichever `size` of the examples it packs.

    At most size / slots rows end with all slots taken. Of the others one is opened only for an example that fits none of
    them, so any two together hold more than `capacity`. Added up around the n rows: 2 * tokens > n * capacity.
    """
    tokens = int(np.sort(lengths)[-size:].sum())
    return min(size, max(1, -(-2 * tokens // capacity) - 1) + size // slots)


def slot_limit(lengths: Int[np.ndarray, " N"], capacity: int) -> int:
    """How many examples a row of `capacity` tokens takes at most: twice what it holds of average ones.

    What a head reads is computed for every slot of every row, so that slots for rows full of the shortest examples, which
    hardly ever occur, would cost more than the rows that they save.
    """
    return max(2, math.ceil(2 * capacity / lengths.mean()))


def choose_shapes(
    lengths: Int[np.ndarray, " N"], size: int, capacities: Sequence[int], count: int, row_multiple: int = 1
) -> list[tuple[int, int]]:
    """The (rows, row length) pairs, cheapest first, that make packed batches of `size` random examples cheapest.

    `count` pairs are fitted to a sample of batches: one that holds every batch of the sample with a row to spare, the
    others wherever they save most. A last pair is added where those could still be exceeded; it holds any batch at
    all, is hardly ever used, and so is hardly ever compiled.
    """
    limits = {capacity: slot_limit(lengths, capacity) for capacity in capacities}
    needed = np.array(
        [
            [
                max(best_fit(batch, capacity, slots)) + 1 if max(batch) <= capacity else NEVER
                for capacity, slots in limits.items()
            ]
            for batch in lengths[_sample(len(lengths), size)].tolist()
        ]
    )
    enough = {c: round_up(most_rows(lengths, size, c, limits[c]), row_multiple) for c in capacities if c >= lengths.max()}
    roomy = min(
        (
            (min(round_up(needed[:, column].max() + 1, row_multiple), enough[capacity]), capacity)
            for column, capacity in enumerate(capacities)
            if capacity in enough
        ),
        key=_cost,
    )
    pairs = [roomy, *_cheapest(needed, capacities, cost(*roomy), count - 1, row_multiple)]
    if roomy[0] < enough[roomy[1]]:
        pairs.append(min(((rows, capacity) for capacity, rows in enough.items()), key=_cost))
    return sorted(set(pairs), key=_cost)


def _cheapest(
    needed: Int[np.ndarray, "batches capacities"], capacities: Sequence[int], otherwise: float, count: int, row_multiple: int
) -> list[tuple[int, int]]:
    """The `count` pairs that cost the sample least, each batch taking the cheapest that holds it, or paying `otherwise`."""
    pairs = sorted(
        {
            (round_up(rows, row_multiple), capacity, column)
            for column, capacity in enumerate(capacities)
            for rows in np.unique(needed[:, column])
            if cost(rows, capacity) < otherwise
        }
    )
    if not pairs or not count:
        return []
    prices: Float[np.ndarray, "pairs batches"] = np.stack(
        [np.where(needed[:, column] <= rows, cost(rows, capacity), otherwise) for rows, capacity, column in pairs]
    )
    chosen: list[int] = []
    for _ in range(3 * count):  # one at a time is chosen afresh given the others; three rounds settle it
        if len(chosen) == count:
            chosen.pop(0)
        floor = prices[chosen].min(axis=0, initial=otherwise)
        chosen.append(int(np.minimum(floor, prices).sum(axis=1).argmin()))
    return [pairs[index][:2] for index in chosen]


def _sample(count: int, size: int) -> Int[np.ndarray, "batches size"]:
    """Batches of `size` of `count` examples at random; always the same ones, so that every seed has the same shapes."""
    batches = int(np.clip(TRIALS // size, 16, 1024))
    epochs = -(-batches // (count // size))
    orders = [shuffled(count, 0, epoch)[: count // size * size].reshape(-1, size) for epoch in range(epochs)]
    return np.concatenate(orders)[:batches]


def _cost(pair: tuple[int, int]) -> float:
    return cost(*pair)
