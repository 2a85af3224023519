"""The Block: one layer of any family, as its Layer config says. Training, scanning and decoding all call this one.

    x --norm?-- attention --site--dropout--(+)--norm?-- [cross] -- mlp --site--dropout--(+)--norm?--> x

Sites, all no-ops unless the `tuning` collection holds callables under their path: every linear map
(`attention/query`, `mlp/up`, ...), every sublayer's output (`attention`, `cross`, `mlp`), and the keys and values of every
attention (`attention/prefix`, `cross/prefix`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from research.models.attention import attention, rotate
from research.models.config import Layer
from research.models.layers import ACTIVATIONS, Linear, Norm, dropout, dropout_words, site


@dataclass(frozen=True)
class Context:
    """What all layers of a stack share; kinds that differ find theirs by their own config."""

    masks: dict[Any, jax.Array]  # (causal, window) -> [B,1,T,S]
    tables: dict[Any, tuple[jax.Array, jax.Array]]  # rotary -> cosines and sines
    memory: jax.Array | None = None  # the encoder's hidden states [B,Ts,D]
    memory_mask: jax.Array | None = None  # [B,1,T,Ts]
    start: jax.Array | None = None  # [B]: the cache slot of the first token; None: no cache


class Attention(nn.Module):
    """Multi-head attention of `x [B,T,D]` over `source [B,S,D]`: the same states, or where `cross` the encoder's.

    `tables` are the rotary tables of the queries and of the keys.

    With a cache (`start` given), self-attention writes this call's keys and values into `cached` at `start`;
    cross-attention forms them once, when `cached` is None, and reads them afterwards. Returns `(y, {"key", "value"})`, the
    second None without a cache.
    """

    layer: Layer
    width: int
    scale: float
    cross: bool = False

    @nn.compact
    def __call__(self, x, source, mask, tables=None, cached=None, start=None):
        layer = self.layer

        def heads(name: str, inputs, number: int):
            axis = "heads" if number == layer.heads else "kv"
            y = Linear(number * layer.head_width, ("embed", axis), layer.attention_bias, self.scale, name=name)(inputs)
            return y.reshape(*y.shape[:2], number, layer.head_width).swapaxes(1, 2)

        q = heads("query", x, layer.heads)
        if self.cross and cached is not None:
            k, v = cached["key"], cached["value"]
        else:
            k, v = (heads(name, source, layer.kv_heads) for name in ("key", "value"))
        if tables is not None:
            q, k = rotate(q, tables[0]), rotate(k, tables[1])
        if start is not None and not self.cross:
            write = jax.vmap(lambda old, new, at: jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, at, 0)))
            k, v = write(cached["key"], k, start), write(cached["value"], v, start)
        kept = None if start is None else {"key": k, "value": v}
        k, v, mask = self._prefixed(k, v, mask)
        words = dropout_words(self) if layer.attention_dropout and self.has_rng("dropout") else None
        y = attention(q, k.astype(q.dtype), v.astype(q.dtype), mask, rate=layer.attention_dropout, words=words)
        y = y.swapaxes(1, 2).reshape(*x.shape[:2], layer.heads * layer.head_width)
        y = Linear(self.width, ("heads", "embed"), layer.attention_bias, self.scale, name="output")(y)
        return site(self, x, y), kept

    def _prefixed(self, k, v, mask):
        """Put each strategy's trained keys and values in front; every query sees them, whatever its segment."""
        if not self.has_variable("tuning", "prefix"):
            return k, v, mask
        for prefix in self.get_variable("tuning", "prefix"):
            new_k, new_v = prefix.keys_values(k.shape, k.dtype)
            k, v = jnp.concatenate([new_k, k], 2), jnp.concatenate([new_v, v], 2)
            mask = jnp.concatenate([jnp.ones((*mask.shape[:3], new_k.shape[2]), bool), mask], -1)
        return k, v, mask


class MLP(nn.Module):
    """`down(activation(up(x)))`, or `down(activation(gate(x)) * up(x))` where gated (Shazeer 2020)."""

    layer: Layer
    width: int
    scale: float

    @nn.compact
    def __call__(self, x):
        layer, act = self.layer, ACTIVATIONS[self.layer.activation]

        def widen(name: str):
            return Linear(layer.mlp_width, ("embed", "mlp"), layer.mlp_bias, self.scale, name=name)(x)

        hidden = act(widen("gate")) * widen("up") if layer.gated else act(widen("up"))
        hidden = dropout(self, hidden, layer.activation_dropout)
        return site(self, x, Linear(self.width, ("mlp", "embed"), layer.mlp_bias, self.scale, name="down")(hidden))


class Block(nn.Module):
    """One layer: `(x [B,T,D], context, cached) -> (x, cached)`; `cached` is `{"attention": ..., "cross": ...}` or None.

    Given `places [B,S]`, only these places of the layer's output are computed: `[B,S,D]`. They still see every place.
    """

    layer: Layer
    width: int
    scale: float

    @nn.compact
    def __call__(self, x, context: Context, cached: dict | None = None, places: jax.Array | None = None):
        layer, kept = self.layer, {}
        pick = (lambda a, axis: a) if places is None else partial(_pick, places)

        def sublayer(name: str, x, f):
            norm = Norm(layer.norm, layer.epsilon, name=f"{name}_norm")
            inputs = norm(x) if layer.norm_first else x
            y, x = dropout(self, f(inputs), layer.dropout), pick(x, 1) if name == "attention" else x
            return x + y if layer.norm_first else norm(x + y)

        def attend(name: str, inputs, source, mask, tables=None):
            module = Attention(layer, self.width, self.scale, name == "cross", name=name)
            part = None if cached is None else cached[name]
            y, kept[name] = module(inputs, source, mask, tables, part, context.start)
            return y

        mask, table = pick(context.masks[layer.causal, layer.window], 2), context.tables.get(layer.rotary)
        tables = None if table is None else (tuple(pick(a, 2) for a in table), table)
        x = sublayer("attention", x, lambda inputs: attend("attention", pick(inputs, 1), inputs, mask, tables))
        if layer.cross:
            mask = pick(context.memory_mask, 2)
            x = sublayer("cross", x, lambda inputs: attend("cross", inputs, context.memory, mask))
        x = sublayer("mlp", x, MLP(layer, self.width, self.scale, name="mlp"))
        return x, (None if context.start is None else kept)


def _pick(places: jax.Array, a: jax.Array, axis: int) -> jax.Array:
    """`a` at `places [B,S]` of its axis of tokens."""
    shape = [1] * a.ndim
    shape[0], shape[axis] = places.shape
    return jnp.take_along_axis(a, places.reshape(shape), axis)
