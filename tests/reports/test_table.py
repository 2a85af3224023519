"""Rows, intervals and significance against answers worked by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from research.errors import InputError
from research.metrics.classification import accuracy
from research.metrics.intervals import hierarchical
from research.reports import build, load_run, load_runs, to_markdown

RIGHT = ["LOC"] * 30


def wrong_on(count: int) -> list[str]:
    """Predictions for RIGHT that miss the first `count`."""
    return ["HUM"] * count + RIGHT[count:]


def by_label(table):
    return {row.label: row for row in table.rows}


def edit(directory, **changes):
    path = directory / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_significance_matches_the_exact_test_and_holm(tmp_path, make_run):
    """Systems that only lose, on k examples, have p = 2 / 2^k; Holm multiplies the smallest of three by 3, the next by 2."""
    for tuning, misses in (("full", 0), ("lora", 5), ("bitfit", 8), ("head", 10)):
        make_run(tmp_path, tuning, 0, references=RIGHT, predictions=wrong_on(misses))
    rows = by_label(build(load_runs(tmp_path), baseline={"tuning": "full"}, metrics=["accuracy"]))
    expected = {"head": 3 * 2 / 2**10, "bitfit": 2 * 2 / 2**8, "lora": 2 / 2**5}
    assert {label: row.metrics["accuracy"].p for label, row in rows.items()} == pytest.approx({**expected, "full": None})
    assert {label: row.mark for label, row in rows.items()} == {"full": "", "lora": "", "bitfit": "†", "head": "‡"}
    assert [label for label, row in rows.items() if row.baseline] == ["full"]


def test_seeds_are_averaged_and_the_interval_is_the_crossed_bootstrap(tmp_path, make_run):
    for seed, misses in enumerate((2, 5, 8)):
        make_run(tmp_path, "lora", seed, references=RIGHT, predictions=wrong_on(misses))
    table = build(load_runs(tmp_path), metrics=["accuracy"], resamples=500, seed=3)
    found = table.rows[0].metrics["accuracy"]
    assert found.mean == pytest.approx(np.mean([28, 25, 22]) / 30)
    predictions = np.array([wrong_on(misses) for misses in (2, 5, 8)])
    oracle = hierarchical(predictions, accuracy, references=RIGHT, resamples=500, seed=3)
    assert (found.low, found.high, found.over) == (oracle.low, oracle.high, "seeds and examples")
    assert table.rows[0].seeds == 3 and "crossed bootstrap over seeds and test examples, 500 resamples" in table.notes[0]


def test_one_seed_has_an_interval_over_examples(tmp_path, make_run):
    make_run(tmp_path, "lora", 0, references=RIGHT, predictions=wrong_on(6))
    table = build(load_runs(tmp_path), metrics=["accuracy"])
    found = table.rows[0].metrics["accuracy"]
    assert found.low < 0.8 < found.high and found.over == "examples" and table.notes[0].startswith("One run with 95 % interval")


def test_without_usable_predictions_the_interval_is_students_t(tmp_path, make_run):
    """Predictions that are gone, or that do not give the reported number, cannot stand for it."""
    missing = [make_run(tmp_path, "lora", seed, references=RIGHT, predictions=wrong_on(3 * seed)) for seed in (0, 1)]
    for directory in missing:
        (directory / "predictions.jsonl").unlink()
    other = [make_run(tmp_path, "full", seed, references=RIGHT, predictions=RIGHT) for seed in (0, 1)]
    for directory, value in zip(other, (0.7, 0.8), strict=True):
        edit(directory, metrics={"accuracy": value})
    table = build(load_runs(tmp_path), baseline={"tuning": "full"}, metrics=["accuracy"])
    for row, values in ((by_label(table)["lora"], (1.0, 0.9)), (by_label(table)["full"], (0.7, 0.8))):
        half = stats.t.ppf(0.975, 1) * np.std(values, ddof=1) / math.sqrt(2)
        found = row.metrics["accuracy"]
        assert (found.low, found.high) == pytest.approx((np.mean(values) - half, np.mean(values) + half))
        assert found.over == "seeds" and found.p is None
    assert "Student's t" in table.notes[0] and "No row could be compared" in table.notes[1]


def test_an_undefined_metric_is_shown_as_such(tmp_path, make_run):
    """A correlation with constant predictions is nan: no rank, no interval, no mark, and the others are not disturbed."""
    for tuning, value in (("full", float("nan")), ("lora", 0.5), ("head", 0.25)):
        for seed in (0, 1):
            edit(make_run(tmp_path, tuning, seed, 20), metrics={"pearson": value})
    table = build(load_runs(tmp_path), baseline={"tuning": "full"}, metrics=["pearson"])
    assert {row.label: table.rank("pearson", row) for row in table.rows} == {"full": 0, "lora": 1, "head": 2}
    assert by_label(table)["full"].metrics["pearson"].low is None and "| full | – |" in to_markdown(table)


def test_failed_and_unfinished_runs_are_listed_and_counted(runs, make_run):
    (make_run(runs, "head", 7) / "result.json").unlink()
    checkpoint = runs / "runs" / "full-0" / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")  # inside a run, so no run of its own
    table = build(load_runs(runs), baseline={"tuning": "full"})
    assert sorted(table.problem_lines) == [
        "head-7 unfinished: it left no result.json: interrupted, or still running",
        "trec-lora (tuning lora, seed 2) failed: NaN loss at step 41; last good checkpoint: step 40",
    ]
    assert by_label(table)["lora"].seeds_text == "2 of 3" and by_label(table)["full"].seeds_text == "2"


def test_the_baseline_is_sought_within_the_other_keys(tmp_path, make_run):
    for task, misses in (("a", 9), ("b", 1)):
        make_run(tmp_path, "full", 0, references=RIGHT, predictions=RIGHT, task=task)
        make_run(tmp_path, "lora", 0, references=RIGHT, predictions=wrong_on(misses), task=task)
    table = build(load_runs(tmp_path), rows=("task", "tuning"), baseline={"tuning": "full"}, metrics=["accuracy"])
    marks = {row.label: (row.baseline, row.metrics["accuracy"].p) for row in table.rows}
    assert marks == {
        "a, full": (True, None),
        "b, full": (True, None),
        "a, lora": (False, pytest.approx(2 * 2 / 2**9)),
        "b, lora": (False, 1.0),
    }


def test_a_row_is_found_in_the_configuration_where_the_sweep_did_not_choose(runs):
    table = build(load_runs(runs), rows=("optimizer.kind", "tuning"), metrics=["accuracy"])
    assert len(table.rows) == 5 and all(row.keys["optimizer.kind"] == "adamw" for row in table.rows)
    assert all(row.metrics["accuracy"].p is None and not row.baseline and not row.mark for row in table.rows)


def test_input_that_would_mislead_is_refused(runs, make_run):
    records = load_runs(runs)
    for options, message in (
        ({"metrics": ["acuracy"]}, r"no test metric 'acuracy'.*Did you mean 'accuracy'"),
        ({"rows": ("tunning",)}, r"no choice or configuration key 'tunning'.*Did you mean 'tuning'"),
        ({"baseline": {"tuning": "none"}}, r"no finished row is the baseline tuning none; the rows are: .*full"),
        ({"baseline": {"task": "a"}}, r"the baseline names 'task', which is no row key"),
        ({"rows": ("seed",)}, r"would average over 'tuning', which is not a seed"),
        ({"rows": ()}, r"at least one row key"),
    ):
        with pytest.raises(InputError, match=message):
            build(records, **options)
    with pytest.raises(InputError, match="same seed 0"):
        build([*records, load_run(make_run(runs / "again", "full", 0, 200))])
    with pytest.raises(InputError, match="none of the 1 runs finished"):
        build([run for run in records if not run.done])


def test_damaged_run_directories_name_the_file_and_line(tmp_path, make_run):
    with pytest.raises(InputError, match="holds no run"):
        load_runs(tmp_path)
    with pytest.raises(InputError, match="is not a run"):
        load_run(tmp_path)
    directory = make_run(tmp_path, "lora", 0, 20)
    (directory / "predictions.jsonl").write_text('{"index": 0, "reference": 1, "prediction": 1}\n{"index": 1}\n')
    with pytest.raises(InputError, match=r"predictions.jsonl, line 2: expected an object with index, reference, prediction"):
        build([load_run(directory)])
    (directory / "result.json").write_text('{"status": "do')
    with pytest.raises(InputError, match=r"result.json is not valid JSON"):
        load_run(directory)
