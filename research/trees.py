"""Trees of arrays by name: paths, flat views, and the one matcher. Beside the flow.

A tree's flat view is a dict from paths such as `encoder/runs/0/0/attention/query/kernel` to leaves. Freezing, learning-rate
groups, weight decay and sharding are all written as an ordered list of (pattern, value): the first match wins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from research.errors import InputError, nearest


def flatten(tree: Mapping[str, Any], is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Nested dicts -> `{path: leaf}`; anything that is not a dict is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and not (is_leaf and is_leaf(value)):
            flat |= {f"{key}/{path}": leaf for path, leaf in flatten(value, is_leaf).items()}
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{path: leaf}` -> nested dicts; the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def first_match(path: str, rules: Sequence[tuple[str, Any]], default: Any = ...) -> Any:
    """The value of the first rule whose pattern matches the whole of `path`.

    Raises:
        InputError: nothing matches and no default was given: every leaf must be covered.
    """
    for pattern, value in rules:
        if re.fullmatch(pattern, path):
            return value
    if default is ...:
        raise InputError(f"no pattern covers {path!r}; end the list with '.*'.")
    return default


def matching(patterns: str | Iterable[str], names: Iterable[str], what: str = "pattern") -> list[str]:
    """The names that any of the patterns matches in full, in the order of `names`.

    Raises:
        InputError: a pattern that matches none, or is no regular expression: it would otherwise be silently ignored.
    """
    names = list(names)
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            found = [name for name in names if re.fullmatch(pattern, name)]
        except re.error as error:
            raise InputError(f"{what} {pattern!r} is not a regular expression: {error}.") from None
        if not found:
            raise InputError(f"{what} {pattern!r} matches nothing.{nearest(pattern, names[:400])}")
        chosen |= set(found)
    return [name for name in names if name in chosen]


def count(tree: Any) -> int:
    """Numbers in all leaves of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def nbytes(tree: Any) -> int:
    """Bytes of all leaves of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
