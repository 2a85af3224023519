"""What distinguishes one Transformer from another, as orthogonal fields of frozen configs.

    ModelConfig
      encoder, decoder: Stack = embeddings + runs + final norm
                                               Run = a period of Layer kinds, repeated
      head: what reads the last hidden states

BERT is `Run((layer,), 12)`; ModernBERT would be `Run((first,), 1), Run((local, local, full), 7)`.
"""

from __future__ import annotations

from typing import Literal

import pydantic

from research.config import Config

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]


class Rotary(Config):
    """Rotary position embedding (Su et al. 2021), pairs taken half a head apart."""

    base: float = 10000.0


class Layer(Config):
    """One kind of layer: self-attention, optionally cross-attention, and a feed-forward part."""

    heads: int = pydantic.Field(gt=0)
    kv_heads: int = pydantic.Field(gt=0)
    head_width: int = pydantic.Field(gt=0)
    causal: bool = False
    window: int | None = None  # attend at most this many places back (and, unless causal, forward)
    rotary: Rotary | None = None
    cross: bool = False  # attend to the encoder's hidden states as well
    attention_bias: bool = True
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_first: bool = False  # normalise what enters a sublayer (pre-norm) or what leaves the residual sum (post-norm)
    epsilon: float = 1e-12
    mlp_width: int = pydantic.Field(gt=0)
    activation: Activation = "gelu"
    gated: bool = False  # activation(gate(x)) * up(x) instead of activation(up(x))
    mlp_bias: bool = True
    dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)  # of each sublayer's output
    attention_dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)
    activation_dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)

    @pydantic.model_validator(mode="after")
    def _groups(self) -> Layer:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self


class Run(Config):
    """A period of layer kinds, repeated. Parameters are stacked over the repeats, per kind."""

    kinds: tuple[Layer, ...]
    repeats: int = pydantic.Field(gt=0)

    @property
    def layers(self) -> int:
        """The number of layers in the run."""
        return len(self.kinds) * self.repeats


class Stack(Config):
    """Embeddings, runs of layers, and perhaps a final norm."""

    runs: tuple[Run, ...]
    positions: int = 0  # learned absolute positions, 0 for none
    position_offset: int = 0  # rows skipped at the start of the position table (2 in BART)
    types: int = 0  # token types, 0 for none
    embedding_norm: bool = False
    embedding_scale: float = 1.0
    embedding_dropout: float = 0.0
    final_norm: bool = False

    @property
    def layers(self) -> int:
        """The number of layers in the stack."""
        return sum(run.layers for run in self.runs)


class Head(Config):
    """What reads the last hidden states: `form` names a class in models/heads.py."""

    form: Literal["classification", "language"]
    outputs: int = 0  # classes or regression values; ignored (0) by a language head, which has the vocabulary
    dropout: float = 0.0
    tied: bool = True  # language: share the token embedding
    bias: bool = False  # language: a bias over the vocabulary


class ModelConfig(Config):
    """A whole model. Exactly the fields that its family's file derives from `config.json`."""

    family: str
    width: int
    vocabulary: int
    encoder: Stack | None = None
    decoder: Stack | None = None
    pooler: bool = False  # dense + tanh over the first token (BERT)
    head: Head | None = None
    initializer_range: float = 0.02
    start_token: int | None = None  # what an encoder-decoder's decoder begins with
    end_tokens: tuple[int, ...] = ()

    @property
    def stacks(self) -> dict[str, Stack]:
        """The stacks there are, by name, in the order that data flows."""
        return {name: stack for name in ("encoder", "decoder") if (stack := getattr(self, name)) is not None}
