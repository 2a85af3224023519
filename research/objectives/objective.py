"""What an objective is: how an example becomes arrays, the loss, the predictions, and how these are scored.

Example --prepare--> arrays --Loader--> Batch --Model--> Output --loss--> (sum, denominator)
                                                          `----predict--> one row for each example --score--> numbers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from research import metrics
from research.batches.batch import Batch
from research.config import Config, variant
from research.errors import InputError, nearest
from research.models.config import Head
from research.models.model import Output
from research.text.splits import Example
from research.text.tokenizer import Tokenizer

Prepared = list[dict[str, Any]]


class Objective(Config):
    """Base of all objectives; a subclass is frozen configuration plus the functions below."""

    kind: str
    metrics: tuple[str, ...] = ()  # what `score` reports, the first named first in tables
    per_token: ClassVar[frozenset[str]] = frozenset()  # names of targets with a value for each token
    target: ClassVar[Literal["class", "classes", "number"]] = "class"  # what a label of the data must be

    def head(self, labels: Sequence[str]) -> Head:
        """The head that the objective needs, for data with these classes."""
        raise TypeError(f"{type(self).__name__} does not say which head it needs")

    def targets(self, example: Example, labels: Mapping[str, int]) -> dict[str, Any]:
        """The arrays of one example's label."""
        raise TypeError(f"{type(self).__name__} does not say what its targets are")

    def prepare(
        self,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        labels: Sequence[str],
        *,
        max_length: int,
        overflow: Literal["truncate", "refuse"] = "truncate",
    ) -> tuple[Prepared, int]:
        """Examples as arrays `{"tokens", "types", "targets"}`, and how many texts were truncated to `max_length`.

        Raises:
            InputError: a text is too long and `overflow` is "refuse".
        """
        pairs = [example.pair for example in examples] if any(example.pair for example in examples) else None
        made = tokenizer.encode_batch([example.text for example in examples], pairs, max_length, overflow)
        numbers = {label: number for number, label in enumerate(labels)}
        prepared = [
            {"tokens": ids, "types": types} | ({} if example.label is None else {"targets": self.targets(example, numbers)})
            for example, ids, types in zip(examples, made.ids, made.types, strict=True)
        ]
        return prepared, made.truncated

    def loss(self, output: Output, batch: Batch) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """`(sum, denominator, aux)`: the loss is sum / denominator, both summed over devices and accumulated batches.

        `aux` holds further sums, each to be divided by the batch's total of `weights`.
        """
        raise TypeError(f"{type(self).__name__} has no loss")

    def predict(self, output: Output, batch: Batch) -> dict[str, jax.Array]:
        """For each place of an example `[B,S,...]`: `prediction`, and `probabilities` where there are such."""
        raise TypeError(f"{type(self).__name__} has no predictions")

    def score(self, references: np.ndarray, predicted: Mapping[str, np.ndarray], labels: Sequence[str]) -> dict[str, float]:
        """The metrics of N predictions against N references."""
        classes = None if not labels else np.arange(len(labels))
        return metrics.compute(self.metrics, references, predicted["prediction"], predicted.get("probabilities"), classes)

    def check(self, target: str, labels: Sequence[str]) -> None:
        """Refuse data whose labels are of another sort, and metrics that do not exist.

        Raises:
            InputError: naming what does not fit.
        """
        if target != self.target:
            raise InputError(f"objective {self.kind!r} needs data.target {self.target!r}, got {target!r}.")
        for name in self.metrics:
            if name not in metrics.known():
                raise InputError(f"objective.metrics: unknown metric {name!r}.{nearest(name, metrics.known())}")


def objective(value: Any) -> Objective:
    """An Objective from itself, its kind, or a mapping with a kind.

    Raises:
        InputError: an unknown kind (naming the nearest).
    """
    if isinstance(value, Objective):
        return value
    value = {"kind": value} if isinstance(value, str) else value
    if not isinstance(value, Mapping) or not isinstance(value.get("kind"), str):
        raise InputError(f"an objective needs a kind, got {value!r}.")
    return variant("research.objectives", Objective, value["kind"]).model_validate(value)
