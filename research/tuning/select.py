"""Train what regular expressions over logical names choose; the rest stays frozen."""

from __future__ import annotations

from typing import Literal

import pydantic

from research.trees import matching
from research.tuning._selection import Selection
from research.tuning.strategy import Base


class Select(Selection):
    """Patterns match whole names such as `encoder/layers/5/attention/query/kernel`."""

    kind: Literal["select"] = "select"
    patterns: tuple[str, ...] = pydantic.Field(min_length=1)

    def reach(self, base: Base) -> list[str]:
        return matching(self.patterns, base.names, "tuning pattern")
