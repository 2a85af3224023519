"""How each number is called, scaled and printed, in one place for every writer and plot.

quantity("macro_f1") -> Quantity(title="Macro-F1", unit="%", scale=100, digits=1, better="higher")
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """A column. `digits` are decimals; None: as many as show three digits. `better`: higher, lower, or neither ("")."""

    name: str
    title: str
    unit: str = ""
    scale: float = 1.0
    digits: int | None = None
    better: str = ""

    @property
    def heading(self) -> str:
        """Title with its unit, as a column header shows it."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: float | None) -> str:
        """`value` scaled and rounded for a reader; a dash where there is none."""
        if value is None or not math.isfinite(value):
            return "–"
        scaled = value * self.scale
        digits = self.digits
        if digits is None:
            digits = max(0, 2 - int(f"{scaled:.2e}".partition("e")[2]))  # the exponent after rounding: 9.996 is 10.0
        return f"{scaled:,.{digits}f}"


COSTS = {
    "trainable": Quantity("trainable", "Trainable", digits=0),
    "trainable_share": Quantity("trainable_share", "Share", "%", scale=100),
    "examples_per_second": Quantity("examples_per_second", "Examples/s"),
    "peak_memory_mb": Quantity("peak_memory_mb", "Peak memory", "MB", digits=0),
    "seconds": Quantity("seconds", "Wall time", "s"),
}
_TITLES = {
    "f1": "F1",
    "macro_f1": "Macro-F1",
    "micro_f1": "Micro-F1",
    "weighted_f1": "Weighted F1",
    "ece": "ECE",
    "mse": "MSE",
    "mae": "MAE",
    "bleu": "BLEU",
    "chrf": "chrF",
    "ter": "TER",
    "matthews": "Matthews",
}
_SHARES = ("accuracy", "f1", "precision", "recall", "exact_match", "ece", "error_rate")
_LOWER = ("loss", "perplexity", "ece", "error", "error_rate", "mse", "mae", "ter", "wer")
_LARGE = ("bleu", "chrf", "rouge", "ter")  # already on a scale of 0 to 100


def quantity(name: str) -> Quantity:
    """The column of a metric (a share is shown in percent with one decimal) or of a cost; any name is accepted."""
    if name in COSTS:
        return COSTS[name]

    def is_a(kinds: tuple[str, ...]) -> bool:
        return any(name == kind or name.endswith("_" + kind) for kind in kinds)

    share = is_a(_SHARES)
    return Quantity(
        name,
        _TITLES.get(name, name.replace("_", " ").capitalize()),
        unit="%" * share,
        scale=100 if share else 1,
        digits=1 if share or is_a(_LARGE) else 3,
        better="lower" if is_a(_LOWER) else "higher",
    )
