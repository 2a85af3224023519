"""Decoding piece by piece with a cache gives what one look at the whole gives, at every position, wherever padding lies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.batches.batch import Batch
from research.models.cache import Cache
from tests.tiny import tiny, tiny_batch

PADDINGS = {"none": (), "left": (0, 1, 2), "right": (7, 8), "both": (0, 8), "middle": (3, 4)}


def rows(family: str) -> Batch:
    """One row for each kind of padding, positions counting real tokens; a padded source where there is one."""
    mask = np.ones((len(PADDINGS), 9), bool)
    for row, gone in zip(mask, PADDINGS.values(), strict=True):
        row[list(gone)] = False
    tokens = np.random.default_rng(0).integers(3, 40, mask.shape)
    source = tiny_batch("bart", rows=len(PADDINGS)).source if family == "bart" else None
    return Batch.of(tokens, mask, source=source).replace(positions=np.maximum(mask.cumsum(1) - 1, 0))


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_cached_equals_whole(family):
    model, variables = tiny(family, layers=2)
    batch = rows(family)
    look = jax.jit(model.apply)
    whole, real = look(variables, batch), batch.segments > 0
    front = np.argsort(~real, 1, kind="stable")  # the same tokens with all padding behind: where it lies makes no difference
    moved = batch.replace(**{name: np.take_along_axis(getattr(batch, name), front, 1) for name in ("tokens", "segments")})
    plain = look(variables, moved.replace(positions=np.tile(np.arange(9), (len(real), 1)))).logits
    assert jnp.abs(plain - jnp.take_along_axis(whole.logits, front[..., None], 1))[moved.segments > 0].max() < 2e-5

    apply = jax.jit(lambda batch, cache: model.apply(variables, batch, cache=cache))
    for cuts in ([4, 5], [1] * 9):
        cache, hidden, logits, at = Cache.empty(model.config, len(real), 12), [], [], 0
        for width in cuts:
            part = slice(at, at + width)
            piece = Batch(
                batch.tokens[:, part],
                batch.segments[:, part],
                positions=batch.positions[:, part],
                source=batch.source if at == 0 else None,
            )  # only the first call needs the source
            output = apply(piece, cache)
            cache, at = output.cache, at + width
            hidden.append(output.hidden)
            logits.append(output.logits)
        for ours, theirs in ((hidden, whole.hidden), (logits, whole.logits)):
            error = jnp.abs(jnp.concatenate(ours, 1) - theirs)[real].max()
            assert error < 2e-5, f"{family} in pieces of {cuts}: {error}"
        assert np.array_equal(cache.lengths, [9] * len(real))
