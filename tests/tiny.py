"""Tiny random models of every shape, and batches with padding for them: what property tests run on.

    model, variables = tiny("bart", layers=2)          batch = tiny_batch("bart", seed=0)

Every leaf is random, biases and norms too, so that a test cannot pass because something is nought or one.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.batches.batch import Batch
from research.models.config import Head, Layer, ModelConfig, Rotary, Run, Stack
from research.models.model import Model
from research.trees import flatten, unflatten

FAMILIES = ("bert", "llama", "bart")
VOCABULARY, CLASSES, POSITIONS = 40, 3, 24

_HEAD = {"heads": 4, "kv_heads": 4, "head_width": 6, "mlp_width": 40}
_LAYERS: dict[str, Layer] = {
    "bert": Layer(**_HEAD),
    "llama": Layer(
        **_HEAD | {"kv_heads": 2},
        causal=True,
        rotary=Rotary(),
        attention_bias=False,
        norm="rmsnorm",
        norm_first=True,
        epsilon=1e-5,
        activation="silu",
        gated=True,
        mlp_bias=False,
    ),
    "bart": Layer(**_HEAD, epsilon=1e-5),
}


def tiny_config(family: str, layers: int = 3, **overrides: Any) -> ModelConfig:
    """The config of a small model; `overrides` are fields of Layer (for all layers) or of ModelConfig."""
    fields = {**Layer.model_fields, **ModelConfig.model_fields}
    assert overrides.keys() <= fields.keys(), overrides
    kind = _LAYERS[family].model_copy(update={k: v for k, v in overrides.items() if k in Layer.model_fields})
    learned = {"positions": POSITIONS, "embedding_norm": True}
    shared = {"family": family, "width": 24, "vocabulary": VOCABULARY, "initializer_range": 0.2}
    if family == "bert":
        shared |= {
            "encoder": Stack(runs=(Run(kinds=(kind,), repeats=layers),), types=2, **learned),
            "pooler": True,
            "head": Head(form="classification", outputs=CLASSES),
        }
    elif family == "llama":
        shared |= {
            "decoder": Stack(runs=(Run(kinds=(kind,), repeats=layers),), final_norm=True),
            "head": Head(form="language"),
            "end_tokens": (2,),
        }
    else:
        decoder = kind.model_copy(update={"causal": True, "cross": True})
        learned |= {"position_offset": 2, "embedding_scale": 24**0.5}
        shared |= {
            "encoder": Stack(runs=(Run(kinds=(kind,), repeats=layers),), **learned),
            "decoder": Stack(runs=(Run(kinds=(decoder,), repeats=layers),), **learned),
            "head": Head(form="language", bias=True),
            "start_token": 1,
            "end_tokens": (2,),
        }
    return ModelConfig(**shared | {k: v for k, v in overrides.items() if k in ModelConfig.model_fields})


def tiny(family: str, layers: int = 3, seed: int = 0, **overrides: Any) -> tuple[Model, dict[str, Any]]:
    """A small model and random variables `{"params", "tuning": {}}` (jax arrays, float32)."""
    model, rng = Model(tiny_config(family, layers, **overrides)), np.random.default_rng(seed)

    def draw(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:  # far quicker than compiling `init`
        name = path.rsplit("/", 1)[-1]
        return jnp.asarray(rng.normal(name == "scale", 0.1 if name in ("scale", "bias") else 0.2, leaf.shape), jnp.float32)

    return model, {"params": unflatten({p: draw(p, leaf) for p, leaf in flatten(model.shapes()).items()}), "tuning": {}}


def tiny_batch(family: str, seed: int = 0, rows: int = 4, length: int = 8) -> Batch:
    """A batch with right, left and middle padding by turns (bert, and bart's source) and a source for bart.

    A decoder's tokens are padded right or left, as decoders' are. Targets: `{"label": [B]}` for bert, else none.
    """
    rng = np.random.default_rng(seed)

    def padded(kinds: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        mask = np.ones((rows, length), bool)
        for row in range(rows):
            gone = int(rng.integers(1, length // 2)) if row else 0  # row 0 is full
            start = (length - gone, 0, int(rng.integers(1, length - gone)))[row % kinds]
            mask[row, start : start + gone] = False
        return np.where(mask, rng.integers(3, VOCABULARY, mask.shape), 0).astype(np.int32), mask

    if family == "bert":
        tokens, mask = padded(3, length)
        batch = Batch.of(tokens, mask, (np.arange(length) >= length // 2)[None].repeat(rows, 0).astype(np.int32))
        return batch.replace(targets={"label": rng.integers(0, CLASSES, rows).astype(np.int32)})
    source = Batch.of(*padded(3, length + 3)) if family == "bart" else None
    tokens, mask = padded(2, length)
    return Batch.of(tokens, mask, source=source)
