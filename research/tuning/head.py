"""Linear probing: only the head trains, on frozen features."""

from __future__ import annotations

from typing import Literal

from research.errors import InputError
from research.tuning._selection import Selection
from research.tuning.strategy import Base


class Head(Selection):
    """Trains the head and, by option, the pooler under it."""

    kind: Literal["head"] = "head"
    pooler: bool = False

    def reach(self, base: Base) -> list[str]:
        rooms = ("head/", "pooler/") if self.pooler else ("head/",)
        names = [name for name in base.names if name.startswith(rooms)]
        if not any(name.startswith("head/") for name in names):
            raise InputError("tuning 'head': the model has no head of its own to train.")
        if self.pooler and not any(name.startswith("pooler/") for name in names):
            raise InputError("tuning.pooler: the model has no pooler.")
        return names
