"""What the data of a task is, as its YAML says: where each split lies, which column is the text, what its labels mean.

data:                                               Splits
  directory: data/sst2                                train   [Example(0, "a stirring ...", label="positive"), ...]
  train: train.tsv              --load-->             dev     [...]
  dev: dev.tsv                                        test    [...]
  test: test.tsv                                      labels  ("negative", "positive")
  header: false                                       hash    "5ae0..."
  columns: [text, label]
  rename: {"0": negative, "1": positive}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from research.config import Config
from research.errors import InputError, nearest
from research.text import sources
from research.text.references import resolve
from research.text.splits import Example, Label, Splits, hold_out, limited, numbered, shots

_HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


class HoldOut(Config):
    """Sizes of the splits that have no source of their own: taken out of train, test first. See `splits.hold_out`."""

    dev: Annotated[float, Field(ge=0)] = 0
    """A number of examples, or below 1 a fraction of the training examples."""
    test: Annotated[float, Field(ge=0)] = 0
    """As `dev`."""
    seed: int = 0
    stratified: bool = False
    """Every class in proportion."""

    @model_validator(mode="after")
    def _whole(self) -> HoldOut:
        if any(size > 1 and size % 1 for size in (self.dev, self.test)):
            raise ValueError("a size above 1 is a number of examples and must be whole")
        return self


class Data(Config):
    """The data of a task, as it stands under `data:` in a task's YAML."""

    train: str
    """A file, a `pypi:` reference to one, or a data set `hf:org/name[@revision][?config=...&split=...]`."""
    dev: str | None = None
    """As `train`. Without it `hold_out.dev` examples are taken from train."""
    test: str | None = None
    """As `train`. Without it `hold_out.test` examples are taken from train."""
    directory: str | None = None
    """The folder (or a reference to one) that relative paths start from; the working directory by default."""

    format: sources.Format = "auto"
    """`auto` goes by the name of the file."""
    encoding: str = "utf-8"
    header: bool = True
    """CSV and TSV: the first line names the columns."""
    columns: tuple[str, ...] = ()
    """Names of the columns of a CoNLL file, or of a CSV or TSV file without a header."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """CSV and TSV: instead of the comma or tab."""
    pattern: str | None = None
    """Text: a regular expression that every line matches; its named groups are the columns."""

    text: str = "text"
    """The column that holds the text."""
    pair: str | None = None
    """The column that holds the second sentence."""
    label: str | None = "label"
    """The column that holds the label; null for unlabelled text."""
    target: Literal["class", "classes", "number", "tags"] = "class"
    """What a label is: one class, several (a list or a string with separators), a number, or a tag for every word."""
    labels: tuple[str, ...] = ()
    """The classes in the order of their indices; by default those of train, sorted."""
    rename: dict[str, str] = {}
    """Label as it stands in the file -> class."""
    separator: str | None = None
    """Between the classes in a string, when the target is `classes`; a comma by default."""

    deduplicate: Literal["no", "row", "text"] = "no"
    """Of training rows that are equal in every column (`row`), or in text and pair (`text`), keep the first."""
    hold_out: HoldOut = HoldOut()
    shots: Annotated[int, Field(ge=1)] | None = None
    """Train on this many examples of every class."""
    shots_seed: int = 0
    """Which ones."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """At most this many examples in every split, for a quick look."""

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        kind = self.target if self.label else "none"
        for option, given, kinds in (
            ("labels", self.labels, ("class", "classes", "tags")),
            ("rename", self.rename, ("class", "classes", "tags")),
            ("separator", self.separator, ("classes",)),
            ("shots", self.shots, ("class",)),
            ("hold_out.stratified", self.hold_out.stratified, ("class",)),
            ("pair", self.pair, ("none", "class", "classes", "number")),
        ):
            if given and kind not in kinds:
                raise ValueError(f"{option} has no meaning for labels of the kind {kind}")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels names a class twice")
        return self


Split = Literal["train", "dev", "test"]


def load(data: Data, *, cache: Path | None = None) -> Splits:
    """Reads, holds out, subsets and checks the splits that `data` describes; equal input gives equal results.

    Args:
        cache: the folder for downloads, as in `references.resolve`.

    Raises:
        InputError: naming the file and line of what is missing, malformed or inconsistent.
    """
    from rich.console import Console

    with Console(stderr=True).status(f"reading {data.train.partition('#')[0]}"):
        train, duplicates = _unique(examples(data, "train", cache=cache), data.deduplicate)
        total = len(train)
        found: dict[str, list[Example]] = {}
        for split, size in (("test", data.hold_out.test), ("dev", data.hold_out.dev)):
            if getattr(data, split):
                found[split] = [example for example, _ in examples(data, split, cache=cache)]
            else:
                size = round(size * total) if size < 1 else int(size)
                train, found[split] = hold_out(train, size, data.hold_out.seed, split, data.hold_out.stratified)
    trained = {name for example in train for name in example.classes}
    for split, members in found.items():
        for example in members:
            for name in set(example.classes) - trained:  # never of a held-out example: see `hold_out`
                where = f"{getattr(data, split)}, line {example.line}"
                raise InputError(f"{where}: no training example has the label {name!r}.{nearest(name, trained)}")
    if data.shots:
        train = shots(numbered(train), data.shots, data.shots_seed)
    train, dev, test = (
        numbered(limited(numbered(one), data.limit, data.hold_out.seed)) for one in (train, found["dev"], found["test"])
    )
    return Splits(train, dev, test, data.labels or tuple(sorted(trained)), duplicates)


def examples(data: Data, split: Split, *, cache: Path | None = None) -> Iterator[tuple[Example, dict[str, Any]]]:
    """Every example in the source of a split, numbered in file order, each with the raw row it was made of.

    Raises:
        InputError: as `load`; also where the source holds no example at all.
    """
    source = getattr(data, split)
    options = sources.Options(*(getattr(data, name) for name in sources.Options._fields))
    if source.startswith("hf:"):
        if options != sources.Options():
            raise InputError(f"{source}: {', '.join(options._fields)} have no meaning for a data set of the hub.")
        rows, name = sources.hub(source, _HUB_SPLITS[split]), source
    else:
        path = _locate(data, source, cache)
        rows, name = sources.read(path, options), str(path)
    index = -1
    for index, (line, values) in enumerate(rows):
        try:
            example = _example(data, index, line, values)
        except InputError as complaint:
            raise InputError(f"{name}, line {line}: {complaint}") from None
        yield example, values
    if index < 0:
        raise InputError(f"{name} holds no example (data.{split}).")


def _locate(data: Data, source: str, cache: Path | None) -> Path:
    if source.startswith("pypi:") or data.directory is None:
        return resolve(source, cache=cache)
    try:
        directory = resolve(data.directory, cache=cache)
    except InputError as error:
        raise InputError(f"{error} Set data.directory to the folder that holds {source}.") from None
    return resolve(str(directory / source))


def _unique(rows: Iterator[tuple[Example, dict[str, Any]]], by: str) -> tuple[list[Example], int]:
    """The examples without repetitions, and how many those were."""
    kept: list[Example] = []
    seen: set[object] = set()
    dropped = 0
    for example, values in rows:
        key = (example.text, example.pair) if by == "text" else json.dumps(values, sort_keys=True, default=str)
        if by != "no" and key in seen:
            dropped += 1
            continue
        seen.add(key)
        kept.append(example)
    return kept, dropped


# The functions below complain about one row; `examples` puts the file and the line before it.


def _example(data: Data, index: int, line: int, values: dict[str, Any]) -> Example:
    for column in filter(None, (data.text, data.pair, data.label)):
        if column not in values:
            raise InputError(f"there is no column {column!r}.{nearest(column, values)}")
    if data.target != "tags":
        pair = _text(data.pair, values[data.pair]) if data.pair else None
        label = _label(data, values[data.label]) if data.label else None
        return Example(index, _text(data.text, values[data.text]), pair, label, line)
    words = tuple(_text(data.text, word) for word in _list(data.text, values[data.text]))
    tags = tuple(_class(data, tag) for tag in _list(data.label, values[data.label])) if data.label else None
    if tags is not None and len(tags) != len(words):
        raise InputError(f"{len(words)} words but {len(tags)} tags.")
    return Example(index, words, None, tags, line)


def _text(column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{column} is {type(value).__name__}, not text.")
    if not value.strip():
        raise InputError(f"{column} is empty.")
    return value


def _list(column: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{column} must be a list with one entry for every word.")
    return value


def _label(data: Data, value: Any) -> Label:
    if data.target == "class":
        return _class(data, value)
    if data.target == "classes":
        if isinstance(value, str):
            value = [part for part in value.split(data.separator or ",") if part.strip()]
        if not isinstance(value, list):
            raise InputError(f"{data.label} must be a list of classes or a string of them, not {value!r}.")
        return tuple(dict.fromkeys(_class(data, one) for one in value))
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise InputError(f"{data.label} must be a number, not {value!r}.")
    return number


def _class(data: Data, value: Any) -> str:
    """The class that a raw label names: 1, 1.0 and "1" are one label, a JSON true is "true"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    raw = json.dumps(value) if isinstance(value, bool | int) else value
    if raw is None or raw == "":
        raise InputError(f"{data.label} is empty.")
    if not isinstance(raw, str):
        raise InputError(f"{data.label} must name a class, not {value!r}.")
    name = data.rename.get(raw.strip(), raw.strip())
    if data.labels and name not in data.labels:
        raise InputError(f"unknown label {name!r}.{nearest(name, data.labels)}")
    return name
