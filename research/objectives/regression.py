"""A number for a text or a pair: squared error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from research.batches.batch import Batch
from research.models.config import Head
from research.models.model import Output
from research.objectives.objective import Objective
from research.text.splits import Example


class Regression(Objective):
    """Mean squared error between the head's one output and the label."""

    target: ClassVar[Literal["class", "classes", "number"]] = "number"
    kind: Literal["regression"] = "regression"
    dropout: float = pydantic.Field(default=0.1, ge=0, lt=1)
    metrics: tuple[str, ...] = ("pearson", "spearman", "mean_squared_error")

    def head(self, labels: Sequence[str]) -> Head:
        return Head(form="classification", outputs=1, dropout=self.dropout)

    def targets(self, example: Example, labels: Mapping[str, int]) -> dict[str, Any]:
        return {"label": np.float32(example.label)}

    def loss(self, output: Output, batch: Batch) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        error = jnp.square(output.logits[..., 0].astype(jnp.float32) - batch.targets["label"])
        return jnp.sum(error * batch.weights), jnp.sum(batch.weights), {}

    def predict(self, output: Output, batch: Batch) -> dict[str, jax.Array]:
        return {"prediction": output.logits[..., 0].astype(jnp.float32)}
