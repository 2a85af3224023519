"""A sweep at work, with a worker that trains nothing: what runs, what is reused, what one cell's failure costs the others."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import cli, pool, worker
from experiments.live import fraction, latest, tail
from experiments.plan import plan

ALL = [f"{tuning}-seed{seed}" for tuning in ("full", "head", "lora") for seed in (0, 1)]


def sweep(sandbox, *args: str) -> int:
    return cli.main(["sweep", str(sandbox.file), "--directory", str(sandbox.root), *args])


def folder(sandbox, name: str) -> Path:
    return next(sandbox.root.glob(f"{name}-????????????"))


def test_every_cell_runs_once_and_the_table_compares_them(sandbox, capsys):
    assert sweep(sandbox, "--jobs", "3") == 0
    assert sorted(sandbox.started()) == ALL
    shown = capsys.readouterr()
    assert "90.0" in shown.out and "report.html" in shown.out and shown.err.count("done    ") == 6
    rows = list(csv.DictReader((sandbox.root / "table.csv").open()))
    assert [(row["tuning"], float(row["accuracy"]), row["seeds"]) for row in rows] == [
        ("full", 0.9, "2"),
        ("head", 0.6, "2"),
        ("lora", 0.8, "2"),
    ]
    assert {"table.md", "table.tex", "report.html", "sweep.yaml", "plan.json"} <= {path.name for path in sandbox.root.iterdir()}
    assert "Which strategy?" in (sandbox.root / "report.html").read_text()
    assert (sandbox.root / "sweep.yaml").read_text() == sandbox.file.read_text()

    assert sweep(sandbox) == 0 and sandbox.started() == []  # again: nothing runs
    (sandbox.root / "table.csv").unlink()
    assert cli.main(["report", str(sandbox.root)]) == 0 and (sandbox.root / "table.csv").exists()


def test_limit_and_missing_baseline_then_the_rest(sandbox, capsys):
    assert sweep(sandbox, "--limit", "1", "--tuning", "head", "lora") == 0
    assert sandbox.started() == ["head-seed0"]
    assert "No run with tuning full is done, so nothing is compared with it yet." in capsys.readouterr().out
    (folder(sandbox, "head-seed0") / "mark").touch()
    assert sweep(sandbox) == 0
    assert sandbox.started() == [name for name in ALL if name != "head-seed0"]
    assert (folder(sandbox, "head-seed0") / "mark").exists()


def test_a_dry_run_starts_and_writes_nothing(sandbox, capsys):
    assert sweep(sandbox, "--dry-run", "--seeds", "5,6,7,8") == 0
    out = capsys.readouterr().out
    assert "12 runs" in out and "lora-seed8" in out and out.count("missing") == 12
    assert not sandbox.root.exists() and sandbox.started() == []


def test_failures_stay_their_own_and_are_listed(sandbox, capsys):
    sandbox.behave(head_seed0="fail", head_seed1="kill", lora_seed0="crash")
    assert sweep(sandbox, "--jobs", "2") == 1
    assert sorted(sandbox.started()) == ALL
    shown = capsys.readouterr()
    told = {
        "head-seed0": "step 3: the loss is not finite",
        "head-seed1": "killed by SIGKILL (out of memory?)",
        "lora-seed0": "ended with exit code 3: no such luck",
    }
    for name, error in told.items():
        result = json.loads((folder(sandbox, name) / "result.json").read_text())
        assert (result["status"], result["error"], result["name"]) == ("failed", error, name)
        assert error in shown.err and error in (sandbox.root / "report.html").read_text()
    rows = {row["tuning"]: row for row in csv.DictReader((sandbox.root / "table.csv").open())}
    assert rows.keys() == {"full", "lora"} and (rows["lora"]["seeds"], rows["lora"]["failed"]) == ("1", "1")

    sandbox.behave()
    assert sweep(sandbox) == 1 and sandbox.started() == []
    assert "Failed runs are tried again with --retry-failed." in capsys.readouterr().err
    assert sweep(sandbox, "--retry-failed") == 0 and sorted(sandbox.started()) == sorted(told)


def test_when_nothing_is_done_the_errors_are_told(sandbox, capsys):
    sandbox.behave(**{name.replace("-", "_"): "fail" for name in ALL})
    assert sweep(sandbox, "--jobs", "6") == 1
    assert "full-seed0: step 3: the loss is not finite" in capsys.readouterr().err
    assert not (sandbox.root / "table.csv").exists()


def test_a_cell_of_another_process_is_left_alone(sandbox, capsys):
    sandbox.behave(lora_seed1="busy")
    assert sweep(sandbox) == 1
    assert not (folder(sandbox, "lora-seed1") / "result.json").exists()
    assert "belong to another process" in capsys.readouterr().out


def test_a_worker_does_not_touch_a_locked_cell(tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".cell.lock"):
        command = [sys.executable, "-m", "experiments.worker", str(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=pool.child_environment(1)) as process:
            assert process.wait(60) == worker.BUSY
    assert {path.name for path in tmp_path.iterdir()} == {".cell.lock"}


def test_a_worker_ends_when_the_sweep_that_started_it_is_gone(tmp_path):
    code = "import threading, time; from experiments import worker; "
    code += "threading.Thread(target=worker._end_with_parent, daemon=True).start(); print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=pool.child_environment(1)
    )
    assert process.stdout.readline() == b"up\n"
    process.stdin.close()
    assert process.wait(20) == 130
    process.stdout.close()


def test_ctrl_c_stops_the_children_and_the_same_command_goes_on(sandbox, tmp_path):
    sandbox.behave(head_seed0="hang")
    code = f"import sys; from experiments import cli, pool; pool.WORKER = {sandbox.command!r}; sys.exit(cli.main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "sweep", str(sandbox.file), "--directory", str(sandbox.root)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=pool.child_environment(1),
        start_new_session=True,
    )
    hung = 0
    for _ in range(400):
        for config in sandbox.root.glob("head-seed0-*/config.json"):
            hung = json.loads(config.read_text() or "{}").get("pid", 0)
        if hung:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130 and told.endswith("graft: interrupted; the same command goes on where this one stopped.\n")
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)
    assert pool.status(folder(sandbox, "head-seed0")) == "missing"  # stopped, which is no failure
    sandbox.behave()
    sandbox.started()
    assert sweep(sandbox) == 0 and sandbox.started() == ALL[2:]


def test_workers_share_the_cores(monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(pool, "cores", lambda: 8)
    assert "NPROC" not in pool.child_environment(1)
    assert (pool.child_environment(3)["NPROC"], pool.child_environment(16)["OMP_NUM_THREADS"]) == ("2", "1")


def test_progress_is_read_from_the_end_of_a_growing_file(sandbox, tmp_path):
    cell = plan(sandbox.file).cells[0]  # one epoch
    path = tmp_path / "metrics.jsonl"
    assert tail(path) == [] and fraction(cell, []) is None
    lines = [{"step": step, "split": "train", "loss": 1 / step} for step in range(1, 200)]
    dev = {"step": 160, "split": "dev", "accuracy": 0.5, "epoch": 0.8}
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:160], dev, *lines[160:180]]) + '{"step": 18')
    found = tail(path)
    assert 0 < len(found) < len(lines) and latest(found, "accuracy") == "step 180   loss 0.006   dev accuracy 0.5000"
    assert fraction(cell, found) == pytest.approx(0.9)
