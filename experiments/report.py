"""`graft report`: the table and the page of finished runs, made again from what they left on disk.

runs/demo/plan.json, runs/demo/*/ --research.reports.write--> table.{csv,md,tex}, report.html --> the table on the terminal
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.flags import Flag
from experiments.pool import child_environment
from experiments.usage import Arguments
from research.errors import InputError
from research.files import write_json

if TYPE_CHECKING:
    from experiments.plan import Plan
    from research.reports import RunRecord

EXAMPLES = (
    "graft report runs/demo",
    "graft report runs/a runs/b --rows task tuning --baseline tuning=full --metrics accuracy --output runs/both",
)


@dataclass(frozen=True)
class Settings:
    """What a report is about; `plan.json` in a sweep's directory."""

    title: str
    question: str
    rows: tuple[str, ...]
    baseline: Mapping[str, Any] | None
    metrics: tuple[str, ...]
    runs: tuple[str, ...] | None = None  # directories, in the order of the table; None: whatever is found
    samples: tuple[str, ...] = ()

    @classmethod
    def of(cls, planned: Plan) -> Settings:
        """The report of a sweep."""
        sweep = planned.sweep
        return cls(
            planned.title,
            sweep.question,
            planned.rows,
            sweep.report.baseline,
            planned.metrics,
            tuple(cell.directory for cell in planned.cells),
            sweep.samples,
        )

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def main(args: Sequence[str]) -> int:
    """Entry of the command."""
    parser = Arguments("report", "Make table.csv, table.md, table.tex and report.html again from finished runs.", EXAMPLES)
    parser.add_argument("directories", nargs="+", metavar="DIR", help="a sweep's directory, or any that hold runs")
    parser.add_argument("--rows", nargs="+", metavar="KEY", help="what makes a row (default: as the sweep says, else tuning)")
    parser.add_argument("--baseline", nargs="+", metavar="KEY=VALUE", help="the row that the others are compared with")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="default: as the sweep says, else those of the runs")
    parser.add_argument("--title", metavar="TEXT")
    parser.add_argument("--output", metavar="DIR", help="where to write (default: the first directory)")
    asked = parser.parse(args)
    roots = [Path(directory) for directory in asked.directories]
    settings = stored(roots[0]) if len(roots) == 1 else None
    records = _records(settings, roots)
    given = {
        "rows": tuple(asked.rows) if asked.rows else None,
        "title": asked.title,
        "metrics": tuple(asked.metrics) if asked.metrics else None,
        "baseline": _baseline(asked.baseline),
    }
    base = settings or Settings(roots[0].name, "", ("tuning",), None, _metrics(records))
    chosen = Settings(**{**base.__dict__, **{key: value for key, value in given.items() if value is not None}})
    print_report(chosen, Path(asked.output or roots[0]), records)
    return 0


def stored(root: Path) -> Settings | None:
    """The settings of the sweep in a directory; None where there was none."""
    path = root / "plan.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Settings(**{key: tuple(value) if isinstance(value, list) else value for key, value in found.items()})
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{path} is not the plan of a sweep; remove it, or run the sweep again.") from None


def print_report(settings: Settings, root: Path, records: Sequence[RunRecord] | None = None) -> None:
    """Write the report of the runs below `root`, and print the table, the classified samples and where the page is."""
    from rich.console import Console

    from research.reports import to_rich, write

    records = _records(settings, [root]) if records is None else records
    baseline, missing = _present(settings, records)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, 140))
    table = write(records, root, settings.rows, baseline, settings.metrics, title=settings.title, question=settings.question)
    console.print(to_rich(table, settings.title))
    if missing:
        console.print(missing)
    for sample in _samples(settings, root, records):
        console.print(
            f"  {sample['text']}  ->  {sample.get('label', sample.get('value', sample.get('labels')))}"
            + (f" ({sample['probability']:.0%})" if "probability" in sample else ""),
            soft_wrap=True,
            markup=False,
        )
    console.print(f"\nThe report: {root / 'report.html'}   (also table.csv, table.md and table.tex there)", soft_wrap=True)


def _records(settings: Settings | None, roots: Sequence[Path]) -> list[RunRecord]:
    """The runs of a sweep that were started, in its order; without a sweep, whatever lies below the directories."""
    from research.reports import load_run, load_runs

    if settings is None or settings.runs is None:
        return [record for root in roots for record in load_runs(root)]
    paths = [roots[0] / name for name in settings.runs]
    return [load_run(path) for path in paths if (path / "config.json").exists() or (path / "result.json").exists()]


def _present(settings: Settings, records: Sequence[RunRecord]) -> tuple[Mapping[str, Any] | None, str]:
    """The baseline, or None and why it is left out: no run of it is done yet."""
    from research.reports.table import show

    if settings.baseline is None:
        return None, ""
    for run in records:
        if run.done and all(run.value(key) == value for key, value in settings.baseline.items()):
            return settings.baseline, ""
    named = ", ".join(f"{key} {show(value)}" for key, value in settings.baseline.items())
    return None, f"No run with {named} is done, so nothing is compared with it yet."


def _baseline(pairs: Sequence[str] | None) -> dict[str, Any] | None:
    if pairs is None:
        return None
    split = [pair.partition("=") for pair in pairs]
    for key, equals, _ in split:
        if not equals:
            raise InputError(f"--baseline takes KEY=VALUE, such as tuning=full, not {key!r}.")
    return {key: Flag("--baseline", (key, "value"), (value,)).readings[0] for key, _, value in split}


def _metrics(records: Sequence[RunRecord]) -> tuple[str, ...]:
    """What all finished runs report, but the loss."""
    done = [record.metrics for record in records if record.done]
    if not done:
        raise InputError(f"none of the {len(records)} runs is done, so there is nothing to report.")
    return tuple(name for name in done[0] if name != "loss" and all(name in metrics for metrics in done))


# ---- sample classifications -------------------------------------------------------------------------------------------
def _samples(settings: Settings, root: Path, records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The samples as the run classifies them that is best on dev; kept in samples.json until the run or the texts change."""
    done = [record for record in records if record.done]
    if not settings.samples or not done:
        return []
    best = max(done, key=lambda record: _dev(record, settings.metrics[0]))
    path, wanted = root / "samples.json", {"run": best.directory.name, "texts": list(settings.samples)}
    if path.exists() and (kept := json.loads(path.read_text(encoding="utf-8")))["of"] == wanted:
        return kept["samples"]
    texts = [part for text in settings.samples for part in ("--text", text)]
    command = [sys.executable, "-m", "experiments.cli", "predict", str(best.directory), "--json", *texts]
    print(f"classifying the samples with {best.name} ...", file=sys.stderr, flush=True)
    ended = subprocess.run(command, env=child_environment(1), capture_output=True, text=True, check=False)
    if ended.returncode:
        why = (ended.stderr.strip().splitlines() or ["?"])[-1]
        print(f"the samples could not be classified: {why}", file=sys.stderr)
        return []
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    write_json(path, {"of": wanted, "samples": found})
    return found


def _dev(record: RunRecord, metric: str) -> float:
    """How good a run is on dev by `metric` (on test where it has no dev split): the larger the better."""
    from research.reports.quantities import quantity

    value = (record.result.get("dev") or {}).get(metric, record.metrics[metric])
    return -value if quantity(metric).better == "lower" else value
