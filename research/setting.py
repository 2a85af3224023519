"""A run made ready: data, tokenizer, base model and strategy, as its config names them, read and checked together.

Run --data, tokenizer--> prepared examples --Loader--> batches      Run --base model, strategy--> Tuned
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from research.batches.loader import Loader
from research.checkpoints.pretrained import Pretrained, base_hash, read
from research.errors import InputError, nearest
from research.run import Run
from research.sharding.mesh import data_mesh, replicate
from research.text.data import load
from research.text.references import resolve
from research.text.splits import Example, Splits
from research.training.evaluation import Predictions, predict, references, scored
from research.tuning.strategy import Tuned, tune


@dataclass(frozen=True)
class Setting:
    """A run made ready: everything that its config names, read, checked and put together."""

    run: Run
    splits: Splits
    base: Pretrained
    base_hash: str
    tuned: Tuned

    @classmethod
    def of(cls, run: Run) -> Setting:
        """Read the data and the base model, and put the strategy on it.

        Raises:
            InputError: whatever is wrong with any of them, before anything is written.
        """
        splits = load(run.task.data)
        _check(run, splits)
        head = run.task.objective.head(splits.labels)
        base = read(run.model.reference, sha256=run.model.sha256, head=head, seed=run.seed)
        if base.tokenizer is None:
            raise InputError(f"{run.model.reference} has no tokenizer.json, which text needs.")
        model, key = base.model.with_policy(run.policy), jax.random.key(run.seed)
        tuned = tune(model, base.variables["params"], run.tuning, key, fresh=base.report.fresh)
        longest = model.longest(jax.eval_shape(tuned.variables, tuned.trainable, tuned.frozen, tuned.state))
        if longest is not None and run.task.max_length > longest:
            raise InputError(f"task.max_length is {run.task.max_length}, but there are learned positions for {longest} tokens.")
        placed = replicate({name: getattr(tuned, name) for name in ("trainable", "frozen", "state")}, data_mesh())
        hashed = base_hash(resolve(run.model.reference, sha256=run.model.sha256))
        return cls(run, splits, base, hashed, replace(tuned, **placed))

    def prepared(self, examples: Sequence[Example]) -> tuple[list[dict[str, Any]], int]:
        """Examples as arrays, and how many texts were truncated."""
        task = self.run.task
        return task.objective.prepare(
            examples, self.base.tokenizer, self.splits.labels, max_length=task.max_length, overflow=task.overflow
        )

    def loader(self, prepared: list[dict[str, Any]], *, train: bool) -> Loader:
        """Batches of prepared examples: shuffled by the run's seed for training, in order otherwise."""
        objective, pad = self.run.task.objective, self.base.tokenizer.pad_id or 0
        shared = {"row_multiple": jax.local_device_count(), "pad": pad, "per_token": objective.per_token}
        return Loader(prepared, self.run.batches, seed=self.run.seed, shuffle=train, **shared)

    def predictions(self, step: Any, trainable: Any, state: Any, loader: Loader) -> Predictions:
        """Predictions for the examples of a loader by a compiled `predict_step`."""
        return predict(step, trainable, self.tuned.frozen, state, loader, data_mesh())

    def scores(self, prepared: list[dict[str, Any]], found: Predictions) -> dict[str, float]:
        """The objective's metrics of predictions for examples with labels."""
        return scored(self.run.task.objective, references(prepared), found, self.splits.labels)


def _check(run: Run, splits: Splits) -> None:
    objective, metric = run.task.objective, run.task.metric
    objective.check(run.task.data.target, splits.labels)
    if metric not in (reported := (*objective.metrics, "loss")):
        raise InputError(f"task.metric is {metric!r}, which objective.metrics does not report.{nearest(metric, reported)}")
    if run.training.patience and not splits.dev:
        raise InputError("training.patience needs a dev split to look at: give task.data.dev or task.data.hold_out.dev.")
