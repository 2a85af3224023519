"""Fine-tuning from a notebook: the same names, values and directories as the `graft` command has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.config import Config
from research.fragments import Draft


def finetune(
    run: Config | None = None, *, directory: str | Path | None = None, progress: bool = True, **values: Any
) -> dict[str, Any]:
    """Train a run, or go on with it, and return its result (the content of `result.json`).

        research.finetune(model="minilm", task="trec", tuning="lora", training={"epochs": 2}, seed=1)
        research.finetune(task={"base": "csv", "data": {"train": "my.csv"}}, tuning={"base": "lora", "rank": 4})

    Args:
        run: a whole `research.run.Run`, instead of values.
        directory: where the run is kept; `runs/<id>` by default. A finished run there is returned at once.
        progress: whether to show it.
        values: the fields of a Run: `model`, `task`, `tuning`, `optimizer`, `batches` as a name in configs/, a YAML file, or a
            mapping (with `base`: a name that it differs from); `training`, `policy`, `select`, `seed` as they are.

    Raises:
        InputError: one sentence that names the key, file or line that is wrong.
    """
    from research.run import Run
    from research.running import finetune as work

    if not isinstance(run, Run):
        run = Draft.of(values, "the arguments of research.finetune").validated()
    return work(run, Path("runs") / run.id if directory is None else directory, progress=progress)


def predict(directory: str | Path, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """What a finished run says of new texts: a row for each, `prediction` and `probabilities` in the order of its labels."""
    from research.trained import Trained

    return Trained.load(directory).classify(texts, pairs)


def evaluate(directory: str | Path, split: str = "test") -> dict[str, float]:
    """The metrics of a finished run on one of its splits: train, dev or test."""
    from research.trained import Trained

    trained = Trained.load(directory)
    return trained.evaluate(getattr(trained.setting.splits, split))[0]
