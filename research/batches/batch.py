"""The Batch: what a model reads. Everything a mask would say follows from `segments`.

tokens    [[CLS] how far is it [SEP] [CLS] who is she [SEP]  0   0 ]     one row, two packed examples
segments  [  1    1   1   1  1   1     2    2   2  2    2    0   0 ]     0 is padding
positions [  0    1   2   3  4   5     0    1   2  3    4    0   0 ]     each example counts from nought
ids       [ 17   4 ]                                                     which examples these are
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from research.errors import InputError

Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Examples as arrays: B rows of T tokens, at most S examples to a row (S = 1 unless packed).

    A pytree, so it goes through `jit`, `device_put` and `jax.tree.map` as it is. NumPy on the host, jax on devices.
    """

    tokens: Int[Array, "B T"]
    segments: Int[Array, "B T"]  # 0 is padding; 1..S number the examples packed in the row
    positions: Int[Array, "B T"] | None = None  # None: the family's own rule
    types: Int[Array, "B T"] | None = None  # token types (which sentence of a pair)
    targets: Any = None  # what the objective defines, for example {"label": [B, S]}
    weights: Float[Array, "B ..."] | None = None  # loss weights; 0 for the places of examples that are not there
    ids: Int[Array, "B S"] | None = None  # global example index, -1 where no example is
    adapters: Int[Array, "B S"] | None = None  # which resident adapter serves which example
    extras: dict[str, Any] = field(default_factory=dict)  # teacher logits, perturbations, ...
    source: Batch | None = None  # the encoder's side of an encoder-decoder

    @classmethod
    def of(
        cls,
        tokens: Int[Array, "B T"] | Sequence[Sequence[int]],
        mask: Bool[Array, "B T"] | Sequence[Sequence[int]] | None = None,
        types: Int[Array, "B T"] | Sequence[Sequence[int]] | None = None,
        source: Batch | None = None,
    ) -> Self:
        """A batch from token ids, one example a row.

        Args:
            tokens: `[B, T]` ids, or B lists of unequal lengths, which are padded on the right.
            mask: `[B, T]`, non-zero at real tokens wherever they stand (left, right or middle); None: every token of
                an array is real, and of lists those that were given.
            types: `[B, T]` token types, or lists as long as those of `tokens`.
            source: the encoder's batch, for an encoder-decoder.

        Raises:
            InputError: a shape that does not fit `tokens`, or no tokens at all.
        """
        rows, lengths = _pad(tokens, "tokens")
        if rows.ndim != 2 or 0 in rows.shape:
            raise InputError(f"tokens must be [B, T] with B and T above 0, got shape {rows.shape}.")
        if mask is None:
            real = np.arange(rows.shape[1]) < np.asarray(lengths)[:, None]
        else:
            real = np.asarray(_pad(mask, "mask")[0]) != 0
        if types is not None:
            types = _pad(types, "types")[0]
        for name, array in (("mask", real), ("types", types)):
            if array is not None and array.shape != rows.shape:
                raise InputError(f"{name} has shape {array.shape}, tokens have {rows.shape}.")
        if source is not None and source.tokens.shape[0] != rows.shape[0]:
            raise InputError(f"source has {source.tokens.shape[0]} rows, tokens have {rows.shape[0]}.")
        return cls(tokens=rows, segments=real.astype(np.int32), types=types, source=source)

    @property
    def packed(self) -> bool:
        """Whether a row may hold several examples (then outputs for an example are `[B, S, ...]`)."""
        return self.ids is not None

    @property
    def slots(self) -> int:
        """S: the number of places for examples in a row."""
        return 1 if self.ids is None else self.ids.shape[1]

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return replace(self, **changes)


def _pad(rows: Any, name: str) -> tuple[np.ndarray, list[int]]:
    """Rows of unequal lengths -> `[B, T]` int32 padded with 0 on the right, and the lengths. Arrays pass through."""
    if isinstance(rows, jax.Array | np.ndarray):
        if not np.issubdtype(rows.dtype, np.integer) and rows.dtype != bool:
            raise InputError(f"{name} must be integers, got {rows.dtype}.")
        width = rows.shape[1] if rows.ndim == 2 else 0
        return np.asarray(rows, np.int32), [width] * len(rows)
    lists = [list(row) for row in rows]
    lengths = [len(row) for row in lists]
    padded = np.zeros((len(lists), max(lengths, default=0)), np.int32)
    for row, values in zip(padded, lists, strict=True):
        row[: len(values)] = values
    return padded, lengths
