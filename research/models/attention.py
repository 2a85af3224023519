"""Attention: which places see which, and the weighted mean of values. Nothing here knows of strategies or families.

    q [B,H,T,d]  k,v [B,H,S,d]  mask [B,1,T,S]  ->  [B,H,T,d]

The core has its own backward pass. Written out it keeps only q, k, v, the probabilities and the output; the dropout
mask is formed again from its two random words. On the CPU the forward and backward of this function are the largest
cost after the matrix products, and the heads-major layout makes each head's product one contiguous matrix.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from research.models.config import Rotary
from research.models.layers import keep_mask

MASKED = -1e30  # finite, so that a row with nothing to see gives a mean instead of NaN


def visible(
    query_segments: Int[jax.Array, "B T"],
    key_segments: Int[jax.Array, "B S"],
    *,
    query_slots: Int[jax.Array, "B T"] | None = None,
    causal: bool = False,
    window: int | None = None,
) -> Bool[jax.Array, "B 1 T S"]:
    """Which keys each query sees: those of its own segment, not padding, and as `causal` and `window` allow.

    Args:
        query_slots: the queries' places among the keys (0..S-1); None: query t is key t.
    """
    seen = (query_segments[:, :, None] == key_segments[:, None, :]) & (key_segments[:, None, :] > 0)
    if causal or window is not None:
        slots = jnp.arange(query_segments.shape[1])[None] if query_slots is None else query_slots
        distance = slots[:, :, None] - jnp.arange(key_segments.shape[1])[None, None, :]
        if causal:
            seen &= distance >= 0
        if window is not None:
            seen &= jnp.abs(distance) < window
    return seen[:, None]


def attention(
    q: Float[jax.Array, "B H T d"],
    k: Float[jax.Array, "B K S d"],
    v: Float[jax.Array, "B K S d"],
    mask: Bool[jax.Array, "B 1 T S"],
    *,
    rate: float = 0.0,
    words: jax.Array | None = None,
) -> Float[jax.Array, "B H T d"]:
    """`softmax(q k^T / sqrt(d)) v` (Vaswani et al. 2017), softmax in float32, dropout on the probabilities.

    With K < H key heads, each serves H/K query heads in order (Ainslie et al. 2023).

    Args:
        rate: dropout rate, which applies only where `words` (uint32 [2]) gives the randomness.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = jnp.repeat(k, groups, 1), jnp.repeat(v, groups, 1)
    if words is None or rate == 0.0:
        return _core(q, k, v, mask, None, 0.0)
    return _core(q, k, v, mask, words, rate)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _core(q, k, v, mask, words, rate):
    return _forward(q, k, v, mask, words, rate)[0]


def _forward(q, k, v, mask, words, rate):
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k).astype(jnp.float32) * (q.shape[-1] ** -0.5)
    probabilities = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1).astype(q.dtype)
    out = jnp.einsum("bhts,bhsd->bhtd", _dropped(probabilities, words, rate), v)
    return out, (q, k, v, mask, probabilities, out, words)


def _dropped(probabilities, words, rate):
    return probabilities if words is None else probabilities * keep_mask(words, probabilities.shape, rate, probabilities.dtype)


def _backward(rate, saved, g):
    q, k, v, mask, probabilities, out, words = saved
    dv = jnp.einsum("bhts,bhtd->bhsd", _dropped(probabilities, words, rate), g)
    dp = _dropped(jnp.einsum("bhtd,bhsd->bhts", g, v), words, rate)
    # The row sums of dp * p equal those of g * out, dropout or not, and are cheaper over d than over S.
    centre = jnp.sum(g * out, -1, keepdims=True)
    # Where a query sees nothing its probabilities are a mean over constants, which has no gradient.
    ds = jnp.where(mask, probabilities * (dp - centre) * (q.shape[-1] ** -0.5), 0)
    return jnp.einsum("bhts,bhsd->bhtd", ds, k), jnp.einsum("bhts,bhtd->bhsd", ds, q), dv, None, None


_core.defvjp(_forward, _backward)


def rotary_table(positions: Int[jax.Array, "B T"], rotary: Rotary, width: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines `[B, 1, T, width/2]` of `position * base^(-2i/width)`."""
    frequency = rotary.base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = positions[:, None, :, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[jax.Array, "B H T d"], table: tuple[jax.Array, jax.Array]) -> Float[jax.Array, "B H T d"]:
    """Turn each pair (x_i, x_{i+d/2}) by its angle (Su et al. 2021, in the half-split convention)."""
    cos, sin = table
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)
