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


def naive(model, variables, prompt: list[int], source: Batch | None, steps: int) -> list[int]:
    """No cache, no padding before the end: read everything again for each token."""
    apply = jax.jit(lambda tokens, mask: model.apply(variables, Batch(tokens, mask, source=source)).logits)
    tokens, said = list(prompt), []
    while len(said) < steps and not (said and said[-1] in model.config.end_tokens):
        row = np.zeros((1, LENGTH), np.int32)
        row[0, : len(tokens)] = tokens
        logits = apply(row, (np.arange(LENGTH) < len(tokens)).astype(np.int32)[None])
        said.append(int(jnp.argmax(logits[0, len(tokens) - 1])))
        tokens.append(said[-1])
    return said + [0] * (steps - len(said))


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_greedy(family):
    """Prompts of unequal length, padded on either side (sources too), decode as each does alone without a cache."""
    model, variables = tiny(family, layers=2, seed=1)
    free = np.asarray(greedy(model, variables, _prompts(family, "left"), STEPS))
    ends = (int(free[0, 3]),)  # a token that some rows say, so that stopping is part of the test
    model = type(model)(model.config.model_copy(update={"end_tokens": ends}))
    left, right = (_prompts(family, side) for side in ("left", "right"))
    expected = []
    for row in range(4):
        source = right.source and Batch.of([right.source.tokens[row][right.source.segments[row] > 0].tolist()])
        prompt = right.tokens[row][right.segments[row] > 0].tolist()
        expected.append(naive(model, variables, prompt, source, STEPS))
    assert np.array_equal(greedy(model, variables, left, STEPS), expected)
    assert np.array_equal(greedy(model, variables, right, STEPS), expected)
    assert 0 in expected[0] and expected[0].index(ends[0]) <= 3 and all(t == 0 for t in expected[0][4:])


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
