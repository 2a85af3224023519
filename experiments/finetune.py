"""`graft finetune`: one run, from the command line to its directory.

CONFIG.yaml, --task trec, --tuning.rank 4 --> Run --research.running.finetune--> runs/<id>/ --> a small table
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.flags import Flag, refuse_unknown, resolve
from experiments.usage import Arguments, print_options
from research.fragments import Draft, find, read_yaml, shown

EXAMPLES = (
    "graft finetune --task trec --tuning lora",
    "graft finetune --task trec --tuning lora --tuning.rank 16 --optimizer.learning-rate 1e-3 --training.epochs 3 --seed 1",
    "graft finetune --task csv --task.data.train my.csv           your own texts and labels",
    "graft finetune --task csv --task.data.train my.csv --model hf:org/name --tuning lora bitfit",
    "graft finetune my_run.yaml --directory runs/mine",
    "graft finetune --tuning lora --help                          shows the options of LoRA",
)


def main(args: Sequence[str]) -> int:
    """Entry of the command."""
    told = "Train one model on one task under one tuning strategy. An interrupted run goes on where it stopped."
    parser = Arguments("finetune", told, EXAMPLES)
    parser.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="a run as YAML; flags override its values")
    parser.add_argument("--directory", metavar="DIR", help="where the run is kept (default: runs/<hash of its config>)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    asked, flags = parser.parse_with_flags(args)
    draft = drafted(asked.config)
    if asked.help:
        parser.print_help()
        if "task" not in draft.values and not any(flag.path == ("task",) for flag in flags):
            draft.put(("task",), "csv", "--task")
        print_options(configured(draft, flags, parser.options))
        return 0
    run = configured(draft, flags, parser.options)
    directory = Path(asked.directory or f"runs/{run.id}")

    from research.running import finetune

    result = finetune(run, directory, progress=not asked.quiet)
    show(result, directory)
    return 0


def drafted(config: str | None) -> Draft:
    """The draft of a run that a YAML file makes over the defaults."""
    if config is None:
        return Draft.of({}, "the command line")
    path = find("experiments", config, "CONFIG")
    return Draft.of(read_yaml(path), shown(path), path.parent)


def configured(draft: Draft, flags: Sequence[Flag], options: Sequence[str]) -> Any:
    """The Run of a draft and flags.

    Raises:
        InputError: an unknown option or whatever `resolve` refuses.
    """
    from research.run import Run

    refuse_unknown(flags, Run.model_fields, options)
    return resolve(draft, flags)


def show(result: Mapping[str, Any], directory: Path) -> None:
    """Print what a run reached, what it cost and where it lies."""
    import rich.box
    from rich.console import Console
    from rich.table import Table

    from research.reports import load_run
    from research.reports.estimates import Resampling, estimate
    from research.reports.quantities import COSTS, quantity

    record, table = load_run(directory), Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for name, value in result["metrics"].items():
        column, interval = quantity(name), ""
        if name != "loss" and (found := estimate([record], name, Resampling())).low is not None:
            interval = f"95 % interval {column.text(found.low)} to {column.text(found.high)}"
        table.add_row(f"test {column.heading}", column.text(value), interval)
    for name, value in result["dev"].items():
        table.add_row(f"dev {quantity(name).heading}", quantity(name).text(value))
    for name, column in COSTS.items():
        table.add_row(column.heading, column.text(result.get(name)))
    console = Console(highlight=False)
    console.print(table)
    console.print(f'The run is in {directory}. Use it:  graft predict {directory} --text "..."', soft_wrap=True)
