"""A run: one model on one task under one tuning strategy, as a resolved config whose hash is its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pydantic

from research.batches.plan import Batching, batching
from research.config import Config, fingerprint
from research.errors import InputError
from research.models.model import Policy
from research.objectives.objective import Objective, objective
from research.text.data import Data
from research.training.loop import Training
from research.training.optimizer import Optimizer
from research.training.tracking import Tracking
from research.tuning.strategy import Strategy, strategy


class Source(Config):
    """Where the base model comes from."""

    reference: str  # a folder, `hf:org/name` or `pypi:package==version/path`
    sha256: str | None = None


class Task(Config):
    """What is to be learned: data, objective, and how long a text may be."""

    data: Data
    objective: pydantic.SerializeAsAny[Objective]
    max_length: int = pydantic.Field(default=128, gt=0)  # tokens, special ones included
    overflow: Literal["truncate", "refuse"] = "truncate"
    metric: str = "accuracy"  # what early stopping, selection and significance look at

    @pydantic.field_validator("objective", mode="before")
    @classmethod
    def _objective(cls, value: Any) -> Objective:
        return objective(value)


class Run(Config):
    """Everything that a fine-tuning run depends on."""

    model: Source
    task: Task
    tuning: pydantic.SerializeAsAny[Strategy]
    batches: pydantic.SerializeAsAny[Batching]
    optimizer: Optimizer
    training: Training = Training()
    policy: Policy = Policy()
    tracking: Tracking = Tracking()
    select: dict[str, tuple[Any, ...]] = {}  # dotted key -> values to try on dev, such as optimizer.learning_rate
    select_seed: int = 0  # of the trials of `select`, so that runs that differ in seed share them
    seed: int = 0

    @pydantic.field_validator("tuning", mode="before")
    @classmethod
    def _tuning(cls, value: Any) -> Strategy:
        return strategy(value)

    @pydantic.field_validator("batches", mode="before")
    @classmethod
    def _batches(cls, value: Any) -> Batching:
        return value if isinstance(value, Batching) else batching(value)

    @property
    def id(self) -> str:
        """The hash of everything that the result depends on (not of who is told about it)."""
        return fingerprint({k: v for k, v in self.model_dump(mode="json").items() if k != "tracking"})

    def changed(self, values: Mapping[str, Any]) -> Run:
        """The run with some values changed, by dotted key.

        Raises:
            InputError: a key that there is not.
        """
        plain = self.model_dump(mode="json")
        for key, value in values.items():
            node, (*parents, name) = plain, key.split(".")
            for parent in parents:
                node = node.get(parent) if isinstance(node, dict) else None
            if not isinstance(node, dict) or name not in node:
                raise InputError(f"select names {key!r}, which is no key of a run.")
            node[name] = value
        return type(self).model_validate(plain)
