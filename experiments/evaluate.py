"""`graft evaluate`: the metrics of a finished run, with intervals over the examples.

runs/x --Trained--> predictions on its test or dev split, or on a file --bootstrap--> metric, value, 95 % interval
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.usage import Arguments
from research.errors import InputError, nearest

if TYPE_CHECKING:
    from research.text.data import Data
    from research.text.splits import Example
    from research.trained import Trained

EXAMPLES = (
    "graft evaluate runs/demo/lora-seed0-1a2b3c4d5e6f",
    "graft evaluate runs/mine --split dev --json",
    "graft evaluate runs/mine --data other.csv        the columns are called as in the training data",
)


def main(args: Sequence[str]) -> int:
    """Entry of the command."""
    parser = Arguments("evaluate", "The metrics of a finished run with their 95 % intervals over the examples.", EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="the directory of a finished run")
    parser.add_argument("--split", choices=("test", "dev"), help="which split of the run's own data (default: test)")
    parser.add_argument("--data", metavar="FILE", help="other labelled data instead")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    asked = parser.parse(args)
    if asked.split and asked.data:
        raise InputError("give --split or --data, not both.")

    from research.trained import Trained

    trained = Trained.load(asked.run)
    split = asked.split or "test"
    examples = _of_file(trained, asked.data) if asked.data else getattr(trained.setting.splits, split)
    if not examples:
        raise InputError(f"the data of {asked.run} have no {split} split.")
    found = scores(trained, examples)
    what = asked.data or split
    if asked.json:
        print(json.dumps({"run": asked.run, "data": what, "examples": len(examples), "metrics": found}))
    else:
        _show(found, f"{asked.run} on {what}: {len(examples):,} examples")
    return 0


def scores(trained: Trained, examples: Sequence[Example]) -> dict[str, dict[str, float | None]]:
    """`{metric: {value, low, high}}`; bounds are None where a metric is not computed example by example."""
    import numpy as np

    from research.metrics import lookup
    from research.metrics.intervals import bootstrap
    from research.training.evaluation import references

    metrics, found = trained.evaluate(examples)
    truth = references(trained.setting.prepared(examples)[0])
    labels = trained.setting.splits.labels
    classes = np.arange(len(labels)) if labels else None
    out: dict[str, dict[str, float | None]] = {}
    for name, value in metrics.items():
        low = high = None
        if name in lookup.known() and len(examples) > 1:
            values = found.values["probabilities" if lookup.reads(name) == "probabilities" else "prediction"]
            _, low, high = bootstrap(values, lookup.find(name, classes), references=truth)
        out[name] = {"value": float(value), "low": low, "high": high}
    return out


def _of_file(trained: Trained, file: str) -> list[Example]:
    """The labelled examples in a file, read as the run's test split is.

    Raises:
        InputError: naming the line of what cannot be read, or of a label that the run does not know.
    """
    from research.text.data import examples

    known = trained.setting.splits.labels
    found = [example for example, _ in examples(_reading(trained.setting.run.task.data, file), "test")]
    for example in found:
        for label in example.classes:
            if label not in known:
                where = f"{file}, line {example.line}"
                raise InputError(f"{where}: the run was not trained on label {label!r}.{nearest(label, known)}")
    return found


def _reading(data: Data, file: str) -> Data:
    """The run's data config with `file` as its test split; how another sort of file is laid out is its own."""
    from research.text.data import Data

    own: dict[str, Any] = {"test": file, "directory": None}
    if Path(file).suffix != Path((data.test or data.train).partition("#")[0]).suffix:
        layout = ("format", "encoding", "header", "columns", "delimiter", "pattern")
        own |= {name: Data.model_fields[name].default for name in layout}
    return data.model_copy(update=own)


def _show(found: dict[str, dict[str, float | None]], title: str) -> None:
    import rich.box
    from rich.console import Console
    from rich.table import Table

    from research.reports.quantities import quantity

    table = Table("metric", title=title, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, numbers in found.items():
        column = quantity(name)
        interval = "" if numbers["low"] is None else f"{column.text(numbers['low'])} to {column.text(numbers['high'])}"
        table.add_row(column.heading, column.text(numbers["value"]), interval)
    Console(highlight=False).print(table)
