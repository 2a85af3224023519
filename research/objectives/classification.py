"""One class of several for a text or a pair of texts: softmax cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from research.batches.batch import Batch
from research.errors import InputError
from research.models.config import Head
from research.models.model import Output
from research.objectives.objective import Objective
from research.text.splits import Example


class Classification(Objective):
    """Cross-entropy with label smoothing (Szegedy et al. 2016) and class weights, combined as PyTorch does.

    `loss = sum_i w[y_i] (1-e) nll_i + e/C sum_c w[c] (-log p_ic)` over `sum_i w[y_i]`.
    """

    kind: Literal["classification"] = "classification"
    label_smoothing: float = pydantic.Field(default=0.0, ge=0, lt=1)
    class_weights: tuple[float, ...] | None = None  # one for each class, in the order of the labels
    dropout: float = pydantic.Field(default=0.1, ge=0, lt=1)  # before the output map
    metrics: tuple[str, ...] = ("accuracy", "macro_f1")

    def head(self, labels: Sequence[str]) -> Head:
        if len(labels) < 2:
            raise InputError(f"classification needs at least two classes, the training data have {len(labels)}.")
        if self.class_weights is not None and len(self.class_weights) != len(labels):
            raise InputError(f"objective.class_weights has {len(self.class_weights)} values for {len(labels)} classes.")
        return Head(form="classification", outputs=len(labels), dropout=self.dropout)

    def targets(self, example: Example, labels: Mapping[str, int]) -> dict[str, Any]:
        return {"label": np.int32(labels[example.label])}

    def loss(self, output: Output, batch: Batch) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        logits, label, present = output.logits.astype(jnp.float32), batch.targets["label"], batch.weights
        weights = jnp.ones(logits.shape[-1]) if self.class_weights is None else jnp.asarray(self.class_weights)
        surprise = -jax.nn.log_softmax(logits)
        own = weights[label] * jnp.take_along_axis(surprise, label[..., None], -1)[..., 0]
        spread = jnp.sum(weights * surprise, -1) / logits.shape[-1]
        per_example = (1 - self.label_smoothing) * own + self.label_smoothing * spread
        correct = jnp.sum((jnp.argmax(logits, -1) == label) * present)
        return jnp.sum(per_example * present), jnp.sum(weights[label] * present), {"accuracy": correct}

    def predict(self, output: Output, batch: Batch) -> dict[str, jax.Array]:
        logits = output.logits.astype(jnp.float32)
        return {"prediction": jnp.argmax(logits, -1), "probabilities": jax.nn.softmax(logits)}
