"""LayerNorm tuning (Zhao et al. 2024, "Tuning LayerNorm in Attention"): only the norms' scales and biases train."""

from __future__ import annotations

import re
from typing import Literal

from research.tuning._selection import Selection
from research.tuning.strategy import Base

_NORM = re.compile(r"(.*/)?(\w+_)?norm/(scale|bias)")


class LayerNorm(Selection):
    """Trains every norm: of sublayers, of embeddings, and the final one."""

    kind: Literal["layernorm"] = "layernorm"

    def reach(self, base: Base) -> list[str]:
        return [name for name in base.names if _NORM.fullmatch(name)]
