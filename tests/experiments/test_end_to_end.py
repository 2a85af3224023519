"""The commands on a model that learns in a second: from a CSV to a run, a sweep, a table and predictions, with real workers."""

from __future__ import annotations

import csv
import json

import pytest

from experiments import cli

pytestmark = pytest.mark.slow  # each real worker is a process that starts jax


def output(capsys, *args: str) -> str:
    assert cli.main(args) == 0
    return capsys.readouterr().out


def flags(toy) -> list[str]:
    values = {
        "task.data.train": toy / "toy.csv",
        "model": toy / "model",
        "task.max-length": 16,
        "task.data.hold-out.dev": 20,
        "task.data.hold-out.test": 20,
        "batches.size": 16,
        "optimizer.learning-rate": 3e-3,
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def test_a_csv_to_a_run_and_its_use(toy, tmp_path, capsys):
    run = tmp_path / "mine"
    command = ["finetune", "--task", "csv", *flags(toy), "--training.epochs", "1", "--directory", str(run), "--quiet"]
    told = output(capsys, *command)
    result = json.loads((run / "result.json").read_text())
    assert "test Accuracy (%)" in told and "95 % interval" in told and f"{100 * result['metrics']['accuracy']:.1f}" in told
    assert output(capsys, *command) == told  # finished: the same again, at once
    assert cli.main([*command, "--seed", "1"]) == 2 and "holds a run of another config" in capsys.readouterr().err

    found = json.loads(output(capsys, "evaluate", str(run), "--json"))
    accuracy = found["metrics"]["accuracy"]
    assert accuracy["value"] == pytest.approx(result["metrics"]["accuracy"])
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert json.loads(output(capsys, "evaluate", str(run), "--data", str(toy / "toy.csv"), "--json"))["examples"] == 120
    (tmp_path / "odd.csv").write_text("text,label\nthe horse,animal\nthe fork,cutlery\n")
    assert cli.main(["evaluate", str(run), "--data", str(tmp_path / "odd.csv")]) == 2
    assert "odd.csv, line 3: the run was not trained on label 'cutlery'." in capsys.readouterr().err

    (tmp_path / "texts.txt").write_text("the horse is here\n\nfar in paris\n")
    lines = output(capsys, "predict", str(run), "--file", str(tmp_path / "texts.txt")).splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["text"] for row in rows] == ["the horse is here", "far in paris"]
    for row in rows:
        assert row["probability"] == max(row["probabilities"].values()) == row["probabilities"][row["label"]]
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def test_a_sweep_with_real_workers(toy, tmp_path, capsys):
    file = tmp_path / "which.yaml"
    file.write_text(
        "base: {task: csv, training: {epochs: 1}}\ngrid: {tuning: [full, head]}\n"
        "report: {baseline: {tuning: full}}\nsamples: [the horse is here]\n"
    )
    root = tmp_path / "runs"
    command = ["sweep", str(file), "--directory", str(root), *flags(toy)]
    assert cli.main([*command, "--limit", "1"]) == 0
    (first,) = [json.loads(path.read_text()) for path in root.glob("*/result.json")]
    told = output(capsys, *command, "--jobs", "2")
    rows = {row["tuning"]: row for row in csv.DictReader((root / "table.csv").open())}
    assert first["choices"] == {"tuning": "full"}
    assert float(rows["full"]["accuracy"]) == pytest.approx(first["metrics"]["accuracy"])
    assert float(rows["full"]["trainable_share"]) == 1 and float(rows["head"]["trainable_share"]) < 0.1
    assert "the horse is here  ->  " in told
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/*")}
    assert output(capsys, *command).splitlines()[-3:] == told.splitlines()[-3:]
    assert {path: path.stat().st_mtime_ns for path in root.glob("*/*")} == before  # nothing ran again

    assert cli.main([*command, "--task.data.train", str(tmp_path / "absent.csv")]) == 1
    assert "absent.csv does not exist." in capsys.readouterr().err
