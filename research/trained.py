"""A trained run, for use: evaluate it on other data, classify texts with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.checkpoints.store import Store
from research.errors import InputError
from research.process import use_compilation_cache
from research.run import Run
from research.setting import Setting
from research.text.splits import Example
from research.training.evaluation import Predictions
from research.training.step import predict_step


@dataclass(frozen=True)
class Trained:
    """A finished run, loaded: its setting, its best trainable leaves, and the compiled prediction."""

    setting: Setting
    result: dict[str, Any]
    trainable: Any
    strategy: Any  # its state
    step: Any  # compiled: (trainable, frozen, strategy state, batch) -> predictions

    @classmethod
    def load(cls, directory: str | Path) -> Trained:
        """The run in a directory.

        Raises:
            InputError: no run there, or one that is not finished; a base model or data that have changed since.
        """
        directory = Path(directory)
        if not (directory / "config.json").exists():
            raise InputError(f"{directory} holds no run (no config.json).")
        run = stored(directory)
        if (result := finished(run, directory)) is None:
            raise InputError(f"the run in {directory} is not finished; run it again to go on with it.")
        use_compilation_cache()
        setting = Setting.of(run.changed(result["selected"]))
        for name, hashed in (("base_hash", setting.base_hash), ("data_hash", setting.splits.hash)):
            if hashed != result[name]:
                raise InputError(f"the {name.removesuffix('_hash')} of {directory} has changed since it was trained.")
        store = Store(directory / "checkpoints/best")
        like = {"trainable": setting.tuned.trainable, "strategy": setting.tuned.state}
        found, _ = store.restore(store.steps()[-1], like)
        store.close()
        step = jax.jit(predict_step(setting.tuned, run.task.objective))
        return cls(setting, result, found["trainable"], found["strategy"], step)

    def predict(self, examples: Sequence[Example]) -> Predictions:
        """Predictions for examples, with or without labels."""
        return self._predictions(self.setting.prepared(examples)[0])

    def evaluate(self, examples: Sequence[Example]) -> tuple[dict[str, float], Predictions]:
        """The metrics of examples with labels, and the predictions."""
        prepared, _ = self.setting.prepared(examples)
        found = self._predictions(prepared)
        return self.setting.scores(prepared, found), found

    def classify(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """One row for each text: `prediction` (a label or a number) and `probabilities`."""
        if not texts:
            return []
        examples = [Example(i, text, pairs[i] if pairs else None) for i, text in enumerate(texts)]
        return list(described(self.predict(examples), self.setting.splits.labels, examples))

    def _predictions(self, prepared: list[dict[str, Any]]) -> Predictions:
        loader = self.setting.loader(prepared, train=False)
        return self.setting.predictions(self.step, self.trainable, self.strategy, loader)


def described(found: Predictions, labels: Sequence[str], examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Predictions as rows a person can read: labels by name."""
    rows = []
    for i, example in enumerate(examples):
        value = found.values["prediction"][i]
        named: Any = float(value) if value.dtype.kind == "f" else None
        if named is None:
            named = [labels[j] for j in np.flatnonzero(value)] if value.ndim else labels[int(value)]
        row = {"index": example.index, "reference": example.label, "prediction": named}
        if "probabilities" in found.values:
            row["probabilities"] = [round(float(p), 6) for p in found.values["probabilities"][i]]
        rows.append(row)
    return rows


def finished(run: Run, directory: Path) -> dict[str, Any] | None:
    """The result of a finished run of the same config.

    Raises:
        InputError: the directory belongs to another config.
    """
    config, result = directory / "config.json", directory / "result.json"
    if config.exists() and stored(directory).id != run.id:
        raise InputError(f"{directory} holds a run of another config; give another --directory, or remove it.")
    if not result.exists():
        return None
    found = json.loads(result.read_text())
    return found if found.get("status") == "done" else None


def stored(directory: Path) -> Run:
    """The run that a directory was made for.

    Raises:
        InputError: its config is damaged, or of another version.
    """
    path = directory / "config.json"
    try:
        return Run.model_validate_json(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no config of this version ({str(error).splitlines()[0]}).") from None
