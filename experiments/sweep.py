"""`graft sweep`: every cell of a grid trained, and the table that compares them.

    sweep.yaml --plan--> cells --pool--> <directory>/<cell>/ each --> table.{csv,md,tex}, report.html, sample classifications

A cell whose directory holds a result is not run again; so the same command goes on with a sweep that was interrupted.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import pool
from experiments.flags import Flag
from experiments.plan import Cell, Plan, locate, named, plan
from experiments.report import Settings, print_report
from experiments.usage import Arguments
from research.errors import InputError
from research.files import write_json

EXAMPLES = (
    "graft sweep trec_strategies --directory runs/demo",
    "graft sweep my_sweep.yaml --dry-run                     lists the runs and starts none",
    "graft sweep my_sweep.yaml --jobs 2 --seeds 0,1,2,3,4",
    "graft sweep my_sweep.yaml --tuning lora bitfit          gives an axis of the grid other values",
    "graft sweep my_sweep.yaml --training.epochs 3           sets a value in every run",
    "graft sweep my_sweep.yaml --retry-failed                runs that failed are not tried again otherwise",
)


def main(args: Sequence[str]) -> int:
    """Entry of the command."""
    parser = Arguments(
        "sweep",
        "Train every cell of a grid, each once, and make the table that compares them. Any dotted flag of `graft "
        "finetune` applies to every cell.",
        EXAMPLES,
    )
    parser.add_argument("sweep", nargs="?", metavar="SWEEP.yaml", help="a sweep: a file, a folder with a sweep.yaml, or a name")
    parser.add_argument("--directory", metavar="DIR", help="where the runs are kept (default: runs/<name of the sweep>)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs side by side (default: 1)")
    parser.add_argument("--limit", type=int, metavar="N", help="start at most N runs this time")
    parser.add_argument("--seeds", metavar="0,1,2", help="the seeds, instead of those of the grid")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and what became of them; start none")
    parser.add_argument("--retry-failed", action="store_true", help="run those again that failed")
    asked, flags = parser.parse_with_flags(args)
    if asked.help:
        parser.print_help()
        return 0
    if asked.sweep is None:
        raise InputError("which sweep? Give a YAML file, such as: graft sweep trec_strategies")
    for name in ("jobs", "limit"):
        if (value := getattr(asked, name)) is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, not {value}.")
    if asked.seeds:
        flags.append(Flag("--seeds", ("seed",), (asked.seeds,)))
    path = locate(asked.sweep)
    planned = plan(path, flags, parser.options)
    root = Path(asked.directory or f"runs/{named(path)}")
    if asked.dry_run:
        _list(planned, root)
        return 0
    return carry_out(planned, root, asked.jobs, asked.limit, asked.retry_failed)


def carry_out(planned: Plan, root: Path, jobs: int = 1, limit: int | None = None, retry_failed: bool = False) -> int:
    """Run what is missing, then report; the exit code: 1 if a run failed or belongs to another process."""
    known = {cell: pool.status(root / cell.directory) for cell in planned.cells}
    due = [cell for cell, status in known.items() if status == "missing" or (retry_failed and status == "failed")][:limit]
    root.mkdir(parents=True, exist_ok=True)
    if not (copy := root / "sweep.yaml").exists() or not copy.samefile(planned.source):
        shutil.copyfile(planned.source, copy)
    settings = Settings.of(planned)
    write_json(root / "plan.json", settings.plain)
    _say_what_is_due(known, due, retry_failed)
    busy = _run(planned, due, root, jobs, retry_failed) if due else []
    done = [cell for cell in planned.cells if pool.status(root / cell.directory) == "done"]
    if not done:
        for cell in planned.cells:
            if error := pool.result(root / cell.directory).get("error"):
                print(f"{cell.name}: {error}", file=sys.stderr)
        print(f"none of the {len(planned.cells)} runs in {root} is done, so there is nothing to compare.", file=sys.stderr)
        return 1
    print_report(settings, root)
    left = len(planned.cells) - len(done)
    failed = any(pool.status(root / cell.directory) == "failed" for cell in planned.cells)
    if busy:
        print(f"{len(busy)} of the runs belong to another process; run the same command again when it has ended.")
    elif left:
        print(f"{left} of {len(planned.cells)} runs have no result yet; the same command goes on with those that did not fail.")
    return 1 if failed or busy else 0


def _run(planned: Plan, due: Sequence[Cell], root: Path, jobs: int, again: bool) -> list[Cell]:
    """Run the cells that are due; those that another process works on are returned."""
    from experiments.live import Live

    if again:
        for cell in due:
            (root / cell.directory / "result.json").unlink(missing_ok=True)
    busy = []
    with Live(len(due), planned.metrics[0]) as live:
        for outcome in pool.run(due, root, jobs, live.watch):
            live.ended_with(outcome)
            if outcome.status == "busy":
                busy.append(outcome.cell)
    return busy


def _say_what_is_due(known: dict[Cell, Any], due: Sequence[Cell], again: bool) -> None:
    counts = {status: sum(one == status for one in known.values()) for status in ("done", "failed", "missing")}
    told = f"{len(known)} runs: {', '.join(f'{count} {status}' for status, count in counts.items())}; {len(due)} to run now."
    if counts["failed"] and not again:
        told += " Failed runs are tried again with --retry-failed."
    print(told, file=sys.stderr, flush=True)


def _list(planned: Plan, root: Path) -> None:
    """Print every cell and what became of it."""
    import rich.box
    from rich.console import Console
    from rich.table import Table

    from research.reports.table import show

    console = Console(highlight=False)
    table = Table("run", "status", *planned.cells[0].choices, "id", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for cell in planned.cells:
        status = pool.status(root / cell.directory)
        table.add_row(cell.name, status, *map(show, cell.choices.values()), cell.run.id)
    console.print(table)
    console.print(f"{len(planned.cells)} runs below {root}; none was started.")
