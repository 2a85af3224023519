"""A data set in flat arrays, so that a batch is two gathers however many examples it holds.

{"tokens": [5, 6, 7], "targets": {"label": 2}}       tokens   [5 6 7 8 9]      offsets  [0 3 5]
{"tokens": [8, 9],    "targets": {"label": 0}}  -->  targets  {"label": [2 0]}
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Int

from research.batches.batch import Batch
from research.batches.plan import Layout
from research.errors import InputError, nearest

KEYS = ("tokens", "types", "targets")


@dataclass(frozen=True)
class Examples:
    """N prepared examples with `total` tokens between them."""

    offsets: Int[np.ndarray, " N+1"]
    tokens: Int[np.ndarray, " total"]
    types: Int[np.ndarray, " total"] | None
    targets: Mapping[str, np.ndarray]  # one of [N, ...] for each name
    per_token: Mapping[str, np.ndarray]  # one of [total, ...] for each name

    @classmethod
    def of(cls, examples: Sequence[Mapping[str, Any]], per_token: Collection[str] = ()) -> Self:
        """Flat arrays of examples `{"tokens": [n], "types": [n] (optional), "targets": {name: array} (optional)}`.

        Args:
            examples: what an objective prepared; the position of an example is its id.
            per_token: names of the targets that hold `[n, ...]`, a value for each token. Others have one shape throughout.

        Raises:
            InputError: no examples, or one that does not fit; the message names it.
        """
        if not len(examples):
            raise InputError("there are no examples to batch.")
        first = examples[0]
        keys, names = set(first), sorted(first.get("targets", ()))
        if unknown := sorted(keys - set(KEYS)):
            raise InputError(f"example 0 has an unknown part {unknown[0]!r}.{nearest(unknown[0], KEYS)}")
        if absent := sorted(set(per_token) - set(names)):
            raise InputError(f"example 0 has no target {absent[0]!r}, which per_token names.{nearest(absent[0], names)}")
        for index, example in enumerate(examples):
            if set(example) != keys or sorted(example.get("targets", ())) != names:
                raise InputError(f"example {index} has other parts or targets than example 0.")
        tokens = [np.asarray(example["tokens"]) for example in examples]
        for index, row in enumerate(tokens):
            if row.ndim != 1 or not row.size:
                raise InputError(f"example {index} must have tokens [n] with n above 0, got shape {row.shape}.")
        lengths = np.array([len(row) for row in tokens])

        def flat(rows: list[Any], name: str) -> np.ndarray:
            rows = [np.asarray(row) for row in rows]
            for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                if row.shape[:1] != (length,) or row.shape[1:] != rows[0].shape[1:]:
                    raise InputError(f"example {index} has {length} tokens, but {name} of shape {row.shape}.")
            return _on_device(np.concatenate(rows), name)

        def stacked(rows: list[Any], name: str) -> np.ndarray:
            rows = [np.asarray(row) for row in rows]
            for index, row in enumerate(rows):
                if row.shape != rows[0].shape:
                    raise InputError(
                        f"target {name!r} has shape {row.shape} in example {index} and {rows[0].shape} in "
                        f"example 0; if it has a value for each token, name it in per_token."
                    )
            return _on_device(np.stack(rows), name)

        columns = {name: [example["targets"][name] for example in examples] for name in names}
        return cls(
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            tokens=flat(tokens, "tokens"),
            types=flat([example["types"] for example in examples], "types") if "types" in keys else None,
            targets={name: stacked(columns[name], name) for name in names if name not in per_token},
            per_token={name: flat(columns[name], name) for name in names if name in per_token},
        )

    @property
    def lengths(self) -> Int[np.ndarray, " N"]:
        """Tokens in each example."""
        return np.diff(self.offsets)

    def digest(self) -> str:
        """sha256 over every array with its name, type and shape."""
        hashed = hashlib.sha256()
        parts = {"offsets": self.offsets, "tokens": self.tokens, "types": self.types}
        parts |= {f"targets/{name}": array for name, array in sorted(self.targets.items())}
        parts |= {f"per_token/{name}": array for name, array in sorted(self.per_token.items())}
        for name, array in parts.items():
            if array is not None:
                hashed.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
                hashed.update(np.ascontiguousarray(array))
        return hashed.hexdigest()

    def batch(self, ids: Int[np.ndarray, " n"], layout: Layout, *, pad: int = 0, positions: bool = False) -> Batch:
        """The examples `ids` where `layout` puts them; NumPy arrays.

        Places without a token hold `pad` as token and 0 otherwise. Places for examples that are not there have id -1,
        weight 0 and targets 0.

        Args:
            ids: the examples, without duplicates.
            layout: where they stand.
            pad: the token of padding.
            positions: whether to give positions, which count from 0 in each example.
        """
        (rows, length, slots), lengths = layout.shape, self.offsets[ids + 1] - self.offsets[ids]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        origin = np.repeat(self.offsets[ids], lengths) + within
        column = np.repeat(layout.rows * length + layout.starts, lengths) + within
        slot = layout.rows * slots + layout.slots

        def placed(values: np.ndarray, where: np.ndarray, width: int, fill: int = 0) -> np.ndarray:
            array = np.full((rows * width, *values.shape[1:]), fill, values.dtype)
            array[where] = values
            return array.reshape(rows, width, *values.shape[1:])

        targets = {name: placed(array[ids], slot, slots) for name, array in self.targets.items()}
        targets |= {name: placed(array[origin], column, length) for name, array in self.per_token.items()}
        return Batch(
            tokens=placed(self.tokens[origin], column, length, pad),
            segments=placed(np.repeat(layout.slots + 1, lengths).astype(np.int32), column, length),
            positions=placed(within.astype(np.int32), column, length) if positions else None,
            types=None if self.types is None else placed(self.types[origin], column, length),
            targets=targets,
            weights=placed(np.ones(len(ids), np.float32), slot, slots),
            ids=placed(ids.astype(np.int32), slot, slots, -1),
        )


def _on_device(array: np.ndarray, name: str) -> np.ndarray:
    """The array in the type it has on a device: int32, float32 or bool."""
    if np.issubdtype(array.dtype, np.floating):
        return array.astype(np.float32, copy=False)
    if array.dtype == bool:
        return array
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name} must be numbers, got {array.dtype}.")
    if array.dtype != np.int32 and array.size and max(array.max(), -int(array.min())) > np.iinfo(np.int32).max:
        raise InputError(f"{name} holds {array[np.abs(array).argmax()]}, which is more than 32 bits hold.")
    return array.astype(np.int32, copy=False)
