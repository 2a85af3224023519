"""Batch.of: masks wherever the padding stands, ragged lists, and what it refuses."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from research.batches.batch import Batch
from research.errors import InputError


@pytest.mark.parametrize("mask", [[[1, 1, 1, 0]], [[0, 1, 1, 1]], [[1, 0, 0, 1]], [[0, 0, 0, 0]], [[7, 0, -1, 1]]])
def test_segments_are_the_mask_wherever_padding_stands(mask):
    tokens = np.array([[5, 6, 7, 8]])
    for given in (mask, np.array(mask), np.array(mask) != 0):
        batch = Batch.of(tokens, given)
        assert batch.segments.dtype == np.int32
        np.testing.assert_array_equal(batch.segments, np.array(mask) != 0)
        np.testing.assert_array_equal(batch.tokens, tokens)  # what stands at padding is left alone


def test_ragged_lists_are_padded_on_the_right():
    batch = Batch.of([[5, 6, 7], [8]], types=[[0, 0, 1], [1]])
    np.testing.assert_array_equal(batch.tokens, [[5, 6, 7], [8, 0, 0]])
    np.testing.assert_array_equal(batch.segments, [[1, 1, 1], [1, 0, 0]])
    np.testing.assert_array_equal(batch.types, [[0, 0, 1], [1, 0, 0]])
    assert batch.tokens.dtype == batch.types.dtype == np.int32
    assert (batch.packed, batch.slots, batch.positions, batch.targets) == (False, 1, None, None)


def test_an_array_without_mask_is_real_throughout_even_where_it_is_zero():
    np.testing.assert_array_equal(Batch.of(np.array([[0, 3], [4, 0]])).segments, np.ones((2, 2)))
    np.testing.assert_array_equal(Batch.of(jax.numpy.array([[0, 3]])).segments, [[1, 1]])


def test_is_a_pytree_that_keeps_its_structure_under_jit():
    batch = Batch.of([[1, 2]], source=Batch.of([[3, 4, 5]])).replace(ids=np.array([[9]]), extras={"x": np.ones(2)})
    out = jax.jit(lambda batch: batch.replace(tokens=batch.tokens + 1))(batch)
    np.testing.assert_array_equal(out.tokens, [[2, 3]])
    np.testing.assert_array_equal(out.source.tokens, [[3, 4, 5]])
    assert out.packed and out.slots == 1 and out.types is None
    assert jax.tree.structure(out) == jax.tree.structure(batch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": []}, "B and T above 0"),
        ({"tokens": [[], []]}, "B and T above 0"),
        ({"tokens": np.array([1, 2])}, r"must be \[B, T\]"),
        ({"tokens": np.array([[1.0]])}, "must be integers"),
        ({"tokens": [[1, 2]], "mask": [[1]]}, r"mask has shape \(1, 1\)"),
        ({"tokens": [[1, 2]], "mask": np.array([[1.0, 0.0]])}, "mask must be integers"),
        ({"tokens": [[1, 2]], "types": [[0, 0, 0]]}, r"types has shape \(1, 3\)"),
        ({"tokens": [[1]], "source": Batch.of([[1], [2]])}, "source has 2 rows"),
    ],
)
def test_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(InputError, match=message):
        Batch.of(**arguments)
