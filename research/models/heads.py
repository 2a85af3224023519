"""What reads the last hidden states. A head is a Linen module chosen by `config.head.form`.

hidden [B,T,D] --pool: first token of each example--> [B,S,D] --dropout, dense--> logits [B,S,outputs]
hidden [B,T,D] --language--> logits [B,T,vocabulary]
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from research.models.config import ModelConfig
from research.models.layers import Linear, declare, dropout


def first_tokens(segments: Int[jax.Array, "B T"], slots: int) -> Int[jax.Array, "B S"]:
    """Where each example of a row begins; 0 for an example that is not there."""
    numbers = jnp.arange(1, slots + 1)
    return jnp.argmax(segments[:, None, :] == numbers[None, :, None], axis=-1)


def gather(hidden: Float[jax.Array, "B T D"], places: Int[jax.Array, "B S"]) -> Float[jax.Array, "B S D"]:
    """The hidden states at given places of each row."""
    return jnp.take_along_axis(hidden, places[..., None], axis=1)


class Pooler(nn.Module):
    """Dense and tanh over the first token of each example (Devlin et al. 2019)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, first: jax.Array) -> jax.Array:
        dense = Linear(self.config.width, ("embed", "pooled"), scale=self.config.initializer_range, name="dense")
        return jnp.tanh(dense(first))


class Classification(nn.Module):
    """Dropout and a linear map of the pooled states. Also serves regression, where `outputs` are values."""

    config: ModelConfig

    @nn.compact
    def __call__(self, pooled: jax.Array, table: jax.Array) -> jax.Array:
        head = self.config.head
        output = Linear(head.outputs, ("embed", "classes"), scale=self.config.initializer_range, name="output")
        return output(dropout(self, pooled, head.dropout))


class Language(nn.Module):
    """Logits over the vocabulary, by the token embedding itself where `tied` (Press & Wolf 2017)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, hidden: jax.Array, table: jax.Array) -> jax.Array:
        head, config = self.config.head, self.config
        if head.tied:
            logits = jnp.einsum("...d,vd->...v", hidden, table.astype(hidden.dtype))
        else:
            logits = Linear(config.vocabulary, ("embed", "vocabulary"), False, config.initializer_range, name="output")(hidden)
        if head.bias:
            bias = declare(self, "bias", nn.initializers.zeros_init(), (config.vocabulary,), ("vocabulary",))
            logits = logits + bias.astype(logits.dtype)
        return logits


HEADS: dict[str, type[nn.Module]] = {"classification": Classification, "language": Language}
