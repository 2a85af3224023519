"""Random batches padded to their longest example: the baseline, with many shapes and much padding.

[ how far is it 0 0 0 0 0 0 0 ]
[ what films featured the character popeye doyle ? ]
[ who is she ? 0 0 0 0 0 0 ]
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field

from research.batches.plan import Batching, Plan, Shape, Unpacked, round_up


class Padded(Batching):
    """Each batch is as long as its longest example, rounded up: as many shapes as there are such lengths."""

    kind: Literal["padded"] = "padded"
    multiple: int = Field(8, gt=0)  # lengths are rounded up to a multiple of this

    def plan(self, lengths: Int[np.ndarray, " N"], row_multiple: int = 1) -> Plan:
        size = min(self.size, len(lengths))
        low = round_up(np.sort(lengths)[size - 1], self.multiple)  # no full batch is shorter
        edges = range(low, round_up(lengths.max(), self.multiple) + 1, self.multiple)
        return Unpacked(size, tuple(Shape(round_up(size, row_multiple), edge, 1) for edge in edges))
