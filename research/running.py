"""Fine-tuning as a whole: a run in its directory, from config to result, resumed where it was left.

    Run --Setting--> fit --best checkpoint--> predictions on test --> result.json

All choices read train and dev; the test split is read once, at the end.
"""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from research.batches.loader import Loader
from research.checkpoints.store import Store
from research.errors import InputError
from research.files import write_json, write_lines
from research.metrics.lookup import direction
from research.process import environment, peak_memory, use_compilation_cache
from research.run import Run
from research.setting import Setting
from research.trained import described, finished
from research.training.loop import Diverged, Fitted, fit
from research.training.progress import Progress, waiting
from research.training.tracking import open_tracker
from research.trees import count


def finetune(
    run: Run,
    directory: str | Path,
    *,
    extra: Mapping[str, Any] | None = None,
    progress: bool = True,
    test: bool = True,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """Train a run in its directory, or go on with it, and return its result (the content of `result.json`).

    The directory holds `config.json`, `log.txt`, `metrics.jsonl`, `tensorboard/`, `checkpoints/{best,last}`,
    `predictions.jsonl` and, when all is done, `result.json`. A finished run returns at once.

    Args:
        extra: more entries for the result (a sweep's `name` and `choices`).
        test: read the test split once at the end; False leaves it unread (selection).
        stop_after: end this call after so many steps; call again to go on.

    Raises:
        InputError: bad input, before anything is written; a directory of another config; a run already under way; divergence.
    """
    directory = Path(directory)
    if (done := finished(run, directory)) is not None:
        return done
    use_compilation_cache()
    selected: dict[str, Any] = {}
    if run.select:
        selected = _select(run, directory.parent / "trials", progress)
    with waiting("reading the data and the model", show=progress):
        setting = Setting.of(run.changed(selected))
        prepared = {name: setting.prepared(getattr(setting.splits, name)) for name in ("train", "dev", "test")}
        loaders = {name: setting.loader(arrays, train=name == "train") for name, (arrays, _) in prepared.items() if arrays}
    with _owned(directory):
        write_json(directory / "config.json", run.model_dump(mode="json"))
        with Progress(directory / "log.txt", show=progress, name=(extra or {}).get("name", run.tuning.kind)) as shown:
            _announce(setting, prepared, selected, shown)
            fitted = _fit(setting, prepared, loaders, directory, shown, stop_after)
            if not fitted.finished:
                return {"status": "stopped", "steps": fitted.steps}
            extra = {**(extra or {}), "id": run.id, "selected": selected}
            return _finish(setting, prepared, loaders if test else {}, directory, fitted, extra)


def _fit(
    setting: Setting,
    prepared: Mapping[str, Any],
    loaders: Mapping[str, Loader],
    directory: Path,
    progress: Progress,
    stop_after: int | None,
) -> Fitted:
    run, (dev, _) = setting.run, prepared["dev"]

    def evaluate(step: Any, trainable: Any, state: Any) -> dict[str, float]:
        return setting.scores(dev, setting.predictions(step, trainable, state, loaders["dev"]))

    settings = run.model_dump(mode="json")
    return fit(
        setting.tuned,
        run.task.objective,
        run.optimizer,
        run.training,
        loaders["train"],
        evaluate if dev else None,
        directory=directory,
        progress=progress,
        seed=run.seed,
        metric=run.task.metric,
        tracker=lambda after: open_tracker(directory, run.tracking, after=after, settings=settings),
        better=direction(run.task.metric),
        stop_after=stop_after,
    )


def _finish(
    setting: Setting,
    prepared: Mapping[str, Any],
    loaders: Mapping[str, Loader],
    directory: Path,
    fitted: Fitted,
    extra: dict[str, Any],
) -> dict[str, Any]:
    run, tuned, book = setting.run, setting.tuned, fitted.book
    metrics: dict[str, float] = {}
    if "test" in loaders:
        found = setting.predictions(fitted.predict, fitted.trainable, fitted.strategy, loaders["test"])
        metrics = setting.scores(prepared["test"][0], found)
        write_lines(directory / "predictions.jsonl", described(found, setting.splits.labels, setting.splits.test))
    trainable, whole = count(tuned.trainable), count(setting.base.variables["params"])
    result = extra | {
        "status": "done",
        "config": run.model_dump(mode="json"),
        "metrics": metrics,
        "dev": book.best_scores,
        "best_step": book.best_step,
        "stopped_early": book.stopped,
        "steps": fitted.steps,
        "trainable": trainable,
        "parameters": whole,
        "trainable_share": trainable / whole,
        "examples_per_second": book.train_examples / book.train_seconds if book.train_seconds else None,
        "peak_memory_mb": peak_memory() / 1e6,
        "seconds": book.seconds,
        "compilations": book.compilations,
        "labels": list(setting.splits.labels),
        "truncated": {name: number for name, (_, number) in prepared.items()},
        "data_hash": setting.splits.hash,
        "base_hash": setting.base_hash,
        "environment": environment(),
    }
    if run.training.keep == "best":
        Store(directory / "checkpoints/last").remove()
    write_json(directory / "result.json", result)
    return result


def _select(run: Run, root: Path, progress: bool) -> dict[str, Any]:
    """The values of `run.select` whose trial is best on dev. Trials never read the test split, and are kept for reuse."""
    better, tried = direction(run.task.metric), []
    if not (run.task.data.dev or run.task.data.hold_out.dev):
        raise InputError("select needs a dev split to choose by: give task.data.dev or task.data.hold_out.dev.")
    root.mkdir(parents=True, exist_ok=True)
    for values in itertools.product(*run.select.values()):
        chosen = dict(zip(run.select, values, strict=True))
        trial = run.changed(chosen).model_copy(update={"select": {}, "seed": run.select_seed})
        with FileLock(root / f".{trial.id}.lock"):  # runs side by side wait for one another's trials
            tried.append((finetune(trial, root / trial.id, progress=progress, test=False)["dev"][run.task.metric], chosen))
    return (max if better == "higher" else min)(tried, key=lambda pair: pair[0])[1]


@contextmanager
def _owned(directory: Path) -> Iterator[None]:
    """The run's directory, made, and locked against a second process. Bad input that shows only now leaves none behind."""
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(directory / ".lock", timeout=0):
            yield
    except Timeout:
        raise InputError(f"{directory} is being worked on by another process.") from None
    except InputError as error:
        if made and not isinstance(error, Diverged) and not any((directory / "checkpoints").glob("*/[0-9]*")):
            shutil.rmtree(directory)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(f"{directory} could not be written: {error.strerror}; make room and run it again to go on.") from None


def _announce(setting: Setting, prepared: Mapping[str, Any], selected: dict[str, Any], shown: Progress) -> None:
    shown.say(str(setting.base.report))
    if selected:
        shown.say("selected on dev: " + ", ".join(f"{key} = {value}" for key, value in selected.items()))
    trainable, whole = count(setting.tuned.trainable), count(setting.base.variables["params"])
    shown.say(f"{setting.run.tuning.kind}: {trainable:,} of {whole:,} parameters train ({trainable / whole:.2%})")
    sizes = ", ".join(f"{len(arrays):,} {name}" for name, (arrays, _) in prepared.items())
    shown.say(f"examples: {sizes}")
    for name, (_, truncated) in prepared.items():
        if truncated:
            shown.say(f"{truncated} {name} texts were truncated to {setting.run.task.max_length} tokens")
