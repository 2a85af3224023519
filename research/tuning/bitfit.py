"""BitFit (Ben Zaken et al. 2022): only the bias terms train."""

from __future__ import annotations

from typing import Literal

from research.errors import InputError
from research.tuning._selection import Selection
from research.tuning.strategy import Base


class BitFit(Selection):
    """Trains every bias, those of the norms included."""

    kind: Literal["bitfit"] = "bitfit"

    def reach(self, base: Base) -> list[str]:
        names = [name for name in base.names if name.endswith("/bias")]
        if not set(names) - base.fresh:
            raise InputError(f"tuning 'bitfit': a {base.config.family} model has no biases to train.")
        return names
