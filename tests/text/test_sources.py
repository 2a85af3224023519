"""Readers: each format against a hand-worked table, each malformed file against the line its message must name."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from research.errors import InputError
from research.text.sources import Options, hub, read

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"

GOOD = {
    "csv quotes, line ends and a mark": (
        "a.csv",
        '\ufefftext,label\r\n"He said ""no"",\nthen left",A\r\nyes,B\r\n\r\n',
        {},
        [(2, {"text": 'He said "no",\nthen left', "label": "A"}), (4, {"text": "yes", "label": "B"})],
    ),
    "csv without header": (
        "a.csv",
        "x;1\n",
        {"header": False, "columns": ("text", "label"), "delimiter": ";"},
        [(1, {"text": "x", "label": "1"})],
    ),
    "tsv takes quotes as they are": ("a.tsv", 'text\tlabel\n"x\t1\n', {}, [(2, {"text": '"x', "label": "1"})]),
    "jsonl": ("a.jsonl", '{"text": "x", "label": [1, true]}\n', {}, [(1, {"text": "x", "label": [1, True]})]),
    "text": ("a.txt", "one\ntwo\n\n", {}, [(1, {"text": "one"}), (2, {"text": "two"})]),
    "text with a pattern": (
        "a.txt",
        "NUM:date When ?\n",
        {"pattern": r"(?P<label>\w+):\w+ (?P<text>.*)"},
        [(1, {"label": "NUM", "text": "When ?"})],
    ),
    "conll with spaces, comments and hash tokens": (
        "a.conll",
        "-DOCSTART- -X- O\n\n# a comment\nEU NNP B\n# # O\n\n\n#tag NN O\n",
        {"columns": ("word", "pos", "ner")},
        [
            (4, {"word": ["EU", "#"], "pos": ["NNP", "#"], "ner": ["B", "O"]}),
            (8, {"word": ["#tag"], "pos": ["NN"], "ner": ["O"]}),
        ],
    ),
    "conll with tabs and a column left out": (
        "a.conll",
        "#\tO\tx\na b\tB\ty\n",
        {"columns": ("word", "ner")},
        [(1, {"word": ["#", "a b"], "ner": ["O", "B"]})],
    ),
}


@pytest.mark.parametrize("case", GOOD)
@pytest.mark.parametrize("packed", [False, True])
def test_formats(tmp_path, case, packed):
    name, content, options, rows = GOOD[case]
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    assert [tuple(row) for row in read(path, Options(**options))] == rows


BAD = {
    "fields": ("a.csv", 'text,label\nx,1\n"a\nb",2,3\n', {}, "a.csv, line 3: 3 fields for the columns text, label"),
    "empty row": ("a.csv", "text,label\n\nx,1\n", {}, "line 2: 0 fields"),
    "open quote": ("a.csv", 'text,label\n"x,1\n', {}, "line 2: unexpected end of data"),
    "twice": ("a.csv", "text,text\n", {}, "line 1: the header names one column twice"),
    "header": ("a.csv", "text,tag\n", {"columns": ("text", "label")}, "line 1: the header is"),
    "nameless": ("a.csv", "x,1\n", {"header": False}, "names of its columns"),
    "encoding": ("a.txt", "one\ncaf\udce9\n", {}, r"a.txt, line 2: not utf-8; set encoding \(perhaps latin-1\)"),
    "no encoding": ("a.txt", "one\n", {"encoding": "latin-x"}, "unknown encoding 'latin-x'"),
    "json": ("a.jsonl", '{"text": 1}\n{"text" 1}\n', {}, "a.jsonl, line 2: not JSON .*column 9"),
    "json empty": ("a.jsonl", '{"text": 1}\n\n{}\n', {}, "line 2: not JSON"),
    "json list": ("a.jsonl", "[1]\n", {}, "line 1: a JSON object is expected"),
    "mismatch": ("a.txt", "A: x\nB x\n", {"pattern": r"(?P<label>\w): (?P<text>.*)"}, "line 2: 'B x' does not match"),
    "no groups": ("a.txt", "x\n", {"pattern": ".*"}, "names no group"),
    "no pattern": ("a.txt", "x\n", {"pattern": "(?P<text>"}, "not a regular expression"),
    "conll": ("a.conll", "EU B\nrejects\n", {"columns": ("word", "ner")}, "a.conll, line 2: 1 fields, expected 2"),
    "conll columns": ("a.conll", "EU B\n", {}, "names of its columns"),
    "parquet": ("a.parquet", "PAR1 not really", {}, "a.parquet, after row 0: not readable as Parquet"),
    "useless option": ("a.jsonl", "{}\n", {"delimiter": ";"}, "option delimiter has no meaning for the format jsonl"),
    "unknown format": ("a.xyz", "", {}, "does not tell the format"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_files_are_refused_by_line(tmp_path, case):
    name, content, options, message = BAD[case]
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message):
        list(read(path, Options(**options)))


def test_damaged_gzip_and_latin1(tmp_path):
    path = tmp_path / "a.txt.gz"
    whole = gzip.compress("café\n".encode("latin-1") * 50_000)
    path.write_bytes(whole)
    assert next(read(path, Options(encoding="latin-1"))).values == {"text": "café"}
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged gzip"):
        list(read(path, Options(encoding="latin-1")))


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": "x", "label": 1}, {"text": "y", "label": 0}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [tuple(row) for row in read(tmp_path / "a.parquet", Options())] == [(1, rows[0]), (2, rows[1])]


def test_hub_data_sets_name_their_classes(monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, -1]}, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [row.values for row in hub("hf:org/name@v1?config=c", "validation")] == [
        {"text": "x", "label": "yes"},
        {"text": "y", "label": -1},
    ]
    list(hub("hf:name?split=test", "train"))
    assert asked == [
        (("org/name", "c"), {"split": "validation", "revision": "v1"}),
        (("name", None), {"split": "test", "revision": None}),
    ]
    with pytest.raises(InputError, match="unknown key 'confg'. Did you mean 'config'"):
        list(hub("hf:name?confg=c", "train"))


def test_the_hub_of_data_sets_without_a_network(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="hf:no-such/thing could not be loaded.*local files"):
        list(hub("hf:no-such/thing", "train"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data sets in ../shared/data")
@pytest.mark.parametrize(
    "path, options, sentences, words",
    [
        ("wnut17/wnut17train.conll", {"columns": ("word", "tag")}, 3394, 62730),
        ("wnut17/emerging.test.annotated", {"format": "conll", "columns": ("word", "tag")}, 1287, 23394),
        ("ud_ewt/en_ewt-ud-test.conllu.gz", {}, 2077, 25094),
    ],
)
def test_published_counts_of_sentences_and_words(path, options, sentences, words):
    rows = [row.values for row in read(SHARED / path, Options(**options))]
    column = "word" if "columns" in options else "form"
    assert (len(rows), sum(len(row[column]) for row in rows)) == (sentences, words)
