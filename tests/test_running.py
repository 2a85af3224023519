"""Fine-tuning as a whole on the toy task: what is chosen by what, what is refused, and what a finished run is good for."""

from __future__ import annotations

import json
import shutil
import time

import jax
import numpy as np
import pytest

from research import setting
from research.errors import InputError
from research.running import finetune
from research.sharding.mesh import data_mesh, replicate
from research.text.splits import Example
from research.trained import Trained
from research.training import loop
from research.training.accumulation import fitting, needed
from research.training.loop import Diverged
from research.training.optimizer import build
from research.training.state import State
from research.training.step import train_step
from research.training.tracking import read
from tests.toy import sentences, start, toy_run, write_csv

DEV, TEST = 22, 18


def task(toy, **changes):
    """The toy task with another number of test examples than of dev examples."""
    data = {"train": str(toy / "toy.csv"), "hold_out": {"dev": DEV, "test": TEST}} | changes.pop("data", {})
    return {"data": data, "objective": "classification", "max_length": 16} | changes


def quiet(run, directory, **options):
    return finetune(run, directory, progress=False, **options)


@pytest.fixture
def looked_at(monkeypatch):
    """How many examples every prediction was made for, in order."""
    seen, predict = [], setting.predict

    def counted(step, trainable, frozen, state, loader, mesh):
        seen.append(len(loader.lengths))
        return predict(step, trainable, frozen, state, loader, mesh)

    monkeypatch.setattr(setting, "predict", counted)
    return seen


@pytest.fixture(scope="module")
def done(toy, tmp_path_factory):
    """A finished LoRA run: its directory and result."""
    directory = tmp_path_factory.mktemp("done") / "run"
    run = toy_run(toy, tuning="lora", task=task(toy), training={"epochs": 4, "log_every": 2})
    return directory, quiet(run, directory)


# ---- choosing ------------------------------------------------------------------------------------------------------
def test_learns(toy, tmp_path):
    """The words are told apart: far above a third."""
    result = quiet(toy_run(toy, task=task(toy), training={"epochs": 30, "evaluate_every": 50}), tmp_path / "run")
    assert result["metrics"]["accuracy"] > 0.75 and result["trainable"] == result["parameters"]


def test_best_is_chosen_on_dev_and_test_read_once(toy, tmp_path, looked_at):
    run = toy_run(toy, tuning="lora", task=task(toy), training={"epochs": 4, "log_every": 2})
    result = quiet(run, tmp_path / "run")
    assert looked_at == [DEV] * 4 + [TEST]
    dev = {r["step"]: r for r in read(tmp_path / "run/metrics.jsonl") if r["split"] == "dev"}
    assert list(dev) == [5, 10, 15, 20]
    assert result["best_step"] == max(dev, key=lambda step: dev[step]["accuracy"])  # the first of equals
    assert result["dev"] == {k: dev[result["best_step"]][k] for k in ("accuracy", "macro_f1", "loss")}
    assert len((tmp_path / "run/predictions.jsonl").read_text().splitlines()) == TEST
    assert quiet(run, tmp_path / "run") == result and len(looked_at) == 5  # finished: nothing is read again


def test_early_stopping(toy, tmp_path):
    """A rate that changes nothing: the first evaluation stays best, and patience counts evaluations."""
    optimizer = {"kind": "sgd", "learning_rate": 1e-20}
    training = {"epochs": 9, "patience": 2, "log_every": 2, "keep": "best"}
    result = quiet(toy_run(toy, task=task(toy), optimizer=optimizer, training=training), tmp_path / "run")
    assert (result["best_step"], result["steps"], result["stopped_early"]) == (5, 15, True)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["best"]


def test_without_dev_the_last_is_best(toy, tmp_path):
    hold_out = {"data": {"hold_out": {"test": TEST}}}
    result = quiet(toy_run(toy, tuning="head", task=task(toy, **hold_out)), tmp_path / "run")
    assert result["best_step"] == result["steps"] == 14 and result["dev"] == {} and result["metrics"]
    with pytest.raises(InputError, match=r"training\.patience needs a dev split"):
        quiet(toy_run(toy, task=task(toy, **hold_out), training={"patience": 1}), tmp_path / "patient")
    with pytest.raises(InputError, match="select needs a dev split"):
        quiet(toy_run(toy, task=task(toy, **hold_out), select={"seed": (1, 2)}), tmp_path / "choosing")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_select_reads_dev_alone_and_shares_trials(toy, tmp_path, looked_at):
    runs = [
        toy_run(
            toy,
            tuning="head",
            task=task(toy, metric="loss"),
            seed=seed,
            training={"epochs": 1},
            select={"optimizer.learning_rate": (1e-9, 1e-2)},
        )
        for seed in (4, 5)
    ]
    first = quiet(runs[0], tmp_path / "first")
    assert looked_at == [DEV, DEV, DEV, TEST]
    quiet(runs[1], tmp_path / "second")
    assert looked_at == [DEV, DEV, DEV, TEST, DEV, TEST]  # no trial again
    trials = [json.loads(path.read_text()) for path in (tmp_path / "trials").glob("*/result.json")]
    best = min(trials, key=lambda trial: trial["dev"]["loss"])
    assert len(trials) == 2 and first["selected"] == {"optimizer.learning_rate": best["config"]["optimizer"]["learning_rate"]}
    assert all(trial["metrics"] == {} for trial in trials) and not list((tmp_path / "trials").glob("*/predictions.jsonl"))
    assert Trained.load(tmp_path / "first").classify(["a goose"])


# ---- what a finished run is good for -------------------------------------------------------------------------------
def test_trained_repeats_the_run(done):
    directory, result = done
    trained = Trained.load(directory)
    rows = [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]
    test = trained.setting.splits.test
    assert trained.classify([example.text for example in test]) == [row | {"reference": None} for row in rows]
    assert trained.evaluate(test)[0] == result["metrics"]
    assert trained.evaluate(trained.setting.splits.dev)[0] == result["dev"]
    assert np.isnan(trained.predict([Example(0, "a frog")]).loss) and trained.classify([]) == []


@pytest.mark.parametrize("what", ["data", "base"])
def test_trained_refuses_what_has_changed(toy, tmp_path, what):
    own = shutil.copytree(toy, tmp_path / "toy")
    quiet(toy_run(own, tuning="head", training={"epochs": 1}), tmp_path / "run")
    if what == "data":
        write_csv(own / "toy.csv", sentences(seed=1))
    else:
        weights = bytearray((own / "model/model.safetensors").read_bytes())
        weights[-1] ^= 1
        (own / "model/model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match=f"the {what} of .*run has changed since it was trained"):
        Trained.load(tmp_path / "run")


def test_trained_refuses_what_is_no_finished_run(toy, tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        Trained.load(tmp_path)
    quiet(toy_run(toy, tuning="head"), tmp_path / "run", stop_after=2)
    with pytest.raises(InputError, match="is not finished"):
        Trained.load(tmp_path / "run")


# ---- faults --------------------------------------------------------------------------------------------------------
def bad(toy, tmp_path, what):
    """A run with one thing wrong, and what is said of it."""
    rows = sentences()
    if what == "label":
        rows[40] = (rows[40][0], "animl")
        write_csv(tmp_path / "bad.csv", rows)
        return task(
            toy, data={"train": str(tmp_path / "bad.csv"), "labels": ["animal", "city", "metal"]}
        ), r"bad\.csv, line 42: unknown label 'animl'\. Did you mean 'animal'\?"
    if what == "empty":
        write_csv(tmp_path / "bad.csv", [])
        return task(toy, data={"train": str(tmp_path / "bad.csv")}), r"bad\.csv holds no example"
    if what == "dev":
        write_csv(tmp_path / "bad.csv", [("a stone", "mineral")])
        return task(toy, data={"dev": str(tmp_path / "bad.csv")}), r"bad\.csv, line 2: no training example has .* 'mineral'"
    if what == "long":
        return task(toy, max_length=6, overflow="refuse"), r"has \d+ tokens, more than max_length 6"
    if what == "metric":
        return task(toy, metric="acuracy"), r"task\.metric is 'acuracy'.*Did you mean 'accuracy'"
    return task(toy, max_length=99), "task.max_length is 99, but there are learned positions for 24 tokens"


@pytest.mark.parametrize("what", ["label", "empty", "dev", "long", "metric", "positions"])
def test_bad_tasks_leave_nothing(toy, tmp_path, what):
    wrong, message = bad(toy, tmp_path, what)
    with pytest.raises(InputError, match=message):
        quiet(toy_run(toy, task=wrong), tmp_path / "runs/bad")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"kind": "sgd", "learning_rate": 1, "groups": [{"pattern": "no/such"}]}}, "no/such"),
        ({"tuning": {"kind": "lora", "targets": ["no/such"]}}, "no/such"),
        ({"batches": {"kind": "packed", "size": 16, "row_length": 8}}, "row_length allows 8"),
    ],
)
def test_bad_options_leave_nothing(toy, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        quiet(toy_run(toy, **changes), tmp_path / "bad")
    assert not list(tmp_path.iterdir())


def test_model_without_tokenizer(toy, tmp_path):
    own = shutil.copytree(toy, tmp_path / "toy")
    (own / "model/tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"toy/model has no tokenizer\.json"):
        quiet(toy_run(own), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_divergence(toy, tmp_path):
    """The step, its examples and the last good checkpoint are named, and the run can be gone on with."""
    optimizer = {"kind": "sgd", "learning_rate": 1e30, "clip": None, "schedule": {"kind": "constant"}}
    run = toy_run(toy, task=task(toy), optimizer=optimizer, training={"checkpoint_every": 1, "log_every": 1})
    message = r"^step 2: .* not finite \(training examples [\d, ]+\); .* is .*run/checkpoints/last/1\.$"
    with pytest.raises(Diverged, match=message) as error:
        quiet(run, tmp_path / "run")
    named = str(error.value).partition("examples ")[2].partition(")")[0].split(", ")
    assert len(named) == 16 and [r["step"] for r in read(tmp_path / "run/metrics.jsonl")] == [1]
    with pytest.raises(Diverged, match=r"^step 2: "):  # resumes from step 1, in the same process
        quiet(run, tmp_path / "run")


def test_directory_of_another_config_or_data(toy, tmp_path):
    own = shutil.copytree(toy, tmp_path / "toy")
    run = toy_run(own, tuning="head")
    quiet(run, tmp_path / "run", stop_after=2)
    with pytest.raises(InputError, match="run holds a run of another config"):
        quiet(run.changed({"seed": 1}), tmp_path / "run")
    write_csv(own / "toy.csv", sentences(seed=1))
    with pytest.raises(InputError, match="holds a run on other data"):
        quiet(run, tmp_path / "run")
    (tmp_path / "run/config.json").write_text("{}")
    with pytest.raises(InputError, match=r"config\.json is no config of this version"):
        quiet(run, tmp_path / "run")


def test_two_processes_on_one_directory(toy, tmp_path):
    run = toy_run(toy, tuning="head", training={"epochs": 2000})
    process = start(run, tmp_path / "run")
    try:
        while process.poll() is None and not (tmp_path / "run/metrics.jsonl").exists():
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()[0][-2000:]
        with pytest.raises(InputError, match="run is being worked on by another process"):
            quiet(run, tmp_path / "run")
    finally:
        process.kill()
        output, _ = process.communicate()
    assert process.returncode == -9, output[-2000:]


# ---- memory and compilation ----------------------------------------------------------------------------------------
def test_fitting_takes_the_fewest_parts(toy):
    """The smallest power of two whose largest batch fits, found by what compiled programs say they need."""
    made = setting.Setting.of(toy_run(toy, tuning="head", batches={"kind": "padded", "size": 16}))
    loader, mesh = made.loader(made.prepared(made.splits.train)[0], train=True), data_mesh()
    names = made.tuned.strategy.learning_names(made.tuned.base, made.tuned.trainable)
    transformation, _ = build(made.run.optimizer, 10, made.tuned.trainable, names)
    state = replicate(State.create(made.tuned.trainable, made.tuned.state, transformation, 0), mesh)
    compiled = lambda parts: jax.jit(train_step(made.tuned, made.run.task.objective, transformation, accumulate=parts))
    largest = max((loader[i] for i in range(len(loader))), key=lambda batch: batch.tokens.size)
    sizes = [needed(compiled(parts), state, made.tuned.frozen, largest) for parts in (1, 2, 4)]
    assert sizes[0] > sizes[1] > sizes[2]
    for parts, limit in ((1, sizes[0]), (2, sizes[0] - 1), (4, sizes[1] - 1)):
        assert fitting(compiled, state, made.tuned.frozen, loader, mesh, limit) == parts
    with pytest.raises(InputError, match=r"a step needs \d+ MB with one row at a time, and 0 MB are free"):
        fitting(compiled, state, made.tuned.frozen, loader, mesh, 1000)


def test_automatic_accumulation_in_a_run(toy, tmp_path):
    result = quiet(toy_run(toy, tuning="head", training={"epochs": 1, "accumulate": "auto"}), tmp_path / "run")
    assert result["steps"] == 5


@pytest.mark.parametrize("batches", [{"kind": "buckets", "buckets": 2, "multiple": 4}, {"kind": "packed", "shapes": 2}])
def test_one_program_a_shape(toy, tmp_path, monkeypatch, batches):
    """As many compiled steps as shapes that came up, never more than the loader may have."""
    programs = []
    jit = jax.jit
    monkeypatch.setattr(loop.jax, "jit", lambda *a, **k: programs.append(jit(*a, **k)) or programs[-1])
    run = toy_run(toy, tuning="head", batches=batches | {"size": 16}, training={"epochs": 4})
    result = quiet(run, tmp_path / "run")
    made = setting.Setting.of(run)
    loader = made.loader(made.prepared(made.splits.train)[0], train=True)
    used = {loader[i].tokens.shape for i in range(result["steps"])}
    assert result["compilations"] == len(used) == programs[0]._cache_size() <= len(loader.shapes)
