"""What a person sees while a sweep works: a line for each run under way, a bar for all of it, a line for each that ended.

done    full-seed0      accuracy 95.2 %   31 s
lora-seed0       step 120   loss 0.412   dev accuracy 0.8520      0:00:14
all runs         ━━━━━━━━━━╸━━━━━━━━━━━━   4/10                   left 0:02:10
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from experiments.plan import Cell
from experiments.pool import Outcome, Working
from research.reports.quantities import quantity

TAIL = 4096
"""Bytes at the end of metrics.jsonl that are looked at: a few dozen lines."""


class Live:
    """The display of a sweep, on standard error; a context manager."""

    def __init__(self, total: int, metric: str, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False)
        self.total, self.metric, self.ended, self.since = total, metric, 0, time.monotonic()
        columns = (TextColumn("{task.description:24.24}"), BarColumn(bar_width=24), TextColumn("{task.fields[told]}"))
        self._progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self._lines: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        self._whole = self._progress.add_task("all runs", total=self.total, told="starting")
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.stop()

    def watch(self, working: Sequence[Working]) -> None:
        """Show what is under way."""
        if self._progress.disable:
            return
        shares = []
        for one in working:
            if one.cell.name not in self._lines:
                self._lines[one.cell.name] = self._progress.add_task(one.cell.name, total=None, told="starting")
            lines = tail(one.directory / "metrics.jsonl")
            share = fraction(one.cell, lines)
            shares.append(share or 0.0)
            told = f"{latest(lines, self.metric) or 'starting'}   {_clock(time.monotonic() - one.since)}"
            task = self._lines[one.cell.name]
            self._progress.update(task, told=told, total=None if share is None else 1.0, completed=share or 0.0)
        for name in self._lines.keys() - {one.cell.name for one in working}:
            self._progress.remove_task(self._lines.pop(name))
        self._overall(sum(shares))

    def ended_with(self, outcome: Outcome) -> None:
        """Say how a run ended."""
        self.ended += 1
        name = f"{outcome.cell.name:24}"
        if outcome.status == "done":
            value = (outcome.result.get("metrics") or {}).get(self.metric)
            column = quantity(self.metric)
            told = f"{self.metric} {column.text(value)} {column.unit}   {outcome.result.get('seconds') or 0:.0f} s"
            self.console.print(Text.assemble(("done    ", "green"), name, told), soft_wrap=True)
        else:
            why = outcome.error or "another process is working on it"
            self.console.print(Text.assemble((f"{outcome.status:8}", "red"), name, why), soft_wrap=True)
        self._overall(0.0)

    def _overall(self, under_way: float) -> None:
        done, spent = self.ended + under_way, time.monotonic() - self.since
        left = f"   left {_clock(spent * (self.total - done) / done)}" if done > 0.05 else ""
        self._progress.update(self._whole, completed=done, told=f"{self.ended}/{self.total}{left}")


def tail(path: Path) -> list[dict[str, Any]]:
    """The last whole lines of a metrics.jsonl; none where there is no file yet."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue  # cut off at the front, or being written
        if isinstance(value, dict):
            found.append(value)
    return found


def latest(lines: Sequence[Mapping[str, Any]], metric: str) -> str:
    """The newest step, loss and dev metric in one line; empty where there is none."""
    parts = []
    if train := next((line for line in reversed(lines) if line.get("split") == "train"), None):
        parts.append(f"step {train.get('step')}   loss {float(train.get('loss', 'nan')):.3f}")
    if dev := next((line for line in reversed(lines) if line.get("split") == "dev" and metric in line), None):
        parts.append(f"dev {metric} {float(dev[metric]):.4f}")
    return "   ".join(parts)


def fraction(cell: Cell, lines: Sequence[Mapping[str, Any]]) -> float | None:
    """How much of a run's training is done; None while its file does not say."""
    training, step = cell.run.training, max((line.get("step", 0) for line in lines), default=0)
    if training.steps:
        return min(1.0, step / training.steps)
    known = next((line for line in reversed(lines) if line.get("epoch") and line.get("step")), None)
    return None if known is None else min(1.0, step / known["step"] * known["epoch"] / training.epochs)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
