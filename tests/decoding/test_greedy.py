"""Greedy decoding against the argmax of the whole forward pass at every step, one row at a time and in padded batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.batches.batch import Batch
from research.decoding.greedy import greedy
from research.errors import InputError
from tests.tiny import tiny, tiny_batch

STEPS, LENGTH = 8, 14


def naive(model, variables, prompts: Batch) -> np.ndarray:
    """No cache, padding only behind, one row at a time: everything is read again for each token. `[B, STEPS]`"""
    apply = jax.jit(lambda tokens, mask, source: model.apply(variables, Batch(tokens, mask, source=source)).logits)
    said = []
    for row, real in enumerate(prompts.segments > 0):
        tokens, source = prompts.tokens[row][real].tolist(), prompts.source and _alone(prompts.source, row)
        for _ in range(STEPS):
            padded = np.zeros((1, LENGTH), np.int32)
            padded[0, : len(tokens)] = tokens
            logits = apply(padded, (np.arange(LENGTH) < len(tokens)).astype(np.int32)[None], source)
            tokens.append(int(jnp.argmax(logits[0, len(tokens) - 1])))
        said.append(tokens[-STEPS:])
    return np.array(said)


def _alone(source: Batch, row: int) -> Batch:
    real = source.segments[row] > 0
    tokens = np.zeros((1, len(real)), np.int32)
    tokens[0, : real.sum()] = source.tokens[row][real]
    return Batch.of(tokens, np.arange(len(real))[None] < real.sum())


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_greedy(family):
    """Prompts of unequal length, padded on either side (sources too), decode as each does alone without a cache."""
    model, variables = tiny(family, layers=2, seed=1)
    expected = naive(model, variables, _prompts(family, "right"))
    end = expected[0, 3]  # a token that some row says, so that stopping is part of the test
    for row in expected:
        row[np.cumsum(row == end) - (row == end) > 0] = 0
    assert (expected[0, 4:] == 0).all()
    model = type(model)(model.config.model_copy(update={"end_tokens": (int(end),)}))
    for side in ("left", "right"):
        assert np.array_equal(greedy(model, variables, _prompts(family, side), STEPS), expected), side


def _prompts(family: str, side: str) -> Batch:
    """Four prompts of 5, 2, 4 and 3 tokens and, for bart, padded sources."""
    rng, tokens, mask = np.random.default_rng(2), np.zeros((4, 5), np.int32), np.zeros((4, 5), np.int32)
    for row, length in enumerate((5, 2, 4, 3)):
        place = slice(5 - length, 5) if side == "left" else slice(0, length)
        tokens[row, place], mask[row, place] = rng.integers(3, 40, length), 1
    return Batch.of(tokens, mask, source=tiny_batch("bart").source if family == "bart" else None)


def test_start_token_and_refusals():
    model, variables = tiny("bart", layers=2)
    source = tiny_batch("bart").source
    begun = Batch.of(np.full((4, 1), model.config.start_token), source=source)
    assert np.array_equal(greedy(model, variables, source, 4), greedy(model, variables, begun, 4))
    with pytest.raises(InputError, match="25 tokens to read, but the model has learned 24 positions"):
        greedy(model, variables, source, 25)
    with pytest.raises(InputError, match="cannot generate"):
        greedy(*tiny("bert", layers=1), tiny_batch("bert"), 2)
