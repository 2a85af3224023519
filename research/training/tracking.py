"""Where a run's numbers go while it trains.

    log(step, split, values) --+--> metrics.jsonl    always: {"step": 20, "split": "train", "loss": 0.31, ...} a line, flushed
                               +--> tensorboard/     always: `train/loss` against the step
                               +--> wandb, trackio   by option (extra `track`)

metrics.jsonl is the truth, and TensorBoard's files are written anew from it whenever a run is opened. JSON has no numbers
that are not finite: they are the strings "NaN", "Infinity" and "-Infinity", which Python's `float` reads back.

What a step logs must be logged before that step is saved. Then cutting the file at the restored step leaves exactly the lines
of an uninterrupted run.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from research.config import Config
from research.errors import InputError


class Tracking(Config):
    """Which services see the numbers, besides the run's own directory."""

    wandb: Literal["offline", "online"] | None = None  # offline: kept in the run directory until `wandb sync`
    trackio: bool = False  # kept in trackio's own local store, no account and no network
    project: str = "graft"


class Tracker(Protocol):
    """Whatever takes numbers."""

    def log(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Take scalars (Python's, NumPy's or JAX's) of `split` at `step`, updates done so far."""

    def close(self) -> None:
        """Write out what is still held back. Nothing may be logged afterwards."""


def open_tracker(
    folder: str | Path,
    tracking: Tracking | None = None,
    *,
    after: int | None = None,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    writes: bool = True,
) -> Tracker:
    """The tracker of the run in `folder`, which is created where needed.

    Args:
        after: on resuming, the restored step; what was logged later is dropped (-1: all of it). None keeps everything.
        name: the run's name and identity in wandb and trackio; default the folder's name.
        settings: the resolved config, shown by wandb and trackio.
        writes: False on all hosts but the first: a tracker that takes everything and writes nothing.

    Raises:
        InputError: a service whose package is not installed, or that refuses; a metrics.jsonl with a malformed line.
    """
    if not writes:
        return _Several(())
    folder, tracking = Path(folder), tracking or Tracking()
    run = (tracking.project, name or folder.name, dict(settings or {}))
    services: list[Callable[..., Tracker]] = []
    if tracking.wandb:
        services.append(partial(Wandb, _installed("wandb"), folder, tracking.wandb))
    if tracking.trackio:
        services.append(partial(Trackio, _installed("trackio")))
    folder.mkdir(parents=True, exist_ok=True)
    truncate_after(folder / "metrics.jsonl", after)
    files = (Metrics(folder / "metrics.jsonl"), TensorBoard(folder / "tensorboard", read(folder / "metrics.jsonl")))
    return _Several((*files, *(service(*run) for service in services)))


class _Several:
    """Hands everything on to several trackers, as plain Python numbers."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = trackers

    def log(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        if self._trackers:
            plain = {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}
            for tracker in self._trackers:
                tracker.log(int(step), split, plain)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


# ---- metrics.jsonl --------------------------------------------------------------------------------------------------
class Metrics:
    """Appends to a metrics.jsonl. Each line reaches the operating system before `log` returns, so SIGKILL loses none."""

    def __init__(self, path: Path):
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        record = dict(step=step, split=split, **{key: _finite(value) for key, value in values.items()})
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl, without a torn last line; none where there is no file.

    Raises:
        InputError: a line that is not a record.
    """
    return (record for _, record in _whole_lines(path))


def truncate_after(path: Path, step: int | None) -> None:
    """Drop, atomically, the records of later steps than `step` (None: keep them) and a last line torn by a crash.

    Raises:
        InputError: a line that is not a record.
    """
    if not path.exists():
        return
    kept = b"".join(line for line, record in _whole_lines(path) if step is None or record["step"] <= step)
    if len(kept) < path.stat().st_size:
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def _whole_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not line.endswith(b"\n") or not isinstance(record["step"], int):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise InputError(f"{path}, line {number}: not a record with a step.") from None
            return  # the last line: torn by a crash
        yield line, record


# ---- others ---------------------------------------------------------------------------------------------------------
class TensorBoard:
    """Event files in `folder`, replacing those there: first `records`, then what is logged."""

    def __init__(self, folder: Path, records: Iterable[Mapping[str, Any]] = ()):
        from tensorboardX import SummaryWriter

        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(folder), flush_secs=10)
        for record in records:
            self.log(record["step"], record["split"], {k: v for k, v in record.items() if k not in ("step", "split")})

    def log(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(f"{split}/{key}", float(value), step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A Weights & Biases run, continued where one of this name exists. Steps repeated after a resume are drawn twice."""

    def __init__(self, package: Any, folder: Path, mode: str, project: str, name: str, settings: dict[str, Any]):
        try:
            self._run = package.init(
                project=project,
                name=name,
                id=name,
                dir=str(folder),
                config=settings,
                mode=mode,
                resume="allow",
                reinit="create_new",
                settings=package.Settings(silent=True, console="off"),
            )
        except package.Error as error:
            raise InputError(f"track.wandb: {' '.join(str(error).split())}") from None
        self._run.define_metric("*", step_metric="step")  # its own step only ever grows, and a resumed run's goes back

    def log(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        self._run.log({"step": step, **_prefixed(split, values)})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A trackio run, continued where one of this name exists. Steps repeated after a resume are drawn twice."""

    def __init__(self, package: Any, project: str, name: str, settings: dict[str, Any]):
        self._run = package.init(project=project, name=name, config=settings, resume="allow", embed=False)

    def log(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        self._run.log(_prefixed(split, values), step=step)

    def close(self) -> None:
        self._run.finish()


def _prefixed(split: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{split}/{key}": value for key, value in values.items()}


def _installed(service: str) -> Any:
    try:
        return importlib.import_module(service)
    except ModuleNotFoundError as error:
        if error.name != service:
            raise  # it is there, but something that it needs is not
        raise InputError(f"track.{service} needs the package {service}: pip install 'graft-lm[track]'.") from None
