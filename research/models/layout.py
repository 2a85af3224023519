"""Layers are stored stacked, a run at a time; they are *named* one by one. This file translates.

    stacked path   encoder/runs/0/1/attention/query/kernel  [repeats, in, out]
    logical names  encoder/layers/1/attention/query/kernel, encoder/layers/3/..., ...   (kind 1 of a period of 2)

Patterns in configs are written over logical names. On a stacked leaf their outcome is one value per repeat.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from research.models.config import ModelConfig, Stack
from research.trees import flatten, unflatten

_STACKED = re.compile(r"(encoder|decoder)/runs/(\d+)/(\d+)/(.+)")
_LAYER = re.compile(r"(encoder|decoder)/layers/(\d+)/(.+)")


def logical(config: ModelConfig, path: str) -> list[str]:
    """The logical names behind a stored path, in the order of its leading axis (one name for an unstacked leaf)."""
    if not (match := _STACKED.fullmatch(path)):
        return [path]
    stack, run, kind, rest = match[1], int(match[2]), int(match[3]), match[4]
    runs = config.stacks[stack].runs
    first = sum(r.layers for r in runs[:run]) + kind
    return [f"{stack}/layers/{first + i * len(runs[run].kinds)}/{rest}" for i in range(runs[run].repeats)]


def stored(config: ModelConfig, name: str) -> tuple[str, int | None]:
    """The stored path of a logical name, and its index on the leading axis (None for an unstacked leaf)."""
    if not (match := _LAYER.fullmatch(name)):
        return name, None
    stack, layer, rest = match[1], int(match[2]), match[3]
    for number, run in enumerate(config.stacks[stack].runs):
        if layer < run.layers:
            repeat, kind = divmod(layer, len(run.kinds))
            return f"{stack}/runs/{number}/{kind}/{rest}", repeat
        layer -= run.layers
    raise KeyError(name)


def names(config: ModelConfig, tree: Mapping[str, Any]) -> list[str]:
    """The logical names of all leaves of a stored tree (nested or flat)."""
    return [name for path in flatten(tree) for name in logical(config, path)]


def layer_of(name: str) -> tuple[str, int] | None:
    """`("encoder", 3)` for a name within layer 3 of the encoder, None for a name outside the layers."""
    match = _LAYER.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def unstack(config: ModelConfig, tree: Mapping[str, Any]) -> dict[str, Any]:
    """A stored tree -> `{logical name: array without the leading axis}`."""
    return {
        name: leaf if path == name else jax.tree.map(lambda a, i=i: a[i], leaf)
        for path, leaf in flatten(tree).items()
        for i, name in enumerate(logical(config, path))
    }


def restack(config: ModelConfig, named: Mapping[str, Any]) -> dict[str, Any]:
    """`{logical name: array}` -> the stored tree; the inverse of `unstack`."""
    flat: dict[str, Any] = {}
    for name, leaf in named.items():
        path, index = stored(config, name)
        if index is None:
            flat[path] = leaf
        else:
            flat.setdefault(path, {})[index] = leaf
    for path, leaf in flat.items():
        if isinstance(leaf, dict):
            rows = [leaf[i] for i in range(len(leaf))]
            stack = np.stack if isinstance(rows[0], np.ndarray) else jax.numpy.stack
            flat[path] = jax.tree.map(lambda *a, stack=stack: stack(a), *rows)
    return unflatten(flat)


def split(config: ModelConfig, cuts: Mapping[str, Iterable[int]]) -> ModelConfig:
    """Cut each stack's runs so that one begins at each of these layers (or just below, within a longer period)."""
    stacks: dict[str, Stack] = {}
    for name, layers in cuts.items():
        runs, at = [], 0
        for run in config.stacks[name].runs:
            period = len(run.kinds)
            edges = {(layer - at) // period for layer in layers if 0 < (layer - at) // period < run.repeats}
            ends = [*sorted(edges), run.repeats]
            runs += [run.model_copy(update={"repeats": b - a}) for a, b in pairwise([0, *ends])]
            at += run.layers
        stacks[name] = config.stacks[name].model_copy(update={"runs": tuple(runs)})
    return config.model_copy(update=stacks)


def below(stack: Stack, layer: int) -> int:
    """How many of a stack's runs lie wholly below a layer."""
    return sum(sum(run.layers for run in stack.runs[: n + 1]) <= layer for n in range(len(stack.runs)))
