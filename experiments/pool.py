"""Cells side by side in processes of their own.

    [Cell] --run(jobs)--> python -m experiments.worker <cell>/ ... --> Outcome(done | failed | busy) as each ends

What a cell printed is in its `output.txt`. Nothing that happens to one touches the others; on Ctrl-C all are stopped, each
at its last checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.allocator import tuned
from experiments.plan import Cell
from experiments.worker import BUSY, record_failure
from research.files import write_json

Status = Literal["done", "failed", "missing"]
WORKER = [sys.executable, "-m", "experiments.worker"]
PATIENCE = 10.0
"""Seconds that a stopped process has to end by itself."""


@dataclass(frozen=True)
class Outcome:
    """How a cell ended, and what it left in result.json."""

    cell: Cell
    status: Literal["done", "failed", "busy"]
    result: dict[str, Any]

    @property
    def error(self) -> str:
        """What went wrong."""
        return str(self.result.get("error", ""))


@dataclass(frozen=True)
class Working:
    """A cell under way."""

    cell: Cell
    directory: Path
    process: subprocess.Popen[bytes]
    since: float


def result(directory: Path) -> dict[str, Any]:
    """The content of result.json; empty where there is none that can be read."""
    try:
        found = json.loads((directory / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def status(directory: Path) -> Status:
    """What became of the run in a directory so far."""
    found = result(directory).get("status")
    return found if found in ("done", "failed") else "missing"


def run(cells: Iterable[Cell], root: Path, jobs: int, watch: Callable[[list[Working]], None]) -> Iterator[Outcome]:
    """Run cells in their directories below `root`, `jobs` at a time, and yield each as it ends.

    Args:
        watch: called several times a second with what is under way.
    """
    waiting, working = deque(cells), list[Working]()
    environment = child_environment(jobs)
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                cell = waiting.popleft()
                working.append(_start(cell, root / cell.directory, environment))
            time.sleep(0.1)
            watch(working)
            for one in [one for one in working if one.process.poll() is not None]:
                working.remove(one)
                yield _ended(one)
    finally:
        _stop(working)


def child_environment(jobs: int) -> dict[str, str]:
    """The environment of a worker: its share of the cores, and of memory on an accelerator what it needs."""
    environment = dict(os.environ)
    root = str(Path(__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    if jobs > 1:
        threads = str(max(1, cores() // jobs))
        for name in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # XLA's pools go by NPROC
            environment.setdefault(name, threads)
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return tuned(environment)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(cell: Cell, directory: Path, environment: dict[str, str]) -> Working:
    directory.mkdir(parents=True, exist_ok=True)
    about = {"id": cell.run.id, "name": cell.name, "choices": dict(cell.choices), "run": cell.run.model_dump(mode="json")}
    write_json(directory / "cell.json", about)
    with (directory / "output.txt").open("ab") as output:
        process = subprocess.Popen(
            [*WORKER, str(directory)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a Ctrl-C reaches us alone, and we stop it
        )
    return Working(cell, directory, process, time.monotonic())


def _ended(one: Working) -> Outcome:
    """How a process that has ended left its cell; a death that it could not record is recorded here."""
    if one.process.stdin:
        one.process.stdin.close()
    code = one.process.returncode
    if code == BUSY:
        return Outcome(one.cell, "busy", {})
    found = result(one.directory)
    if found.get("status") not in ("done", "failed") or (code and found["status"] == "done"):
        record_failure(one.directory, _cause(code, one.directory))
        found = result(one.directory)
    return Outcome(one.cell, "done" if found["status"] == "done" else "failed", found)


def _cause(code: int, directory: Path) -> str:
    if code < 0:
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    lines = (directory / "output.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
    return f"ended with exit code {code}: {last.strip()[:300]}"


def _stop(working: list[Working]) -> None:
    for one in working:
        one.process.terminate()
    end = time.monotonic() + PATIENCE
    for one in working:
        try:
            one.process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
        if one.process.stdin:
            one.process.stdin.close()
