"""Eight simulated devices are one: same losses, same parameters, same predictions; and a run may move between them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from research.training.tracking import read
from tests.toy import arrays, start, toy_run

SGD = {"kind": "sgd", "learning_rate": 0.05}  # Adam would make a rounding error of a gradient near nought a whole step
TRAINING = {"epochs": 2, "log_every": 1}


@pytest.fixture(scope="module")
def quiet_toy(toy, tmp_path_factory):
    """The toy task without dropout: rows are numbered otherwise where there are more of them."""

    own = shutil.copytree(toy, tmp_path_factory.mktemp("quiet") / "toy")
    config = json.loads((own / "model/config.json").read_text())
    (own / "model/config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}))
    return own


def trained(run, directory, devices, **options):
    output, _ = (process := start(run, directory, devices=devices, **options)).communicate()
    assert process.returncode == 0, output[-3000:]
    return directory


def run_of(toy, tuning, kind):
    task = toy_run(toy).model_dump(mode="json")["task"] | {"objective": {"kind": "classification", "dropout": 0.0}}
    return toy_run(toy, task=task, tuning=tuning, batches={"kind": kind, "size": 16}, optimizer=SGD, training=TRAINING)


def same(one, other):
    a, b = (list(read(directory / "metrics.jsonl")) for directory in (one, other))
    assert [(r["step"], r["split"]) for r in a] == [(r["step"], r["split"]) for r in b] and len(a) == 12
    np.testing.assert_allclose([r["loss"] for r in a], [r["loss"] for r in b], rtol=1e-5)
    a, b = (arrays(directory / "checkpoints/last") for directory in (one, other))
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=1e-4, atol=1e-5, err_msg=path)
    a, b = ([json.loads(line) for line in (d / "predictions.jsonl").read_text().splitlines()] for d in (one, other))
    np.testing.assert_allclose([r["probabilities"] for r in a], [r["probabilities"] for r in b], atol=1e-5)


@pytest.mark.parametrize(
    ("tuning", "kind"),
    [
        ("full", "packed"),
        ("lora", "padded"),
        pytest.param("full", "padded", marks=pytest.mark.slow),
        pytest.param("lora", "packed", marks=pytest.mark.slow),
    ],
)
def test_eight_devices_are_one(quiet_toy, tmp_path, tuning, kind):
    run = run_of(quiet_toy, tuning, kind)
    eight = trained(run, tmp_path / "eight", 8)
    assert json.loads((eight / "result.json").read_text())["environment"]["devices"].startswith("8 x")
    same(trained(run, tmp_path / "one", 1), eight)


def test_a_run_moves_from_one_device_to_eight(quiet_toy, tmp_path):
    """Four steps on one device, the rest on eight; then the finished run is read back on eight."""
    run = run_of(quiet_toy, "lora", "padded")
    whole = trained(run, tmp_path / "one", 1)
    trained(run, tmp_path / "moved", 1, stop_after=4)
    same(whole, trained(run, tmp_path / "moved", 8))
