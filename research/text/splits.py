"""Train, dev and test: what is held out, which k examples of a class are kept, and the hash that names the result.

    all training rows --hold_out(seed)--> test | dev | train --shots(seed)--> k per class --limit--> Splits

Every choice ranks examples by sha256(seed, purpose, text, pair): the order of the file has no influence, one more
example moves few others, and equal texts have equal ranks, so that none stands on both sides of a split.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from research.errors import InputError

Label = str | tuple[str, ...] | float | None


@dataclass(frozen=True, slots=True)
class Example:
    """One example. Its label: a class; a tuple of classes, or of a tag for every word; a float; None."""

    index: int  # its place in its split: 0, 1, 2, ...
    text: str | tuple[str, ...]  # a tuple of words where every word has its own label
    pair: str | None = None  # the second sentence
    label: Label = None
    line: int = 0  # where it stands in its file, counting from 1

    @property
    def classes(self) -> tuple[str, ...]:
        """The names in the label, each once; none for scores and unlabelled text."""
        names = (self.label,) if isinstance(self.label, str) else self.label if isinstance(self.label, tuple) else ()
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Splits:
    """The three splits, empty where the task has none, and the names of the classes in the order of their indices."""

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    labels: tuple[str, ...] = ()
    duplicates: int = 0  # rows of training data that were dropped

    @cached_property
    def hash(self) -> str:
        """sha256 (64 hexadecimal digits) of the labels and of every example's text, pair and label, in order."""
        digest = hashlib.sha256(_canonical("labels", self.labels))
        for name in ("train", "dev", "test"):
            for example in getattr(self, name):
                digest.update(b"\n" + _canonical(name, example.text, example.pair, example.label))
        return digest.hexdigest()


def _canonical(*values: object) -> bytes:
    return json.dumps(values, ensure_ascii=True, separators=(",", ":")).encode()


def _rank(example: Example, seed: int, purpose: str) -> bytes:
    return hashlib.sha256(_canonical(seed, purpose, example.text, example.pair)).digest()


def numbered(examples: Iterable[Example]) -> list[Example]:
    """The examples with `index` counted anew from 0."""
    return [replace(example, index=index) for index, example in enumerate(examples)]


def hold_out(
    examples: list[Example], size: int, seed: int, purpose: str, stratified: bool = False
) -> tuple[list[Example], list[Example]]:
    """(kept, held): `size` of `examples`, chosen by rank, are held; both keep their order.

    Equal texts go together and a class never loses its last training example, so a little fewer may be held where such
    groups are large. `stratified` holds every class in proportion (largest remainder).

    Raises:
        InputError: there are not more than `size` examples.
    """
    if size >= len(examples) > 0:
        raise InputError(f"cannot hold out {size} examples for {purpose}: there are only {len(examples)} to train on.")
    groups: dict[bytes, list[Example]] = defaultdict(list)
    for example in examples:
        groups[_rank(example, seed, purpose)].append(example)
    room = _proportions(examples, size) if stratified else Counter({None: size})
    left = Counter(name for example in examples for name in example.classes)
    held: set[bytes] = set()
    for rank in sorted(groups):
        needs = Counter(e.label if stratified else None for e in groups[rank])
        loses = Counter(name for e in groups[rank] for name in e.classes)
        if all(room[k] >= n for k, n in needs.items()) and all(left[name] > n for name, n in loses.items()):
            room -= needs
            left -= loses
            held.add(rank)
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        sides[_rank(example, seed, purpose) in held].append(example)
    return sides


def _proportions(examples: list[Example], size: int) -> Counter:
    counts = Counter(e.label for e in examples)
    exact = {label: size * n / len(examples) for label, n in counts.items()}
    shares = Counter({label: int(share) for label, share in exact.items()})
    by_remainder = sorted(exact, key=lambda label: (shares[label] - exact[label], label))
    shares.update(by_remainder[: size - shares.total()])
    return shares


def shots(examples: list[Example], k: int, seed: int) -> list[Example]:
    """`k` examples of every class, in their order.

    Raises:
        InputError: a class has fewer.
    """
    classes: dict[Label, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda e: _rank(e, seed, "shots")):
        classes[example.label].append(example)
    for label, members in sorted(classes.items()):
        if len(members) < k:
            raise InputError(f"shots: {k} examples of every class are wanted, {label!r} has {len(members)}.")
    return sorted((e for members in classes.values() for e in members[:k]), key=lambda e: e.index)


def limited(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` of the examples, in their order: a sample, since the head of a sorted file may hold one class."""
    if limit is None or len(examples) <= limit:
        return examples
    return sorted(sorted(examples, key=lambda e: _rank(e, seed, "limit"))[:limit], key=lambda e: e.index)
