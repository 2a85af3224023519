"""A sweep on paper: what the grid expands to, how flags change it, and that every mistake is found before anything runs."""

from __future__ import annotations

import pytest

from experiments.flags import split
from experiments.plan import locate, named, plan
from research.errors import InputError
from research.fragments import parse_yaml


def planned(sandbox, line: str = "", text: str | None = None):
    if text is not None:
        sandbox.file.write_text(text)
    return plan(sandbox.file, split(line.split(), ())[1], ["--jobs"])


def refused(*args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        planned(*args, **kwargs)
    return str(caught.value)


def test_grid_times_seeds_with_what_goes_with_a_choice(sandbox):
    made = planned(sandbox)
    assert [cell.name for cell in made.cells] == [f"{kind}-seed{seed}" for kind in ("full", "head", "lora") for seed in (0, 1)]
    assert [cell.run.optimizer.learning_rate for cell in made.cells[::2]] == [1e-4, 5e-5, 1e-3]
    last = made.cells[-1]
    assert (last.run.tuning.rank, last.run.seed, dict(last.choices)) == (4, 1, {"tuning": "lora", "seed": 1})
    assert last.directory == f"lora-seed1-{last.run.id}"
    assert (made.rows, made.metrics, made.title) == (("tuning",), ("accuracy", "macro_f1"), "which")


def test_a_shipped_sweep_is_found_by_name_and_all_of_them_expand():
    made = plan(locate("trec_strategies"))
    assert len(made.cells) == 10 and len({cell.run.id for cell in made.cells}) == 10
    assert {cell.run.tuning.kind for cell in made.cells} == {"full", "head", "bitfit", "layernorm", "lora"}
    runs = [cell.run for cell in made.cells]
    assert {(run.training.epochs, run.batches.kind, run.batches.size) for run in runs} == {(2, "packed", 32)}
    assert len(made.sweep.samples) == 3 and made.sweep.report.baseline == {"tuning": "full"}
    assert named(locate("trec_strategies")) == "trec_strategies"


def test_a_flag_that_names_an_axis_gives_its_values(sandbox):
    made = planned(sandbox, "--seed 3,4,5 --tuning lora bitfit")
    assert [cell.name for cell in made.cells] == [f"{kind}-seed{seed}" for kind in ("lora", "bitfit") for seed in (3, 4, 5)]
    assert made.cells[0].run.tuning.rank == 4 and made.cells[-1].run.optimizer.learning_rate == 5e-5


def test_any_other_flag_wins_over_the_file(sandbox):
    made = planned(sandbox, "--optimizer.learning-rate 7e-4 --training.epochs 3 --task.data.train my.csv --batches padded")
    runs = [cell.run for cell in made.cells]
    found = {(run.optimizer.learning_rate, run.training.epochs, run.task.data.train, run.batches.kind) for run in runs}
    assert found == {(7e-4, 3, "my.csv", "padded")}


def test_axes_of_dotted_keys_mappings_and_labels(sandbox):
    text = """
base: {task: csv, tuning: lora}
grid:
  tuning.rank: [2, 4]
  optimizer: {slow: {base: adamw, learning_rate: 1e-5}, lion: lion}
"""
    made = planned(sandbox, text=text)
    assert [cell.name for cell in made.cells] == ["rank2-slow", "rank2-lion", "rank4-slow", "rank4-lion"]
    assert [(cell.run.tuning.rank, cell.run.optimizer.kind) for cell in made.cells[1:3]] == [(2, "lion"), (4, "adamw")]
    assert dict(made.cells[0].choices) == {"tuning.rank": 2, "optimizer": "slow"} and made.rows == ("tuning.rank", "optimizer")
    made = planned(sandbox, text="base: {task: csv}\ngrid: {tuning.rank: [2, 4], tuning: [lora]}")
    assert [cell.run.tuning.rank for cell in made.cells] == [2, 4]  # the fragment is laid first, whatever the order of the axes
    made = planned(sandbox, text="base: {task: csv}\ngrid: {tuning: [[lora, bitfit], {base: lora, rank: 2}]}")
    assert [cell.choices["tuning"] for cell in made.cells] == ["lora + bitfit", "lora rank 2"]
    assert [cell.name for cell in made.cells] == ["lora_bitfit", "lora_rank_2"]


BASE = "base: {task: csv}\n"


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        (
            None,
            "--tuning full lroa",
            "cell tuning lroa, seed 0: --tuning: there is no 'lroa' in configs/tuning. Did you mean 'lora'?",
        ),
        (None, "--tuning.rank 8", "cell tuning full, seed 0: --tuning.rank: there is no key tuning.rank. Known: kind."),
        (None, "--sede 3", "unknown option --sede. Did you mean '--seed'?"),
        (None, "--job 3", "unknown option --job. Did you mean '--jobs'?"),
        (None, "--seed 0 0", "--seed holds a value twice: 0, 0."),
        (BASE + "grid: {tuning: []}", "", "F: grid.tuning holds no value."),
        (BASE + "grid: {tuning: [full]}\ngird: 3", "", "F: there is no key gird. Did you mean 'grid'?"),
        (BASE, "", "F: grid is missing."),
        (
            BASE + "grid: {optimizer.learning_rate: [1e-3, fast]}",
            "",
            "cell optimizer.learning_rate fast: F: grid.optimizer.learning_rate: optimizer.learning_rate should be a valid "
            "number, not 'fast'.",
        ),
        (
            BASE + "grid: {tuning: [full]}\nwith: {tunign: {full: {seed: 1}}}",
            "",
            "F: with.tunign belongs to no axis of the grid. Did you mean 'tuning'?",
        ),
        (
            BASE + "grid: {tuning: [full]}\nwith: {tuning: {ful: {seed: 1}}}",
            "",
            "F: with.tuning.ful belongs to no value of grid.tuning. Did you mean 'full'?",
        ),
        (
            BASE + "grid: {tuning: [full], seed: [0]}\nwith: {tuning: {full: {seed: 1}}}",
            "",
            "F: with.tuning.full sets seed, which is an axis of the grid.",
        ),
        (BASE + "grid: {tuning: [full, {kind: full}]}", "", "F: grid.tuning holds a value twice: full, full."),
        (BASE + "grid: {tuning: {a: full, b: full}}", "", "cells a and b are the same run."),
        (
            BASE + "grid: {tuning: [full]}\nreport: {metrics: [acuracy]}",
            "",
            "F: cell full has no metric 'acuracy'. Did you mean 'accuracy'?",
        ),
        (
            BASE + "grid: {tuning: [full]}\nreport: {rows: [seed]}",
            "",
            "F: report.rows must name every axis but the seed; tuning is absent.",
        ),
        (
            BASE + "grid: {tuning: [full]}\nreport: {baseline: {tunig: full}}",
            "",
            "F: report.baseline names tunig, which is none of the rows. Did you mean 'tuning'?",
        ),
    ],
)
def test_every_mistake_is_told_before_anything_runs(sandbox, text, line, sentence):
    from research.fragments import shown

    told = refused(sandbox, line, text)
    told = told.split(" Known: ")[0] + (" Known: kind." if "Known: kind." in told else "")
    assert told == sentence.replace("F:", f"{shown(sandbox.file)}:")


def test_an_unknown_sweep_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'trec_strategies'"):
        locate("trec_strategy")


def test_the_copied_yaml_is_the_one_that_was_read(sandbox):
    assert parse_yaml(sandbox.file.read_text(), "x")["question"] == planned(sandbox).sweep.question
