"""A sweep on paper: the grid in a YAML file becomes a list of checked runs before anything is trained.

    question: Which strategy ...?             Plan
    base: {task: trec, batches: packed}         cells  lora-seed0  choices {tuning: lora, seed: 0}  Run(...)
    grid: {tuning: [full, lora], seed: [0, 1]}         lora-seed1  ...
    with: {tuning: {lora: {optimizer.learning_rate: 1e-3}}}
    report: {baseline: {tuning: full}}

An axis is any dotted key of a run; its values are a list, or a mapping that names them. `with` holds what goes with a choice.
Flags of the command line come last: one that names an axis gives its values, any other wins over the file.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from experiments.flags import Flag, refuse_unknown, resolve
from research.config import Config, validated
from research.errors import InputError, nearest
from research.fragments import ROOMS, Draft, keys, read_yaml, shown

if TYPE_CHECKING:
    from research.run import Run


class ReportSettings(Config):
    """What the table shows."""

    rows: tuple[str, ...] = ()  # keys that make a row; by default every axis but the seed
    baseline: dict[str, Any] | None = None  # values of some row keys: the row that others are compared with
    metrics: tuple[str, ...] = ()  # by default those of the objective


class Sweep(Config):
    """A sweep's YAML file."""

    model_config = ConfigDict(populate_by_name=False)

    title: str = ""
    question: str = ""
    base: dict[str, Any]
    grid: dict[str, list[Any] | dict[str, Any]] = Field(min_length=1)
    with_: dict[str, dict[str, dict[str, Any]]] = Field(default={}, alias="with")  # axis -> label -> dotted key -> value
    report: ReportSettings = ReportSettings()
    samples: tuple[str, ...] = ()  # texts that the best run classifies at the end


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a sweep: what it chose, and its complete config."""

    name: str
    choices: Mapping[str, Any]
    run: Run

    @property
    def directory(self) -> str:
        """The name of its directory."""
        return f"{self.name}-{self.run.id}"


@dataclass(frozen=True)
class Plan:
    """All cells, and what the report needs to know."""

    sweep: Sweep
    cells: tuple[Cell, ...]
    rows: tuple[str, ...]
    metrics: tuple[str, ...]
    source: Path

    @property
    def title(self) -> str:
        """The sweep's title, else the name of its file (of its folder, where the file is sweep.yaml)."""
        return self.sweep.title or named(self.source).replace("_", " ")


def named(path: Path) -> str:
    """What a sweep is called: its file's name, or its folder's where the file is `sweep.yaml`."""
    return path.resolve().parent.name if path.stem == "sweep" else path.stem


def locate(text: str) -> Path:
    """The file of a sweep: a path, a folder with a sweep.yaml, or the name of one in experiments/ablations.

    Raises:
        InputError: there is none.
    """
    shipped = Path(__file__).parent / "ablations"
    for path in (Path(text), Path(text) / "sweep.yaml", shipped / text / "sweep.yaml"):
        if path.is_file():
            return path
    known = [path.parent.name for path in shipped.glob("*/sweep.yaml")]
    raise InputError(f"there is no sweep {text}.{nearest(text, known)}")


def plan(path: Path, flags: Sequence[Flag] = (), options: Sequence[str] = ()) -> Plan:
    """Every cell of the sweep in `path`, checked. `options` are the command's own, for suggestions.

    Raises:
        InputError: naming the file or flag, and the cell where only one is wrong.
    """
    from research.run import Run

    refuse_unknown(flags, Run.model_fields, options)
    where, values = shown(path), read_yaml(path)
    sweep = validated(Sweep, values, where)
    base = Draft.of(sweep.base, f"{where}: base", path.parent)
    axes = {key: Axis.of(found, f"{where}: grid.{key}") for key, found in sweep.grid.items()}
    _check_with(sweep, axes, where)
    last = []
    for flag in flags:
        key = ".".join(flag.path)
        if key in axes or key == "seed":
            axes[key] = Axis.of(_as_axis(flag), flag.text)
        elif key in ROOMS:
            base.put(flag.path, flag.readings[0], flag.text)
        else:
            last.append(flag)
    cells = tuple(_cells(base, axes, sweep, last, where, path.parent))
    _check_distinct(cells)
    rows, metrics = _reported(sweep, axes, cells, where)
    return Plan(sweep, cells, rows, metrics, path)


@dataclass(frozen=True)
class Axis:
    """An axis of the grid: where it is from, and for each label the value and what results call it."""

    origin: str
    values: dict[str, Any]
    choices: dict[str, Any]  # the label of a fragment, a number as it is

    @classmethod
    def of(cls, values: Any, origin: str) -> Axis:
        """The axis of a list of values, or of a mapping of labels to values."""
        if isinstance(values, Mapping):
            pairs = [(str(label), value) for label, value in values.items()]
            choices = [label for label, _ in pairs]
        else:
            pairs = [(_label(value), value) for value in values]
            choices = [label if isinstance(value, dict | list) else value for label, value in pairs]
        found = dict(pairs)
        if not pairs:
            raise InputError(f"{origin} holds no value.")
        if len(found) < len(pairs):
            raise InputError(f"{origin} holds a value twice: {', '.join(label for label, _ in pairs)}.")
        return cls(origin, found, dict(zip(found, choices, strict=True)))


def _cells(
    base: Draft, axes: Mapping[str, Axis], sweep: Sweep, flags: Sequence[Flag], where: str, beside: Path
) -> Iterator[Cell]:
    """The cells in the order of the grid, the last axis fastest. A room's axis is laid before what lies below a room."""
    for labels in itertools.product(*(axis.values for axis in axes.values())):
        chosen = dict(zip(axes, labels, strict=True))
        try:
            draft = base.copy()
            for key in sorted(chosen, key=lambda key: key not in ROOMS):
                draft.put(keys(key), axes[key].values[chosen[key]], axes[key].origin, beside)
            for key, label in chosen.items():
                draft.lay(sweep.with_.get(key, {}).get(label, {}), f"{where}: with.{key}.{label}", beside)
            run = resolve(draft, flags)
        except InputError as error:
            raise InputError(f"cell {', '.join(f'{key} {label}' for key, label in chosen.items())}: {error}") from None
        yield Cell(_slug(chosen), {key: axes[key].choices[label] for key, label in chosen.items()}, run)


def _label(value: Any) -> str:
    """How a value of an axis is called: `lora`, `0.001`, `lora rank 4`, `lora + bitfit`."""
    if isinstance(value, list):
        return " + ".join(map(_label, value))
    if isinstance(value, Mapping):
        first = [str(value[key]) for key in ("base", "kind") if key in value][:1]
        return " ".join([*first, *(f"{key} {_label(one)}" for key, one in value.items() if key not in ("base", "kind"))])
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


def _slug(chosen: Mapping[str, str]) -> str:
    """A directory name for the labels of a cell: `lora-seed0`."""
    labels = {key: Path(label).stem if label.endswith((".yaml", ".yml")) else label for key, label in chosen.items()}
    parts = [label if key in ROOMS else key.rsplit(".", 1)[-1] + label for key, label in labels.items()]
    return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts)[:100]


def _as_axis(flag: Flag) -> list[Any]:
    """The values that a flag gives an axis: words, or one word with commas."""
    words = flag.words[0].split(",") if len(flag.words) == 1 and not flag.words[0].startswith(("[", "{")) else flag.words
    values = [Flag(flag.text, flag.path, (word,)).readings[0] for word in words if word]
    return values[0] if len(values) == 1 and isinstance(values[0], list) else values


def _check_with(sweep: Sweep, axes: Mapping[str, Axis], where: str) -> None:
    for key, choices in sweep.with_.items():
        if key not in axes:
            raise InputError(f"{where}: with.{key} belongs to no axis of the grid.{nearest(key, axes)}")
        for label, values in choices.items():
            if label not in axes[key].values:
                known = nearest(label, axes[key].values)
                raise InputError(f"{where}: with.{key}.{label} belongs to no value of grid.{key}.{known}")
            if taken := sorted({*values} & {*axes}):
                raise InputError(f"{where}: with.{key}.{label} sets {taken[0]}, which is an axis of the grid.")


def _check_distinct(cells: Sequence[Cell]) -> None:
    first: dict[str, Cell] = {}
    for cell in cells:
        other = first.setdefault(cell.run.id, cell)
        if other is not cell:
            raise InputError(f"cells {other.name} and {cell.name} are the same run.")


def _reported(
    sweep: Sweep, axes: Mapping[str, Any], cells: Sequence[Cell], where: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Row keys and metrics of the report, checked now rather than after hours of training."""
    rows = sweep.report.rows or tuple(key for key in axes if key != "seed") or ("tuning",)
    for key in axes:
        if key != "seed" and key not in rows:
            raise InputError(f"{where}: report.rows must name every axis but the seed; {key} is absent.")
    for key in rows:
        if key not in axes and not _has(cells[0].run.model_dump(mode="json"), key):
            raise InputError(f"{where}: report.rows names {key}, which is no axis of the grid.{nearest(key, axes)}")
    for key in sweep.report.baseline or {}:
        if key not in rows:
            raise InputError(f"{where}: report.baseline names {key}, which is none of the rows.{nearest(key, rows)}")
    metrics = sweep.report.metrics or cells[0].run.task.objective.metrics
    for cell in cells:
        known = cell.run.task.objective.metrics
        for name in metrics:
            if name not in known:
                raise InputError(f"{where}: cell {cell.name} has no metric {name!r}.{nearest(name, known)}")
    return rows, metrics


def _has(values: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True
