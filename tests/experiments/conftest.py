"""A sweep without training: a worker that writes in no time what a real one writes in minutes, and misbehaves on request."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

SWEEP = """
question: Which strategy?
base: {task: csv, training: {epochs: 1}}
grid: {tuning: [full, head, lora], seed: [0, 1]}
with:
  tuning:
    full: {optimizer.learning_rate: 1e-4}
    lora: {optimizer.learning_rate: 1e-3, tuning.rank: 4}
report: {baseline: {tuning: full}}
"""

WORKER = """
import json, os, signal, sys, time
from pathlib import Path

directory = Path(sys.argv[1])
cell = json.loads((directory / "cell.json").read_text())
how = json.loads(Path(BEHAVIOUR).read_text()).get(cell["name"], "done")
with open(STARTED, "a") as file:
    file.write(cell["name"] + "\\\\n")
if how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "crash":
    print("something went wrong\\\\nno such luck")
    sys.exit(3)
if how == "busy":
    sys.exit(75)
if how == "hang":
    (directory / "config.json").write_text(json.dumps({"pid": os.getpid()}))
    time.sleep(60)
about = {"id": cell["id"], "name": cell["name"], "choices": cell["choices"], "config": cell["run"]}
if how == "fail":
    (directory / "result.json").write_text(json.dumps({**about, "status": "failed", "error": "step 3: the loss is not finite"}))
    sys.exit(1)
right = {"full": 18, "head": 12, "lora": 16}[cell["run"]["tuning"]["kind"]]
rows = [{"index": i, "reference": "ab"[i % 2], "prediction": "ab"[(i + (i >= right)) % 2]} for i in range(20)]
(directory / "predictions.jsonl").write_text("".join(json.dumps(row) + "\\\\n" for row in rows))
(directory / "config.json").write_text(json.dumps(cell["run"]))
scores = {"accuracy": right / 20, "macro_f1": right / 20}
(directory / "result.json").write_text(json.dumps({
    **about, "status": "done", "labels": ["a", "b"], "metrics": scores, "dev": scores, "trainable": 10, "trainable_share": 0.1,
    "examples_per_second": 5.0, "peak_memory_mb": 100.0, "seconds": 1.0}))
"""


class Sandbox:
    """A sweep file, a folder for its runs, what the fake worker should do, and what it was started for."""

    def __init__(self, folder: Path):
        self.file, self.root = folder / "which.yaml", folder / "runs"
        self._behaviour, self._started = folder / "behaviour.json", folder / "started"
        self.file.write_text(SWEEP)
        self.behave()
        script = WORKER.replace("BEHAVIOUR", repr(str(self._behaviour))).replace("STARTED", repr(str(self._started)))
        (folder / "worker.py").write_text(script.replace("\\\\n", "\\n"))
        self.command = [sys.executable, "-S", str(folder / "worker.py")]

    def behave(self, **how: str) -> None:
        """What happens to a cell by its name, with `_` for `-`: fail, crash, kill, busy, hang. Others are done."""
        self._behaviour.write_text(json.dumps({name.replace("_", "-"): what for name, what in how.items()}))

    def started(self) -> list[str]:
        """The cells that were started since the last call."""
        found = self._started.read_text().split() if self._started.exists() else []
        self._started.unlink(missing_ok=True)
        return found


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    made = Sandbox(tmp_path)
    monkeypatch.setattr("experiments.pool.WORKER", made.command)
    return made
