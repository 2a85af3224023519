"""What a decoder remembers between calls: explicit in, explicit out, heads-major.

call 1 (prompt)   slots 0..P-1 written, lengths = P        call 2 (one token)   slot P written, lengths = P+1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Int

from research.models.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of a decoder's layers, `[repeats, B, K, S, d]`, stacked like the parameters (batch axis 1).

    `layers[run][kind]` is `{"attention": {"key", "value"}, "cross": {"key", "value"} | None}`; cross-attention's are formed by
    the first call, which has the source, and read by later ones, which need not.
    """

    layers: tuple[dict[str, Any], ...]
    segments: Int[jax.Array, "B S"]  # 0: nothing to see in this slot
    lengths: Int[jax.Array, " B"]  # slots used
    source_segments: Int[jax.Array, "B Ts"] | None = None

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, slots: int, dtype: Any = jnp.float32) -> Self:
        """A cache for `batch` rows of at most `slots` tokens, padding included."""

        def kind(layer, repeats: int) -> dict[str, Any]:
            zeros = jnp.zeros((repeats, batch, layer.kv_heads, slots, layer.head_width), dtype)
            return {"attention": {"key": zeros, "value": zeros}} | ({"cross": None} if layer.cross else {})

        runs = config.decoder.runs
        layers = tuple({str(i): kind(layer, run.repeats) for i, layer in enumerate(run.kinds)} for run in runs)
        return cls(layers, jnp.zeros((batch, slots), jnp.int32), jnp.zeros(batch, jnp.int32))

    def written(self, segments: Int[jax.Array, "B T"]) -> Int[jax.Array, "B S"]:
        """`segments` of the slots once a call's tokens are written after what is there."""
        write = jax.vmap(lambda old, new, at: jax.lax.dynamic_update_slice(old, new, (at,)))
        return write(self.segments, jnp.asarray(segments, jnp.int32), self.lengths)

    def advanced(self, layers: tuple, segments: Int[jax.Array, "B T"], source_segments: jax.Array | None) -> Self:
        """The cache after a call that left `layers` and read tokens of these `segments`."""
        return type(self)(layers, self.written(segments), self.lengths + segments.shape[1], source_segments)
