"""Full fine-tuning: every parameter trains."""

from __future__ import annotations

from typing import Literal

from research.tuning._selection import Selection
from research.tuning.strategy import Base


class Full(Selection):
    """Trains everything."""

    kind: Literal["full"] = "full"

    def reach(self, base: Base) -> list[str]:
        return base.names
