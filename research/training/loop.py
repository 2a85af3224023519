"""The one training loop. (Being written.)"""

from __future__ import annotations

from typing import Literal

import pydantic

from research.config import Config


class Training(Config):
    """How long to train, how often to look, and what to keep."""

    epochs: float | None = pydantic.Field(default=3.0, gt=0)
    steps: int | None = pydantic.Field(default=None, gt=0)  # instead of epochs
    evaluate_every: int | None = pydantic.Field(default=None, gt=0)  # steps; None: at the end of each epoch
    checkpoint_every: int | None = pydantic.Field(default=None, gt=0)  # steps; None: whenever evaluated
    log_every: int = pydantic.Field(default=10, gt=0)
    patience: int | None = pydantic.Field(default=None, gt=0)  # stop after this many evaluations without a better one
    accumulate: int | Literal["auto"] = 1  # parts that a batch is computed in; auto: as few as memory allows
    average: float | None = pydantic.Field(default=None, gt=0, lt=1)  # decay of the moving average that is evaluated
    keep: Literal["best", "both"] = "both"  # checkpoints kept after the end: the best alone, or also the last

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.epochs is None) == (self.steps is None) and self.steps is not None:
            raise ValueError("give epochs or steps, not both (epochs: null)")
        return self
