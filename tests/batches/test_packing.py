"""Bin packing and the choice of shapes, against brute force on small cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.batches import packing
from research.batches.packing import best_fit, choose_shapes, most_rows, slot_limit
from research.batches.plan import cost
from research.batches.plans.buckets import best_edges


def fewest_rows(lengths, capacity):
    """Optimal, by putting each example in every row that holds it."""
    best = len(lengths)

    def place(index, left):
        nonlocal best
        if len(left) >= best:
            return
        if index == len(lengths):
            best = len(left)
            return
        for row, space in enumerate(left):
            if space >= lengths[index]:
                place(index + 1, (*left[:row], space - lengths[index], *left[row + 1 :]))
        place(index + 1, (*left, capacity - lengths[index]))

    place(0, ())
    return best


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_best_fit_overfills_no_row_and_needs_at_most_one_more_than_the_optimum(lengths):
    rows = best_fit(lengths, 12)
    filled = np.bincount(rows, lengths)
    assert filled.max() <= 12 and filled.min() > 0
    assert len(filled) <= fewest_rows(lengths, 12) + 1


def test_best_fit_takes_the_fullest_row_that_still_holds_the_example():
    assert best_fit([6, 3, 9, 5, 2], 12) == [1, 0, 0, 1, 2]
    assert best_fit([8, 7, 3], 11) == [0, 1, 0]
    with pytest.raises(ValueError, match="13 tokens"):
        best_fit([13], 12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(1, 6), st.integers(12, 20), st.integers(1, 6))
def test_bounds_hold_for_every_choice_of_examples(lengths, size, capacity, slots):
    lengths, size = np.array(lengths), min(size, len(lengths))
    for count in range(1, size + 1):
        for chosen in itertools.combinations(lengths.tolist(), count):
            rows = best_fit(chosen, capacity, slots)
            assert max(rows) < most_rows(lengths, size, capacity, slots)
            assert np.bincount(rows).max() <= slots


@pytest.mark.parametrize("seed", range(4))
def test_chosen_shapes_cost_no_more_than_any_other_choice_of_as_many(seed, monkeypatch):
    monkeypatch.setattr(packing, "TRIALS", 100)
    lengths, size, capacities = np.random.default_rng(seed).integers(2, 16, 40), 5, [16, 24]
    pairs = choose_shapes(lengths, size, capacities, 3)
    batches = lengths[packing._sample(40, size)].tolist()
    limits = {c: slot_limit(lengths, c) for c in capacities}
    needed = [{c: max(best_fit(batch, c, limits[c])) + 1 for c in capacities} for batch in batches]

    def total(menu):
        return sum(min((cost(r, c) for r, c in menu if need[c] <= r), default=np.inf) for need in needed)

    roomy = min(
        ((min(max(need[c] for need in needed) + 1, most_rows(lengths, size, c, limits[c])), c) for c in capacities),
        key=lambda pair: cost(*pair),
    )
    assert roomy in pairs
    others = [(rows, c) for c in capacities for rows in range(1, size + 1)]
    assert total(pairs) <= 1.001 * min(total([roomy, *two]) for two in itertools.combinations(others, 2))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 4), st.sampled_from([1, 4]))
def test_bucket_edges_are_the_cheapest_there_are(lengths, count, multiple):
    lengths = np.array(lengths)
    edges = best_edges(lengths, count, multiple)

    def total(edges):
        return cost(1, np.array(edges)[np.searchsorted(edges, lengths)]).sum()

    rounded = sorted({-(-int(n) // multiple) * multiple for n in lengths})
    menus = [[*few, rounded[-1]] for k in range(count) for few in itertools.combinations(rounded[:-1], k)]
    assert edges == sorted(edges) and len(edges) <= count
    assert total(edges) == pytest.approx(min(map(total, menus)))
