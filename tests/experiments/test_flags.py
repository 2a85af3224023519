"""The command line as values: which words belong to whom, and what they mean to the field that takes them."""

from __future__ import annotations

import pytest

from experiments.flags import Flag, resolve, split
from experiments.usage import concrete
from research.errors import InputError
from research.fragments import Draft


def run(line: str):
    return resolve(Draft.of({"task": "trec"}, "x"), split(line.split(), ())[1])


def refused(line: str) -> str:
    with pytest.raises(InputError) as caught:
        run(line)
    return str(caught.value)


def test_split_leaves_a_command_its_own_options():
    line = "run.yaml --directory d --json --tuning.rank 4 --task.data.labels a b --jobs=2 --x.y=-1 --optimizer.clip -.5"
    mine, flags = split(line.split(), {"--directory", "--jobs"}, {"--json"})
    assert mine == ["run.yaml", "--directory", "d", "--json", "--jobs=2"]
    assert flags == [
        Flag("--tuning.rank", ("tuning", "rank"), ("4",)),
        Flag("--task.data.labels", ("task", "data", "labels"), ("a", "b")),
        Flag("--x.y", ("x", "y"), ("-1",)),
        Flag("--optimizer.clip", ("optimizer", "clip"), ("-.5",)),
    ]
    with pytest.raises(InputError, match="--json takes no further value, but 'x' follows it"):
        split(["--json", "x"], (), {"--json"})
    with pytest.raises(InputError, match="unknown option -j"):
        split(["-j", "2"], ("--jobs",))


def test_a_word_means_what_the_field_takes():
    got = run(
        "--tuning lora --tuning.rank 16 --optimizer.learning-rate 1e-4 --optimizer.betas 0.8 0.9 --policy.remat none "
        "--task.data.labels 0 1 no --task.data.text 3 --task.data.columns one --task.data.no-header "
        "--task.data.pair None --training.accumulate auto --select.optimizer.learning_rate 1e-4 1e-3 "
        "--task.data.rename 0 neg 1 pos --tuning.rank-stabilized"
    )
    tuning, data = got.tuning, got.task.data
    assert (tuning.rank, tuning.rank_stabilized) == (16, True)
    assert (got.optimizer.learning_rate, got.optimizer.betas) == (1e-4, (0.8, 0.9))
    assert (data.labels, data.text, data.columns, data.header, data.pair) == (("0", "1", "no"), "3", ("one",), False, None)
    assert (got.training.accumulate, got.policy.remat, data.rename) == ("auto", "none", {"0": "neg", "1": "pos"})
    assert got.select == {"optimizer.learning_rate": (1e-4, 1e-3)}


def test_words_that_yaml_would_take_apart_stay_whole():
    got = run("--tuning lora --tuning.targets .*/(query|value)/kernel *x [0-9]+ --task.data.pattern (?P<text>.*)#x")
    assert got.tuning.targets == (".*/(query|value)/kernel", "*x", "[0-9]+") and got.task.data.pattern == "(?P<text>.*)#x"


def test_fragments_come_first_wherever_they_stand():
    assert run("--tuning.rank 3 --optimizer.weight-decay 0.5 --tuning lora --optimizer lion").model_dump(
        include={"tuning": {"rank"}, "optimizer": {"kind", "weight_decay"}}
    ) == {"tuning": {"rank": 3}, "optimizer": {"kind": "lion", "weight_decay": 0.5}}
    assert {part.kind for part in run("--tuning lora bitfit").tuning.parts} == {"lora", "bitfit"}
    assert run("--optimizer.kind lion").optimizer.betas == (0.9, 0.99)  # adamw's are no leftovers


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--tuning lroa", "--tuning: there is no 'lroa' in configs/tuning. Did you mean 'lora'?"),
        ("--tuning lora --tuning.rnak 4", "--tuning.rnak: there is no key tuning.rnak. Did you mean 'rank'?"),
        ("--tuning lora --tuning.rank x", "--tuning.rank: tuning.rank should be a valid integer, not 'x'."),
        ("--tuning lora --tuning.rank", "--tuning.rank needs a value."),
        ("--seed 1 2", "--seed: seed should be a valid integer, not [1, 2]."),
        (
            "--optimizer.schedule.kind wsdd",
            "--optimizer.schedule.kind: optimizer.schedule: unknown schedule kind 'wsdd'. Did you mean 'wsd'?",
        ),
        (
            "--task.objective.kind multilable",
            "--task.objective.kind: task.objective: unknown kind 'multilable' of objective. Did you mean 'multilabel'?",
        ),
    ],
)
def test_mistakes_name_the_flag(line, sentence):
    assert refused(line) == sentence


def test_help_is_of_the_classes_that_were_chosen():
    chosen = run("--tuning lora --batches buckets")
    cls, same = concrete(chosen)
    assert cls.model_fields["tuning"].annotation is type(chosen.tuning) and same.model_dump() == chosen.model_dump()
    inner = cls.model_fields["task"].annotation.model_fields["objective"].annotation
    assert inner is type(chosen.task.objective)
