"""Configs from YAML: every shipped fragment builds; names, layers and origins; one exact sentence for each kind of mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from research.config import fingerprint, validated
from research.errors import InputError
from research.fragments import ROOMS, Draft, configs, find, names, parse_yaml, read_yaml
from research.run import Run

SHIPPED = [(room, name) for room, folder in ROOMS.items() for name in names(folder)]


def built(**values) -> Run:
    return Draft.of({"task": "trec", **values}, "here.yaml").validated()


def refused(**values) -> str:
    with pytest.raises(InputError) as caught:
        built(**values)
    return str(caught.value)


# ---- what is shipped ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("room", "name"), SHIPPED, ids=lambda part: part)
def test_every_shipped_fragment_builds(room, name):
    run = built(**{room: name})
    values = read_yaml(configs() / ROOMS[room] / f"{name}.yaml")
    kept = run.model_dump(mode="json")[room]
    for key in values.keys() - {"data", "objective"}:  # what the file says is what the run holds, and is not dropped
        assert kept[key] == values[key] or isinstance(values[key], dict), key


def test_a_run_survives_json():
    run = built(tuning=["lora", "bitfit"], select={"optimizer.learning_rate": [1e-4, 1e-3]})
    again = validated(Run, run.model_dump(mode="json"))
    assert (again, again.id) == (run, run.id)


def test_every_shipped_run_builds():
    for name in names("experiments"):
        path = find("experiments", name, "test")
        assert Draft.of(read_yaml(path), name, path.parent).validated().id


# ---- names, layers ----------------------------------------------------------------------------------------------------
def test_a_room_takes_names_files_mappings_bases_and_compositions(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: lora\nrank: 2\n")
    mine = Draft.of({"task": "trec", "tuning": "./mine.yaml"}, "x", tmp_path).validated().tuning
    assert (mine.kind, mine.rank, mine.alpha) == ("lora", 2, 16)
    assert built(tuning={"base": "lora", "rank": 3}).tuning.rank == 3
    assert built(tuning={"kind": "lora"}).tuning.targets == (".*/(query|value)/kernel",)
    parts = built(tuning=["bitfit", {"base": str(tmp_path / "mine.yaml"), "alpha": 4}]).tuning.parts
    assert [part.kind for part in parts] == ["bitfit", "lora"] and (parts[1].rank, parts[1].alpha) == (2, 4)


def test_values_lie_over_defaults_and_a_new_fragment_replaces_the_old():
    run = built(**{"optimizer": {"learning_rate": 1e-3}, "training.epochs": 5, "task.data.limit": 7})
    assert (run.optimizer.learning_rate, run.optimizer.weight_decay, run.training.epochs) == (1e-3, 0.01, 5)
    assert (run.task.data.limit, run.task.data.deduplicate) == (7, "row")
    draft = Draft.of({"task": "trec", "tuning": "lora"}, "x")
    draft.put(("tuning",), "head", "y")
    assert draft.validated().tuning.kind == "head"  # no rank is left over, which would be refused


def test_a_model_may_be_a_reference_and_then_has_no_hash_of_the_default(tmp_path):
    assert built(model="hf:org/name").model.model_dump() == {"reference": "hf:org/name", "sha256": None}
    assert built(model=str(tmp_path)).model.reference == str(tmp_path)
    assert built(model={"reference": "x"}).model.sha256 is None


def test_keys_of_select_keep_their_dots():
    assert built(**{"select.optimizer.learning_rate": [1, 2]}).select == {"optimizer.learning_rate": (1, 2)}


def test_a_copy_of_a_draft_is_its_own():
    draft = Draft.of({"task": "trec", "training": {"epochs": 1}}, "x")
    draft.copy().put(("training", "epochs"), 9, "y")
    assert draft.validated().training.epochs == 1


# ---- YAML -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("1e-3", 1e-3),
        ("-1.5E+2", -150.0),
        (".5", 0.5),
        ("3", 3),
        ("-4", -4),
        ("007", "007"),
        ("1_000", 1000),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("1e", "1e"),
        ("e5", "e5"),
        (".inf", float("inf")),
        ("[1e-4, no]", [1e-4, "no"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_yaml_scalars(text, value):
    found = parse_yaml(text, "x")
    assert (found, type(found)) == (value, type(value))


def test_yaml_reads_what_pyyaml_writes():
    values = {"rate": 5e-5, "large": 1e20, "flag": True, "word": "yes", "number": "12", "nothing": None, "list": [1, 2.5]}
    assert parse_yaml(yaml.safe_dump(values), "x") == values


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: [1,\n", "f.yaml, line 3: expected the node content, but found '<stream end>'."),
        ("a:\n  b: 1\n  b: 2\n", "f.yaml, line 3: the key 'b' stands twice."),
        ("a: 1\n b: 2\n", "f.yaml, line 2: mapping values are not allowed here."),
        ("- 1\n", "f.yaml must hold a mapping of keys to values, not [1]."),
    ],
)
def test_bad_yaml_names_file_and_line(text, sentence):
    with pytest.raises(InputError) as caught:
        Draft.of(parse_yaml(text, "f.yaml"), "f.yaml")
    assert str(caught.value) == sentence


# ---- one sentence for each mistake --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"tuning": "lroa"}, "here.yaml: there is no 'lroa' in configs/tuning. Did you mean 'lora'?"),
        ({"tuning": {"base": "lora", "rnak": 4}}, "here.yaml: there is no key tuning.rnak. Did you mean 'rank'?"),
        ({"tuning": {"base": "lora", "rank": "four"}}, "here.yaml: tuning.rank should be a valid integer, not 'four'."),
        ({"tuning": {"base": "lora", "rank": 0}}, "here.yaml: tuning.rank should be greater than 0, not 0."),
        ({"tuning": {"kind": "lroa"}}, "here.yaml: tuning: unknown kind 'lroa' of strategy. Did you mean 'lora'?"),
        ({"tuning": 3}, "here.yaml: tuning must be a name, a file or a mapping, not 3."),
        ({"tuning": "no_such.yaml"}, "here.yaml: there is no file no_such.yaml."),
        ({"trainning": {"epochs": 1}}, "here.yaml: there is no key trainning. Did you mean 'training'?"),
        (
            {"training": {"accumulate": "some"}},
            "here.yaml: training.accumulate should be a valid integer or 'auto', not 'some'.",
        ),
        ({"task.data.hold_out.devv": 3}, "here.yaml: there is no key task.data.hold_out.devv. Did you mean 'dev'?"),
        (
            {"optimizer": {"base": "lion", "epsilon": 1}},
            "here.yaml: optimizer: optimizer lion has no option 'epsilon'. "
            "Known: betas, clip, groups, kind, learning_rate, schedule, weight_decay.",
        ),
        ({"optimizer": {"kind": "adamw"}}, "here.yaml: optimizer.learning_rate is missing."),
        ({"optimizer.groups": [{"patern": "x"}]}, "here.yaml: optimizer.groups.0.pattern is missing."),
        ({"seed": 3, "seed.x": 1}, "here.yaml: there is no seed.x, since seed is 3 and no mapping."),
        ({"task": {"base": "trec", "data": {"labels": ["A", "A"]}}}, "here.yaml: task.data: labels names a class twice."),
    ],
)
def test_mistakes_are_told_exactly(values, sentence):
    assert refused(**values) == sentence


def test_no_task_is_told_with_the_tasks_there_are():
    with pytest.raises(InputError, match=r"^the run has no task; name one \(--task\): cb, csv, "):
        Draft.of({}, "x").validated()


def test_a_fragment_that_is_its_own_base_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("base: ./b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: ./a.yaml\n")
    with pytest.raises(InputError, match="is its own base"):
        Draft.of({"tuning": str(tmp_path / "a.yaml")}, "x")


def test_configs_are_found_in_an_installed_package(tmp_path, monkeypatch):
    installed = tmp_path / "research/_configs/tuning"
    installed.mkdir(parents=True)
    (installed / "own.yaml").write_text("kind: head\n")
    monkeypatch.setattr("research.fragments.__file__", str(tmp_path / "research/fragments.py"))
    assert configs() == Path(tmp_path / "research/_configs") and names("tuning") == ["own"]


def test_fingerprints_look_at_values_only():
    assert fingerprint({"a": 1, "b": [1.5]}) == fingerprint({"b": [1.5], "a": 1}) != fingerprint({"a": 2, "b": [1.5]})
    assert built(tracking={"trackio": True}).id == built().id != built(seed=1).id
