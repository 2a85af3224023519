"""Readers: a file or a hub data set, in any of the formats people keep text in, becomes a stream of raw rows.

    bytes (.gz or not) --decode--> lines --reader--> Row(line=17, values={"text": "Who ...", "label": "HUM"})

Values are what the format holds: strings for CSV, TSV and text, lists of strings for CoNLL, anything for JSONL and
Parquet. What they mean is `data.py`'s business. Every complaint names the file and the line.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl

from research.errors import InputError, nearest

Format = Literal["auto", "csv", "tsv", "jsonl", "parquet", "text", "conll", "conllu"]
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".conll": "conll",
    ".conllu": "conllu",
}
CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


class Row(NamedTuple):
    """One raw example. `line` is where it begins in its file, counting from 1 (in Parquet and on the hub, the row)."""

    line: int
    values: dict[str, Any]


class Options(NamedTuple):
    """How to read a file, as far as the file does not say so itself; the fields are explained in `data.Data`."""

    format: Format = "auto"
    encoding: str = "utf-8"
    header: bool = True
    columns: tuple[str, ...] = ()
    delimiter: str | None = None
    pattern: str | None = None


def read(path: Path, options: Options) -> Iterator[Row]:
    """The rows of the file at `path`, in order, read as they are asked for.

    Raises:
        InputError: unknown format, an option the format has no use for, wrong encoding, or a malformed line.
    """
    kind = options.format
    if kind == "auto":
        suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
        if not (kind := _SUFFIXES.get(suffix.lower())):
            raise InputError(f"{path}: the name does not tell the format; set format to one of {', '.join(_READERS)}.")
    reader, useful = _READERS[kind]
    for name, default in Options._field_defaults.items():
        if name not in ("format", *useful) and getattr(options, name) != default:
            raise InputError(f"{path}: the option {name} has no meaning for the format {kind}.")
    if not path.is_file():
        raise InputError(f"{path} is not a file.")
    return reader(path, options)


def hub(reference: str, split: str) -> Iterator[Row]:
    """The rows of `hf:org/name[@revision][?config=...&split=...]`, by the `datasets` library.

    `split` is read unless the reference names another. Columns of class indices yield the names of the classes.

    Raises:
        InputError: unknown key, data set, configuration or split; no network.
    """
    name, _, query = reference.removeprefix("hf:").partition("?")
    name, _, revision = name.partition("@")
    keys = dict(parse_qsl(query))
    for key in keys:
        if key not in ("config", "split"):
            raise InputError(f"{reference}: unknown key {key!r}.{nearest(key, ('config', 'split'))}")
    import datasets

    try:
        split = keys.get("split", split)
        table = datasets.load_dataset(name, keys.get("config"), split=split, revision=revision or None)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        hint = " Without a network, give local files." if isinstance(error, ConnectionError) else ""
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"{reference} could not be loaded: {reason}.{hint}") from None
    classes = {name: kind for name, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)}
    for number, values in enumerate(table, 1):
        for column, kind in classes.items():
            if values[column] is not None and values[column] >= 0:  # -1 marks a hidden label
                values[column] = kind.int2str(values[column])
        yield Row(number, values)


def _lines(path: Path, encoding: str, newline: str | None = None) -> Iterator[str]:
    """Decoded lines, ends kept, without the blank ones that end the file."""
    try:
        # Spreadsheets begin a UTF-8 file with a mark that would otherwise become part of the first column's name.
        encoding = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    except LookupError:
        raise InputError(f"{path}: unknown encoding {encoding!r}.") from None
    blank: list[str] = []
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding=encoding, newline=newline) as file:
        try:
            for line in file:
                if line.isspace():
                    blank.append(line)
                    continue
                yield from blank
                blank.clear()
                yield line
        except UnicodeDecodeError as error:
            number = _undecodable(path, encoding)
            raise InputError(f"{path}, line {number}: not {error.encoding}; set encoding (perhaps latin-1).") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path}: damaged gzip file ({error}).") from None


def _undecodable(path: Path, encoding: str) -> int:
    """The text layer decodes in blocks, so the line it stopped at is found by a second pass over the bytes."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return number
    return 1


def _csv(path: Path, options: Options) -> Iterator[Row]:
    """RFC 4180: quoted fields may hold delimiters and line ends."""
    lines = _lines(path, options.encoding, "")
    yield from _table(path, options, csv.reader(lines, delimiter=options.delimiter or ",", strict=True))


def _tsv(path: Path, options: Options) -> Iterator[Row]:
    """Tab separated, where a quotation mark is a character like any other, as in GLUE."""
    lines = _lines(path, options.encoding, "")
    yield from _table(path, options, csv.reader(lines, delimiter=options.delimiter or "\t", quoting=csv.QUOTE_NONE))


def _table(path: Path, options: Options, reader: Any) -> Iterator[Row]:
    if not options.header and not options.columns:
        raise InputError(f"{path}: a file without a header needs the names of its columns in the option columns.")
    names, start = options.columns, 1
    if len(set(names)) < len(names):
        raise InputError(f"{path}: the option columns names one column twice.")
    try:
        for fields in reader:
            line, start = start, reader.line_num + 1
            if line == 1 and options.header:
                if options.columns and options.columns != tuple(fields):
                    raise InputError(f"{path}, line 1: the header is {fields}, not {list(options.columns)} (columns).")
                names = tuple(fields)
                if len(set(names)) < len(names):
                    raise InputError(f"{path}, line 1: the header names one column twice.")
            elif len(fields) != len(names):
                raise InputError(f"{path}, line {line}: {len(fields)} fields for the columns {', '.join(names)}.")
            else:
                yield Row(line, dict(zip(names, fields, strict=True)))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}.") from None


def _jsonl(path: Path, options: Options) -> Iterator[Row]:
    for number, line in enumerate(_lines(path, options.encoding), 1):
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}).") from None
        if not isinstance(values, dict):
            raise InputError(f"{path}, line {number}: a JSON object is expected on every line.")
        yield Row(number, values)


def _parquet(path: Path, options: Options) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield Row(number, values)
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}, after row {number}: not readable as Parquet ({reason}).") from None


def _text(path: Path, options: Options) -> Iterator[Row]:
    """One example a line; `pattern` must match the whole line, its named groups become the fields."""
    try:
        pattern = re.compile(options.pattern or "(?P<text>.*)")
    except re.error as error:
        raise InputError(f"{path}: the option pattern is not a regular expression ({error}).") from None
    if not pattern.groupindex:
        raise InputError(f"{path}: the option pattern names no group; write (?P<text>...) for the field text.")
    for number, line in enumerate(_lines(path, options.encoding), 1):
        if not (match := pattern.fullmatch(line.rstrip("\n"))):
            raise InputError(f"{path}, line {number}: {line.strip()[:60]!r} does not match pattern {options.pattern}.")
        yield Row(number, match.groupdict())


def _conll(path: Path, options: Options) -> Iterator[Row]:
    """A token a line, sentences apart by blank lines; a row holds a list for every column that has a name."""
    if not options.columns:
        raise InputError(f"{path}: a CoNLL file needs the names of its columns in the option columns.")
    sentence: list[list[str]] = []
    start = width = 0

    def row() -> Row:
        columns = zip(options.columns, zip(*sentence, strict=True), strict=False)  # columns without a name are left out
        return Row(start, {name: list(column) for name, column in columns})

    for number, line in enumerate(_lines(path, options.encoding), 1):
        line = line.rstrip("\n")
        if not line.strip():
            if sentence:
                yield row()
            sentence = []
            continue
        # A comment stands before its sentence; elsewhere, or beside a tab, '#' is a token (as in tweets).
        comment = not sentence and "\t" not in line and f"{line} ".startswith("# ")
        if comment or line.startswith("-DOCSTART-"):
            continue
        fields = line.split("\t") if "\t" in line else line.split()
        width = width or max(len(fields), len(options.columns))
        if len(fields) != width:
            raise InputError(f"{path}, line {number}: {len(fields)} fields, expected {width}.")
        start = start if sentence else number
        sentence.append(fields)
    if sentence:
        yield row()


def _conllu(path: Path, options: Options) -> Iterator[Row]:
    """CoNLL-U: ten columns; the lines of multiword tokens (1-2) and of empty nodes (8.1) are no tokens."""
    for line, values in _conll(path, options._replace(columns=CONLLU)):
        kept = [i for i, name in enumerate(values["id"]) if name.isdecimal()]
        yield Row(line, {name: [column[i] for i in kept] for name, column in values.items()})


# format -> its reader and the options it honours
_READERS: dict[str, tuple[Callable[[Path, Options], Iterator[Row]], tuple[str, ...]]] = {
    "csv": (_csv, ("encoding", "header", "columns", "delimiter")),
    "tsv": (_tsv, ("encoding", "header", "columns", "delimiter")),
    "jsonl": (_jsonl, ("encoding",)),
    "parquet": (_parquet, ()),
    "text": (_text, ("encoding", "pattern")),
    "conll": (_conll, ("encoding", "columns")),
    "conllu": (_conllu, ("encoding",)),
}
