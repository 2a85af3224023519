"""Train the top k layers (of the decoder, where there is one) and what lies above them: pooler, final norm, head."""

from __future__ import annotations

from typing import Literal

import pydantic

from research.errors import InputError
from research.models.layout import layer_of
from research.tuning._selection import Selection
from research.tuning.strategy import Base


class TopLayers(Selection):
    """Everything below layer `L - layers` is computed without a backward pass."""

    kind: Literal["top_layers"] = "top_layers"
    layers: int = pydantic.Field(default=2, gt=0)

    def reach(self, base: Base) -> list[str]:
        stack, part = list(base.config.stacks.items())[-1]
        if self.layers > part.layers:
            raise InputError(f"tuning.layers is {self.layers}, but the {stack} has only {part.layers} layers.")

        def trains(name: str) -> bool:
            if place := layer_of(name):
                return place[0] == stack and place[1] >= part.layers - self.layers
            return name.startswith(("pooler/", "head/", f"{stack}/norm/"))

        return [name for name in base.names if trains(name)]
