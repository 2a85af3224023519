"""What a person sees while a run works: one live line on a terminal, plain lines elsewhere, the same lines in the log file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """A bar with the loss, the best dev score and the speed; every line said also goes to `log`.

    Use as a context manager. `show=False` writes the log alone.
    """

    def __init__(self, log: Path | None = None, *, show: bool = True, name: str = ""):
        console = Console(stderr=True, quiet=not show)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=console, transient=True, disable=not (show and console.is_terminal))
        self._task = self._bar.add_task(name or "training", total=None, numbers="")
        self._console, self._best, self._numbers = console, "", ""
        self._log = logging.Logger("run")
        if log is not None:
            handler = logging.FileHandler(log, encoding="utf-8")
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            self._log.addHandler(handler)

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)
        for handler in self._log.handlers:
            handler.close()

    def say(self, line: str) -> None:
        """A line for the person and the log."""
        self._log.info(line)
        (self._bar.console if not self._bar.disable else self._console).print(line, highlight=False, markup=False)

    def advance(self, step: int, total: int) -> None:
        """Steps done so far."""
        self._bar.update(self._task, completed=step, total=total)

    def numbers(self, loss: float, examples_per_second: float) -> None:
        """The latest training numbers."""
        speed = f", {examples_per_second:,.0f} examples/s" if examples_per_second else ""
        self._numbers = f"loss {loss:.3f}{speed}"
        self._bar.update(self._task, numbers=self._numbers + self._best)

    def evaluated(self, step: int, scores: dict[str, float], metric: str, book: Any) -> None:
        """An evaluation on dev."""
        if not scores:
            return
        shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        mark = "  (best so far)" if book.best_step == step else ""
        self._best = f", best dev {metric} {book.best:.4f}"
        self.say(f"step {step}: dev {shown}{mark}{'; stopping early' if book.stopped else ''}; {self._numbers}")


@contextmanager
def waiting(what: str, *, show: bool = True) -> Iterator[None]:
    """A spinner while something without steps is under way."""
    with Console(stderr=True, quiet=not show or not sys.stderr.isatty()).status(what):
        yield
