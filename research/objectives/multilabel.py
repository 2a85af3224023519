"""Any number of classes for a text or a pair: an independent yes or no for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic

from research.batches.batch import Batch
from research.models.config import Head
from research.models.model import Output
from research.objectives.objective import Objective
from research.text.splits import Example


class MultiLabel(Objective):
    """Mean binary cross-entropy over examples and classes; a class is predicted above `threshold`."""

    target: ClassVar[Literal["class", "classes", "number"]] = "classes"
    kind: Literal["multilabel"] = "multilabel"
    threshold: float = pydantic.Field(default=0.5, gt=0, lt=1)
    dropout: float = pydantic.Field(default=0.1, ge=0, lt=1)
    metrics: tuple[str, ...] = ("micro_f1", "macro_f1")

    def head(self, labels: Sequence[str]) -> Head:
        return Head(form="classification", outputs=len(labels), dropout=self.dropout)

    def targets(self, example: Example, labels: Mapping[str, int]) -> dict[str, Any]:
        chosen = np.zeros(len(labels), np.float32)
        chosen[[labels[name] for name in example.label]] = 1
        return {"label": chosen}

    def loss(self, output: Output, batch: Batch) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        logits, label = output.logits.astype(jnp.float32), batch.targets["label"]
        entropy = optax.losses.sigmoid_binary_cross_entropy(logits, label) * batch.weights[..., None]
        return jnp.sum(entropy), jnp.sum(batch.weights) * logits.shape[-1], {}

    def predict(self, output: Output, batch: Batch) -> dict[str, jax.Array]:
        probabilities = jax.nn.sigmoid(output.logits.astype(jnp.float32))
        return {"prediction": (probabilities > self.threshold).astype(jnp.int32), "probabilities": probabilities}
