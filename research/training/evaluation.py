"""Predictions for a whole split, each beside its example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from research.batches.loader import Loader
from research.objectives.objective import Objective
from research.sharding.mesh import shard_rows


@dataclass(frozen=True)
class Predictions:
    """What a model says of N examples, in their order: arrays `[N, ...]` by name, and the loss (nan without labels)."""

    values: dict[str, np.ndarray]
    loss: float


def predict(step: Callable[..., Any], trainable: Any, frozen: Any, strategy: Any, loader: Loader, mesh: Mesh) -> Predictions:
    """Run a compiled `predict_step` over one pass of a loader; `Batch.ids` says whose prediction is whose."""
    pending = []
    for batch in loader:
        pending.append((batch.ids, *step(trainable, frozen, strategy, shard_rows(batch, mesh))))
    values: dict[str, np.ndarray] = {}
    total = denominator = 0.0
    for ids, predicted, sums in jax.device_get(pending):
        present = ids >= 0
        for name, array in predicted.items():
            whole = values.setdefault(name, np.zeros((len(loader.lengths), *array.shape[2:]), array.dtype))
            whole[ids[present]] = array[present]
        total, denominator = total + sums.get("sum", 0.0), denominator + sums.get("denominator", 0.0)
    return Predictions(values, float(total / denominator) if denominator else float("nan"))


def references(prepared: Sequence[dict[str, Any]]) -> np.ndarray:
    """The labels `[N, ...]` of prepared examples."""
    return np.asarray([example["targets"]["label"] for example in prepared])


def scored(objective: Objective, truth: np.ndarray, found: Predictions, labels: Sequence[str]) -> dict[str, float]:
    """The objective's metrics and the loss."""
    return objective.score(truth, found.values, labels) | {"loss": found.loss}
