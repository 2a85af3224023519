"""Tasks: what a YAML says against hand-worked examples; held-out sets against their promises; every complaint."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pydantic
import pytest
import yaml

from research.errors import InputError
from research.text.data import Data, load

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT / ".." / "shared" / "data"
TASKS = sorted((ROOT / "configs/tasks").glob("*.yaml"))


def task(name: str, **changes) -> Data:
    return Data(**yaml.safe_load((ROOT / f"configs/tasks/{name}.yaml").read_text())["data"] | changes)


def write(path: Path, rows: list[tuple[str, object]]) -> str:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return str(path)


def numbered_rows(n: int, classes: str = "ab") -> list[tuple[str, object]]:
    return [(f"text {i}", classes[i % len(classes)]) for i in range(n)]


def texts(examples) -> set:
    return {example.text for example in examples}


def test_labels_are_renamed_listed_and_indexed(tmp_path):
    train = write(tmp_path / "a.jsonl", [("x", 1), ("y", "0"), ("z", 1.0), ("x", 1)])
    splits = load(Data(train=train, rename={"0": "negative", "1": "positive"}, labels=("positive", "negative")))
    assert [(e.index, e.text, e.label, e.line) for e in splits.train] == [
        (0, "x", "positive", 1),
        (1, "y", "negative", 2),
        (2, "z", "positive", 3),
        (3, "x", "positive", 4),
    ]
    assert splits.labels == ("positive", "negative") and splits.dev == splits.test == []
    assert load(Data(train=train)).labels == ("0", "1")
    deduplicated = load(Data(train=train, deduplicate="row"))
    assert [e.line for e in deduplicated.train] == [1, 2, 3] and deduplicated.duplicates == 1


def test_every_kind_of_label(tmp_path):
    def labels(rows, **options):
        return [e.label for e in load(Data(train=write(tmp_path / "a.jsonl", rows), **options)).train]

    several = [("x", "b; a"), ("y", ["a", "a"]), ("z", "")]
    assert labels(several, target="classes", separator=";") == [("b", "a"), ("a",), ()]
    assert labels([("x", "1e-1"), ("y", 2)], target="number") == [0.1, 2.0]
    assert labels([(["x", "y"], ["O", "B"])], target="tags") == [("O", "B")]
    assert labels([("x", True)]) == ["true"]
    assert labels([("x", "anything")], label=None) == [None]


def test_held_out_sets_are_disjoint_exact_and_independent_of_file_order(tmp_path):
    rows = numbered_rows(200, "aab")
    data = {"hold_out": {"dev": 0.1, "test": 30}}
    splits = load(Data(train=write(tmp_path / "a.jsonl", rows), **data))
    parts = [texts(part) for part in (splits.train, splits.dev, splits.test)]
    assert list(map(len, parts)) == [150, 20, 30]
    assert set.union(*parts) == {text for text, _ in rows}
    backwards = load(Data(train=write(tmp_path / "b.jsonl", rows[::-1]), **data))
    assert [texts(part) for part in (backwards.train, backwards.dev, backwards.test)] == parts
    again = load(Data(train=str(tmp_path / "a.jsonl"), **data))
    assert again == splits and again.hash == splits.hash != backwards.hash
    other = load(Data(train=str(tmp_path / "a.jsonl"), hold_out={"dev": 0.1, "test": 30, "seed": 1}))
    assert texts(other.test) != parts[2]


def test_stratified_sets_have_the_classes_of_the_whole(tmp_path):
    train = write(tmp_path / "a.jsonl", numbered_rows(200, "aaaaaaabbc"))
    splits = load(Data(train=train, hold_out={"dev": 50, "stratified": True}))
    assert Counter(e.label for e in splits.dev) == {"a": 35, "b": 10, "c": 5}


def test_equal_texts_stay_together_and_no_class_is_lost(tmp_path):
    rows = [(f"text {i // 2}", "a") for i in range(100)] + [("rare", "b"), ("rare too", "c"), ("rare three", "c")]
    for seed in range(5):
        splits = load(Data(train=write(tmp_path / "a.jsonl", rows), hold_out={"dev": 41, "test": 40, "seed": seed}))
        assert not texts(splits.train) & texts(splits.dev) | texts(splits.dev) & texts(splits.test)
        assert {e.label for e in splits.train} == {"a", "b", "c"}
        assert len(splits.dev) in (40, 41) and len(splits.test) in (39, 40)  # pairs fill an odd number but for one


def test_shots_and_limit(tmp_path):
    train = write(tmp_path / "a.jsonl", sorted(numbered_rows(90, "abc"), key=lambda row: row[1]))
    held = {"dev": 20, "test": 20}
    few = [load(Data(train=train, hold_out=held, shots=4, shots_seed=seed)) for seed in (0, 0, 1)]
    assert Counter(e.label for e in few[0].train) == {"a": 4, "b": 4, "c": 4}
    assert [e.index for e in few[0].train] == list(range(12))
    assert few[0].train == few[1].train and texts(few[0].train) != texts(few[2].train)
    assert few[0].dev == few[2].dev and few[0].test == few[2].test  # another draw is tested on the same
    assert not texts(few[2].train) & (texts(few[2].dev) | texts(few[2].test))
    limited = load(Data(train=train, hold_out=held, limit=15))
    assert [len(s) for s in (limited.train, limited.dev, limited.test)] == [15, 15, 15]
    assert {e.label for e in limited.train} == {"a", "b", "c"} == set(limited.labels)
    with pytest.raises(InputError, match="shots: 40 examples of every class are wanted, 'a' has 30"):
        load(Data(train=train, shots=40))


def test_the_hash_names_every_text_and_label(tmp_path):
    rows = numbered_rows(10)
    variants = [
        (rows, {}),
        (rows[:9] + [("text 9", "a")], {}),
        (rows[:9] + [("text 9 ", "b")], {}),
        (rows[:9], {}),
        (rows[::-1], {}),
        (rows, {"labels": ("b", "a")}),
        (rows, {"hold_out": {"dev": 1}}),
    ]
    hashes = {load(Data(train=write(tmp_path / "a.jsonl", changed), **options)).hash for changed, options in variants}
    assert len(hashes) == len(variants)


BAD_ROWS = {
    "empty text": ([("x", "a"), (" ", "b")], {}, r"a.jsonl, line 2: text is empty\."),
    "no label": ([("x", None)], {}, r"a.jsonl, line 1: label is empty\."),
    "no string": ([(3, "a")], {}, "line 1: text is int, not text"),
    "column": ([("x", "a")], {"label": "lable"}, "line 1: there is no column 'lable'. Did you mean 'label'"),
    "unknown label": ([("x", "a"), ("y", "LOK")], {"labels": ("a", "LOC")}, "line 2: unknown label 'LOK'. Did you mean 'LOC'"),
    "no class": ([("x", {"a": 1})], {}, "line 1: label must name a class"),
    "number": ([("x", "high")], {"target": "number"}, "line 1: label must be a number, not 'high'"),
    "infinite": ([("x", "nan")], {"target": "number"}, "label must be a number"),
    "tags": ([(["x", "y"], ["O"])], {"target": "tags"}, "line 1: 2 words but 1 tags"),
    "words": ([("x y", ["O"])], {"target": "tags"}, "line 1: text must be a list"),
    "nothing": ([], {}, "a.jsonl holds no example"),
    "too many": ([("x", "a"), ("y", "a")], {"hold_out": {"test": 2}}, "cannot hold out 2 examples for test"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_refused_by_line(tmp_path, case):
    rows, options, message = BAD_ROWS[case]
    with pytest.raises(InputError, match=message):
        load(Data(train=write(tmp_path / "a.jsonl", rows), **options))


def test_a_label_that_training_lacks_is_refused(tmp_path):
    train = write(tmp_path / "a.jsonl", [("x", "good"), ("y", "bad")])
    dev = write(tmp_path / "d.jsonl", [("x", "bad"), ("z", "goood")])
    with pytest.raises(InputError, match="d.jsonl, line 2: no training example has the label 'goood'. .*'good'"):
        load(Data(train=train, dev=dev))
    with pytest.raises(InputError, match="d.jsonl, line 2: no training example"):
        load(Data(train=train, dev=dev, labels=("good", "bad", "goood")))


@pytest.mark.parametrize(
    "options",
    [
        {"target": "number", "labels": ("a",)},
        {"target": "number", "shots": 2},
        {"separator": ";"},
        {"label": None, "rename": {"0": "a"}},
        {"target": "tags", "pair": "other"},
        {"labels": ("a", "a")},
        {"target": "classes", "hold_out": {"stratified": True}},
        {"hold_out": {"dev": 1.5}},
        {"hold_out": {"dev": -1}},
        {"shots": 0},
        {"tran": "b.csv"},
    ],
)
def test_options_that_would_be_ignored_are_refused(options):
    with pytest.raises(pydantic.ValidationError):
        Data(train="a.csv", **options)


def test_file_options_mean_nothing_to_the_hub():
    with pytest.raises(InputError, match="have no meaning for a data set of the hub"):
        load(Data(train="hf:org/name", encoding="latin-1"))


def test_a_missing_folder_says_which_option_to_set(tmp_path):
    with pytest.raises(InputError, match="trec does not exist.*Set data.directory to the folder that holds train.txt"):
        load(task("trec_official", directory=str(tmp_path / "trec")))


def test_ones_own_csv(tmp_path):
    path = tmp_path / "my.csv"
    lines = [f'{"ham" if i % 4 else "spam"},"message, {i}",-\n' for i in range(40)]
    path.write_text("label,text,note\n" + "".join(lines))
    splits = load(task("csv", train=str(path)))
    assert [len(s) for s in (splits.train, splits.dev, splits.test)] == [32, 4, 4]
    assert splits.labels == ("ham", "spam")


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_shipped_tasks_are_valid(path):
    content = yaml.safe_load(path.read_text())
    Data(**content["data"])
    assert set(content) == {"data", "objective", "max_length", "metric"}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data sets in ../shared/data")
@pytest.mark.parametrize(
    "name, folder, sizes, first",
    [
        ("trec_official", "trec", (4882, 500, 500), ("How did serfdom develop in and then leave Russia ?", None, "DESC")),
        (
            "sst2",
            "sst2",
            (6920, 872, 1821),
            (
                "a stirring , funny and finally transporting re imagining of beauty and the beast and 1930s horror films",
                None,
                "positive",
            ),
        ),
        (
            "rte",
            "superglue",
            (2240, 250, 277),
            (
                "No Weapons of Mass Destruction Found in Iraq Yet.",
                "Weapons of Mass Destruction Found in Iraq.",
                "not_entailment",
            ),
        ),
        (
            "cb",
            "superglue",
            (200, 50, 56),
            (
                "It was a complex language. Not written down but handed down. One might say it was peeled down.",
                "the language was peeled down",
                "entailment",
            ),
        ),
    ],
)
def test_real_tasks(name, folder, sizes, first):
    splits = load(task(name, directory=str(SHARED / folder)))
    assert (len(splits.train), len(splits.dev), len(splits.test)) == sizes
    assert (splits.train[0].text, splits.train[0].pair, splits.train[0].label) == first


def test_trec_from_the_package(cached):
    data = task("trec")
    cached(*data.train.split("#sha256="))
    splits = load(data)
    assert (len(splits.train), len(splits.dev), len(splits.test), splits.duplicates) == (4382, 500, 500, 15452 - 5382)
    assert len(texts([*splits.train, *splits.dev, *splits.test])) == 5381
    assert not texts(splits.train) & (texts(splits.dev) | texts(splits.test))
