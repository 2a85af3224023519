"""What a run left on disk, read back.

    <run>/config.json        resolved configuration                     -> RunRecord.config
          metrics.jsonl      {"step", "split", "loss", "accuracy"...}   -> RunRecord.curve
          predictions.jsonl  {"index", "reference", "prediction"...}    -> RunRecord.predictions
          result.json        {"id", "status", "choices", "metrics"...}  -> the rest; written last

A directory without result.json is a run that did not finish; it is reported as such, never skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from research.errors import InputError, nearest


@dataclass(frozen=True)
class Predictions:
    """The test predictions of one run, in the order of the examples' indexes: lists of length N."""

    index: tuple[int, ...]
    reference: tuple[Any, ...]
    prediction: tuple[Any, ...]
    probabilities: tuple[Any, ...]  # None for an example without


@dataclass(frozen=True)
class RunRecord:
    """One run. `result` is the whole of result.json (costs, test metrics, provenance); empty for an unfinished run."""

    directory: Path
    id: str
    name: str
    status: str  # done | failed | unfinished
    config: Mapping[str, Any]
    choices: Mapping[str, Any]  # what this cell of the sweep chose, e.g. {"tuning": "lora", "seed": 0}
    result: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def done(self) -> bool:
        """The run finished and has test metrics."""
        return self.status == "done"

    @property
    def seed(self) -> Any:
        """The seed that this cell chose, else the one in its configuration, else None."""
        return self.choices.get("seed", self.config.get("seed"))

    @property
    def metrics(self) -> Mapping[str, float]:
        """Test metrics by name."""
        return self.result.get("metrics") or {}

    @cached_property
    def curve(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; empty where there is none."""
        return list(_lines(self.directory / "metrics.jsonl"))

    @cached_property
    def predictions(self) -> Predictions | None:
        """The test predictions, or None where the run kept none."""
        path = self.directory / "predictions.jsonl"
        lines = sorted(_lines(path, ("index", "reference", "prediction")), key=lambda line: line["index"])
        if not lines:
            return None
        columns = {key: tuple(line.get(key) for line in lines) for key in Predictions.__dataclass_fields__}
        if len(set(columns["index"])) < len(lines):
            raise InputError(f"{path} holds two predictions for the same index.")
        return Predictions(**columns)

    def value(self, key: str) -> Any:
        """What this run chose for `key`: a choice of its cell, else a (dotted) key of its configuration.

        A choice that is a mapping with a `kind` counts as that kind.

        Raises:
            InputError: the run has no such key.
        """
        if key in self.choices:
            found = self.choices[key]
        else:
            found = self.config
            for part in key.split("."):
                if not isinstance(found, Mapping) or part not in found:
                    known = {*self.choices, *self.config}
                    raise InputError(f"run {self.id} has no choice or configuration key {key!r}.{nearest(key, known)}")
                found = found[part]
        return found["kind"] if isinstance(found, Mapping) and "kind" in found else found


def load_run(directory: str | Path) -> RunRecord:
    """Read one run directory.

    Raises:
        InputError: the directory is not a run, or one of its files is not what it should be.
    """
    directory = Path(directory)
    if not (directory / "config.json").exists() and not (directory / "result.json").exists():
        raise InputError(f"{directory} is not a run: it holds neither config.json nor result.json.")
    result = _mapping(directory / "result.json")
    config = result.get("config") or _mapping(directory / "config.json")
    status = result.get("status", "unfinished")
    if status not in ("done", "failed", "unfinished"):
        raise InputError(f"{directory / 'result.json'}: status must be 'done' or 'failed', not {status!r}.")
    missing = "it left no result.json: interrupted, or still running"
    identity = str(result.get("id") or directory.name)
    return RunRecord(
        directory=directory,
        id=identity,
        name=str(result.get("name") or identity),
        status=status,
        config=config,
        choices=result.get("choices") or {},
        result=result,
        error=" ".join(str(result.get("error") or (missing if status == "unfinished" else "")).split()),
    )


def load_runs(root: str | Path) -> list[RunRecord]:
    """Every run directory at or below `root`, in the order of their paths; what lies inside a run is the run's own.

    Raises:
        InputError: there is no run, or a file of one is malformed.
    """
    found = []
    for directory, below, names in os.walk(root):
        if {"config.json", "result.json"} & set(names):
            found.append(Path(directory))
            below.clear()  # a checkpoint may hold a config.json as well
    if not found:
        raise InputError(f"{root} holds no run (no directory with a config.json or result.json).")
    return [load_run(path) for path in sorted(found)]


def _mapping(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; empty where there is no such file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold one JSON object.")
    return value


def _lines(path: Path, required: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """The JSON objects in `path`, one a line; none where there is no such file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not valid JSON: {error}.") from None
            if not isinstance(value, dict) or any(key not in value for key in required):
                raise InputError(f"{path}, line {number}: expected an object with {', '.join(required) or 'keys'}.")
            yield value
