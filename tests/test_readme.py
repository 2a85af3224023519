"""The README's commands and code do what it says: run on a toy model and toy data, as a newcomer would type them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from research.trees import flatten
from research.tuning.strategy import tune
from tests.tiny import tiny
from tests.toy import toy_folder

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    \.venv/bin/graft (.+?)(?:\s+#.*)?$", TEXT, re.M)


def graft(folder: Path, line: str) -> str:
    """Standard output of a `graft` command run in `folder`; it must succeed."""
    words = re.findall(r'"([^"]*)"|(\S+)', line)
    command = [sys.executable, "-m", "experiments.cli", *(quoted or bare for quoted, bare in words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    """This process's, with the checkout importable from anywhere."""
    import os

    return dict(os.environ) | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the files that the README's commands name."""
    folder = toy_folder(tmp_path_factory.mktemp("readme"))
    (folder / "toy.csv").rename(folder / "my.csv")
    return folder


def test_one_run_on_a_csv_then_predictions(folder):
    finetune, predict, help_line = COMMANDS[:3]
    assert finetune.startswith("finetune --task csv") and predict.startswith("predict") and help_line.endswith("--help")
    # The toy model is only 24 wide, and one epoch is enough to see that it works.
    graft(folder, f"{finetune.replace('rank 16', 'rank 4')} --model ./model --task.max-length 24 --training.epochs 1")
    (run,) = (folder / "runs").iterdir()
    assert json.loads((run / "result.json").read_text())["config"]["tuning"]["rank"] == 4
    rows = [json.loads(line) for line in graft(folder, predict.replace("runs/<id>", str(run))).splitlines()]
    assert [set(row) >= {"prediction"} or "label" in row for row in rows] == [True]
    assert "--tuning.rank" in graft(folder, help_line)


def test_a_sweep_file_of_ones_own(folder):
    run = "training: {epochs: 1}, optimizer: {learning_rate: 1e-3}"
    base = f"{{model: ./model, task: {{base: csv, data: {{train: my.csv}}, max_length: 24}}, {run}}}"
    (folder / "my_sweep.yaml").write_text(f"base: {base}\ngrid: {{tuning: [full, bitfit], seed: [0]}}\n")
    graft(folder, COMMANDS[3] + " --directory swept")
    assert (folder / "swept/table.csv").read_text().startswith("tuning,accuracy")
    assert "Everything is in order" in graft(folder, COMMANDS[4])


def test_the_strategy_in_ten_lines(tmp_path, monkeypatch):
    (source,) = re.findall(r"```python\n(\"\"\"Train the biases.*?)```", TEXT, re.S)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/attention_biases.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    model, variables = tiny("bert")
    tuned = tune(model, variables["params"], "my_package.attention_biases", jax.random.key(0))
    assert all("/attention/" in path and path.split("@")[0].endswith("/bias") for path in flatten(tuned.trainable))
    assert len(tuned.strategy.reach(tuned.base)) == 3 * 4
