"""Greedy decoding: the most likely token, again and again, until every row has ended. One compiled program.

prompt [B,P] --prefill--> cache, logits of each row's last token --argmax--> token --step--> logits --argmax--> ...
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from research.batches.batch import Batch
from research.errors import InputError
from research.models.cache import Cache
from research.models.model import Model


def greedy(model: Model, variables: Mapping[str, Any], batch: Batch, steps: int, pad: int = 0) -> Int[jax.Array, "B steps"]:
    """The continuation of each prompt by `steps` tokens, those after an end token replaced by `pad`.

    Padding may lie on any side: positions count real tokens, so a row decodes as it would alone.

    Args:
        batch: prompts; for an encoder-decoder without `batch.source` the source texts, each answered from the start token.

    Raises:
        InputError: a model without a language head, or more tokens than it has learned positions for.
    """
    config = model.config
    if config.decoder is None or config.head is None or config.head.form != "language":
        raise InputError(f"a {config.family} model without a decoder and a language head cannot generate.")
    if config.encoder is not None and batch.source is None:
        batch = Batch.of(np.full((len(batch.tokens), 1), config.start_token), source=batch)
    longest = int(np.asarray(batch.segments > 0).sum(1).max()) + steps - 1
    if config.decoder.positions and longest > config.decoder.positions:
        raise InputError(f"{longest} tokens to read, but the model has learned {config.decoder.positions} positions.")
    return _greedy(model, variables, batch, steps, pad)


@partial(jax.jit, static_argnames=("model", "steps"))
def _greedy(model: Model, variables, batch: Batch, steps: int, pad: int):
    rows, prompt = batch.tokens.shape
    source = batch.source and batch.source.replace(positions=_positions(batch.source.segments))
    batch = batch.replace(positions=_positions(batch.segments), source=source)
    ends = jnp.array(model.config.end_tokens, jnp.int32)
    output = model.apply(variables, batch, cache=Cache.empty(model.config, rows, prompt + steps, model.policy.dtype))
    last, start = prompt - 1 - jnp.argmax(batch.segments[:, ::-1] > 0, -1), batch.positions.max(1) + 1
    first = jnp.argmax(output.logits[jnp.arange(rows), last], -1)

    def unfinished(state):
        _, number, done, _ = state
        return (number < steps) & ~done.all()

    def step(state):
        tokens, number, done, cache = state
        position = start + number - 1
        said = Batch(tokens[:, number - 1, None], jnp.ones((rows, 1), jnp.int32), positions=position[:, None])
        output = model.apply(variables, said, cache=cache)
        token = jnp.where(done, pad, jnp.argmax(output.logits[:, 0], -1))
        return tokens.at[:, number].set(token), number + 1, done | jnp.isin(token, ends), output.cache

    tokens = jnp.full((rows, steps), pad, jnp.int32).at[:, 0].set(first)
    return jax.lax.while_loop(unfinished, step, (tokens, 1, jnp.isin(first, ends), output.cache))[0]


def _positions(segments: jax.Array) -> jax.Array:
    """Each real token's number among the real ones of its row; padding counts as its neighbour."""
    return jnp.maximum(jnp.cumsum(segments > 0, -1) - 1, 0)
