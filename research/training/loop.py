"""The one training loop, to be read downwards: restore, then train / evaluate / save until the end, then hand back the best.

    loader[i] --shard--> step --> State'      every `log_every`: numbers fetched, finite or stop
                                              every `evaluate_every`: dev, best kept, early stopping
                                              every `checkpoint_every`: State, bookkeeping and data position to disk

A run killed at any moment continues from its newest checkpoint and ends bitwise equal: the order of events is a function of
the step alone, and everything that was written after the restored step is dropped before going on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pydantic

from research.batches.batch import Batch
from research.batches.loader import Loader
from research.checkpoints.store import Store
from research.config import Config
from research.errors import InputError
from research.sharding.mesh import data_mesh, replicate, shard_rows
from research.training.accumulation import fitting
from research.training.optimizer import Optimizer, build
from research.training.progress import Progress
from research.training.state import State
from research.training.step import predict_step, train_step
from research.training.tracking import Tracker
from research.tuning.strategy import Tuned


class Training(Config):
    """How long to train, how often to look, and what to keep."""

    epochs: float = pydantic.Field(default=3.0, gt=0)
    steps: int | None = pydantic.Field(default=None, gt=0)  # instead of epochs
    evaluate_every: int | None = pydantic.Field(default=None, gt=0)  # steps; None: at the end of each epoch
    checkpoint_every: int | None = pydantic.Field(default=None, gt=0)  # steps; None: whenever evaluated
    log_every: int = pydantic.Field(default=10, gt=0)
    patience: int | None = pydantic.Field(default=None, gt=0)  # stop after this many evaluations without a better one
    accumulate: int | Literal["auto"] = 1  # parts that a batch is computed in; auto: as few as memory allows
    average: float | None = pydantic.Field(default=None, gt=0, lt=1)  # decay of the moving average that is evaluated
    keep: Literal["best", "both"] = "both"  # checkpoints kept after the end: the best alone, or also the last

    @pydantic.field_validator("accumulate")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1")
        return value


class Diverged(InputError):
    """The loss or a gradient is no longer a number."""


@dataclass
class Book:
    """What the loop remembers between evaluations; stored beside every checkpoint."""

    best: float | None = None
    best_step: int = 0
    best_scores: dict[str, float] = field(default_factory=dict)
    since_best: int = 0  # evaluations
    stopped: bool = False
    train_seconds: float = 0.0  # spent in warm steps, and
    train_examples: int = 0  # how many examples they held
    seconds: float = 0.0  # of wall time, over all processes that worked on the run
    compilations: int = 0  # of the training step, in this process
    accumulate: int = 0  # parts that a batch is computed in; kept, since what fits in memory may differ on resuming

    def judge(self, scores: dict[str, float], metric: str, better: str, step: int, patience: int | None) -> None:
        """Enter an evaluation: without a dev split every one counts as the best so far."""
        value = scores.get(metric)
        first = self.best is None or math.isnan(self.best)  # a correlation, for one, may be nan at first
        if value is None or first or (value > self.best if better == "higher" else value < self.best):
            self.best, self.best_step, self.best_scores, self.since_best = value, step, dict(scores), 0
        else:
            self.since_best += 1
        self.stopped = patience is not None and self.since_best >= patience


@dataclass(frozen=True)
class Fitted:
    """What training leaves: the best trainable leaves and strategy state, on devices, and the bookkeeping."""

    trainable: Any
    strategy: Any
    book: Book
    steps: int
    finished: bool  # False where `stop_after` cut it short
    predict: Callable[..., Any]  # compiled: (trainable, frozen, strategy, batch)


def fit(
    tuned: Tuned,
    objective: Any,
    optimizer: Optimizer,
    training: Training,
    train: Loader,
    evaluate: Callable[[Callable[..., Any], Any, Any], dict[str, float]] | None,
    *,
    directory: Path,
    tracker: Callable[[int | None], Tracker],
    progress: Progress,
    seed: int,
    metric: str,
    better: Literal["higher", "lower"],
    stop_after: int | None = None,
) -> Fitted:
    """Train `tuned` on `train`, choosing by `metric` as `evaluate` reports it.

    Args:
        evaluate: `(predict, trainable, strategy state) -> scores` on dev; None where there is no dev split (the last is best).
        directory: of the run; checkpoints are kept in, and restored from, `directory/checkpoints`.
        tracker: opens the run's tracker, given the restored step (None: from the beginning).
        stop_after: end this call after so many steps, saved and resumable.

    Raises:
        Diverged: naming the step, the batch's example ids and the last good checkpoint.
        InputError: a checkpoint of another config or other data, a full disk.
    """
    mesh = data_mesh()
    total = training.steps or max(1, round(training.epochs * len(train)))
    transformation, rate = build(optimizer, total, tuned.trainable, tuned.names)
    fresh = State.create(tuned.trainable, tuned.state, transformation, seed, average=training.average is not None)
    frozen, state = replicate(tuned.frozen, mesh), replicate(fresh, mesh)

    with ExitStack() as opened:
        # ---- restore --------------------------------------------------------------------------------------------------
        last = opened.enter_context(closing(Store(directory / "checkpoints/last")))
        best = opened.enter_context(closing(Store(directory / "checkpoints/best", keep=2)))  # the older is what `last` may know
        state, start, book = _restored(last, state, train)
        best.drop_after(start)
        log = opened.enter_context(closing(tracker(start or -1)))

        # ---- compile --------------------------------------------------------------------------------------------------
        def compiled(parts: int):
            made = train_step(tuned, objective, transformation, accumulate=parts, average=training.average)
            return jax.jit(made, donate_argnums=0)

        book.accumulate = book.accumulate or _parts(training, compiled, state, frozen, train)
        step, predict = compiled(book.accumulate), jax.jit(predict_step(tuned, objective))

        # ---- train ----------------------------------------------------------------------------------------------------
        evaluate_every, began = training.evaluate_every or len(train), time.perf_counter() - book.seconds
        checkpoint_every = training.checkpoint_every or evaluate_every
        end = total if stop_after is None else min(total, start + stop_after)
        window, number = _Window(progress, log, last, len(train)), start
        for batch in train.iterate(start, end) if not book.stopped and start < end else ():
            window.before(batch, book)
            state, metrics = step(state, frozen, shard_rows(batch, mesh))
            number += 1
            window.after(number, metrics, batch, book)
            evaluating = number % evaluate_every == 0 or number == total
            saving = evaluating or number % checkpoint_every == 0 or number == end
            if saving or number % training.log_every == 0:
                window.log(book, rate)
            progress.advance(number, total)

            if evaluating:
                scores = evaluate(predict, state.evaluated, state.strategy) if evaluate else {}
                if scores:
                    log.log(number, "dev", scores | {"epoch": number / len(train)})
                book.judge(scores, metric, better, number, training.patience)
                if book.best_step == number:
                    best.save(number, _best(state), {})
                progress.evaluated(number, scores, metric, book)
            if saving:
                book.seconds = time.perf_counter() - began
                best.wait()
                last.save(number, _stored(state), {"book": asdict(book), "data": train.hash})
                window.reset()
            if book.stopped:
                break

        # ---- hand back the best ---------------------------------------------------------------------------------------
        last.wait()
        finished = number == total or book.stopped
        chosen = _best(state)
        if finished:
            chosen, _ = best.restore(book.best_step, chosen)
            best.drop_but(book.best_step)
        book.seconds = time.perf_counter() - began
        return Fitted(chosen["trainable"], chosen["strategy"], book, number, finished, predict)


def _restored(last: Store, state: State, train: Loader) -> tuple[State, int, Book]:
    """The newest checkpoint, or the beginning."""
    if not (saved := last.steps()):
        return state, 0, Book()
    if last.meta(saved[-1])["data"] != train.hash:
        raise InputError(f"{last.directory} holds a run on other data or batches than are given now.")
    stored, meta = last.restore(saved[-1], _stored(state))
    return state.replace(**stored), saved[-1], Book(**meta["book"])


def _parts(training: Training, compiled: Callable[[int], Any], state: State, frozen: Any, train: Loader) -> int:
    """How many parts a batch is computed in."""
    if isinstance(training.accumulate, int):
        return training.accumulate
    return fitting(compiled, state, frozen, train, data_mesh())


class _Window:
    """Steps since the last line of the log. `fetch` gets their numbers from the device: the only place where the host waits."""

    def __init__(self, progress: Progress, tracker: Tracker, store: Store, epoch: int):
        self.progress, self.tracker, self.store, self.epoch = progress, tracker, store, epoch
        self.shapes: set[tuple[int, ...]] = set()
        self.pending: list[tuple[int, dict[str, jax.Array], np.ndarray]] = []  # on the device
        self.fetched: list[dict[str, Any]] = []
        self.step = 0
        self.reset()

    def reset(self) -> None:
        """Begin to count time here."""
        self.since = time.perf_counter()

    def before(self, batch: Batch, book: Book) -> None:
        """A step on `batch` is about to begin: if it will compile, what is under way must not be counted with it."""
        self.fresh = batch.tokens.shape not in self.shapes
        if self.fresh:
            self.fetch(book)

    def after(self, step: int, metrics: dict[str, jax.Array], batch: Batch, book: Book) -> None:
        """A step has begun; wait for it, uncounted, if it compiled."""
        self.step = step
        self.pending.append((step, metrics, batch.ids))
        if self.fresh:
            self.shapes.add(batch.tokens.shape)
            book.compilations = len(self.shapes)
            self.progress.say(f"compiled the step for {batch.tokens.shape[0]} x {batch.tokens.shape[1]} tokens")
            self.fetch(book, warm=False)

    def fetch(self, book: Book, *, warm: bool = True) -> None:
        """Check what is pending, and count its time and examples unless it held a compilation."""
        fetched = jax.device_get([metrics for _, metrics, _ in self.pending])
        for (step, _, ids), numbers in zip(self.pending, fetched, strict=True):
            if not numbers.pop("finite"):
                saved, listed = self.store.steps(), ", ".join(map(str, sorted(ids[ids >= 0].tolist())))
                where = self.store.directory
                good = f"the last good checkpoint is {where}/{saved[-1]}" if saved else "there is no checkpoint yet"
                raise Diverged(f"step {step}: the loss or a gradient is not finite (training examples {listed}); {good}.")
        if warm and fetched:
            book.train_examples += sum(int(numbers["examples"]) for numbers in fetched)
            book.train_seconds += time.perf_counter() - self.since
        self.fetched += fetched
        self.pending = []
        self.reset()

    def log(self, book: Book, rate: Callable[[int], Any]) -> None:
        """One line for all steps since the last: their mean loss, and the latest of the other numbers."""
        self.fetch(book)
        loss = float(np.mean([one["loss"] for one in self.fetched]))
        extra = {"loss": loss, "learning_rate": float(rate(self.step - 1)), "epoch": self.step / self.epoch}
        self.tracker.log(self.step, "train", self.fetched[-1] | extra)
        self.progress.numbers(loss, book.train_examples / max(book.train_seconds, 1e-9))
        self.fetched = []


# ---- what is stored ------------------------------------------------------------------------------------------------
def _stored(state: State) -> dict[str, Any]:
    return {name: value for name, value in vars(state).items() if value is not None}


def _best(state: State) -> dict[str, Any]:
    return {"trainable": state.evaluated, "strategy": state.strategy}
