"""Resuming is bitwise: a run that was killed, stopped or both ends as the one that nobody disturbed."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time

import numpy as np
import pytest

from research.running import finetune
from research.training.tracking import read
from tests.toy import arrays, start, toy_run

TRAINING = {"epochs": 6, "log_every": 2, "checkpoint_every": 3}
PATIENT = TRAINING | {"average": 0.8, "patience": 2}
TIMED = ("seconds", "examples_per_second", "peak_memory_mb", "compilations", "environment")


def same(one, other):
    """Both runs' checkpoints bit by bit, and what they wrote byte by byte."""
    for kind in ("best", "last"):
        a, b = (arrays(directory / "checkpoints" / kind) for directory in (one, other))
        assert a.keys() == b.keys()
        for path in a:
            np.testing.assert_array_equal(a[path], b[path], err_msg=f"{kind} {path}")
    for file in ("metrics.jsonl", "predictions.jsonl"):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    a, b = (json.loads((directory / "result.json").read_text()) for directory in (one, other))
    assert {k: v for k, v in a.items() if k not in TIMED} == {k: v for k, v in b.items() if k not in TIMED}


def kill(run, directory, moment):
    """Start the run and kill it: soon after a step, or while a checkpoint is being written. False if it had ended by then."""
    process = start(run, directory)
    limit = time.monotonic() + 120
    try:
        while process.poll() is None and time.monotonic() < limit:
            if moment == "saving":
                reached = any((directory / "checkpoints").glob("*/*tmp*"))
            else:
                reached = any(record["step"] >= moment for record in read(directory / "metrics.jsonl"))
            if reached:
                time.sleep(random.uniform(0, 0.05) if moment != "saving" else 0)
                break
            time.sleep(0.001)
        return process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def straight(toy, tmp_path_factory):
    """Undisturbed runs, made once each."""
    made = {}

    def one(tuning, training):
        key = (tuning, json.dumps(training))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("straight") / "run"
            finetune(toy_run(toy, tuning=tuning, training=training), made[key], progress=False)
        return made[key]

    return one


def test_killed_once(toy, straight, tmp_path):
    run = toy_run(toy, tuning="lora", training=PATIENT)
    assert kill(run, tmp_path / "run", 7)
    assert not (tmp_path / "run/result.json").exists()
    finetune(run, tmp_path / "run", progress=False)
    same(straight("lora", PATIENT), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("training", [TRAINING, PATIENT], ids=["plain", "patient"])
def test_killed_again_and_again(toy, straight, tmp_path, tuning, training):
    run, hits = toy_run(toy, tuning=tuning, training=training), 0
    for moment in (2, "saving", 5, "saving", 10, "saving"):
        hits += kill(run, tmp_path / "run", moment)
    finetune(run, tmp_path / "run", progress=False)
    assert hits >= 3
    same(straight(tuning, training), tmp_path / "run")


@pytest.mark.parametrize("training", [TRAINING, PATIENT], ids=["plain", "patient"])
def test_stopped_and_continued(toy, straight, tmp_path, training):
    """`stop_after` in the middle of an epoch, at its end, and after the end."""
    run, states = toy_run(toy, tuning="lora", training=training), []
    for steps in (4, 6, 100):
        states.append(finetune(run, tmp_path / "run", progress=False, stop_after=steps)["status"])
    assert states[:2] == ["stopped", "stopped"] and states[2] == "done"
    same(straight("lora", training), tmp_path / "run")


def test_killed_between_the_two_checkpoints(toy, straight, tmp_path):
    """The best of a step is on disk and the State of that step is not: the older best is still there, and is not needed."""
    run, directory = toy_run(toy, tuning="lora", training=TRAINING), tmp_path / "run"
    finetune(run, directory, progress=False, stop_after=4)
    shutil.copytree(directory / "checkpoints/last", tmp_path / "last")
    finetune(run, directory, progress=False, stop_after=6)
    shutil.rmtree(directory / "checkpoints/last")
    shutil.move(tmp_path / "last", directory / "checkpoints/last")
    finetune(run, directory, progress=False)
    same(straight("lora", TRAINING), directory)
