"""Synthetic finished runs, as realistic as a report needs: five strategies, their seeds, predictions that give the metrics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from research.metrics.classification import macro_f1

LABELS = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
STRATEGIES = {  # skill, trainable parameters, examples per second, peak memory in MB
    "full": (0.945, 22_715_526, 92.4, 1480),
    "lora": (0.925, 76_038, 141.0, 1105),
    "bitfit": (0.895, 31_110, 149.5, 1098),
    "layernorm": (0.880, 12_294, 152.2, 1101),
    "head": (0.780, 2_310, 512.7, 640),
}


def _lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def make_run():
    return write_run


def write_run(
    root: Path,
    tuning: str,
    seed: int,
    examples: int = 500,
    *,
    error: str = "",
    predictions: list | None = None,
    references: list | None = None,
    **choices,
) -> Path:
    """One run directory below `root`; with `error`, that of a failed run. Given predictions decide the metrics."""
    skill, trainable, speed, memory = STRATEGIES[tuning]
    choices = {"tuning": tuning, "seed": seed, **choices}
    directory = root / "runs" / "-".join(map(str, choices.values())).replace("/", "_")
    directory.mkdir(parents=True)
    config = {
        "model": {"reference": "pypi:example/all-MiniLM-L6-v2", "compute": "float32", "remat": None},
        "seed": seed,
        "task": {"kind": "classification", "labels": LABELS, "text": "question", "holdout": 500},
        "tuning": {"kind": tuning, **({"rank": 8, "alpha": 16, "dropout": 0.1} if tuning == "lora" else {})},
        "optimizer": {"kind": "adamw", "learning_rate": 1e-4 if tuning == "full" else 1e-3, "weight_decay": 0.01},
        "epochs": 2,
        "batch": {"examples": 32, "buckets": [16, 32, 48]},
    }
    (directory / "config.json").write_text(json.dumps(config))
    result = {"id": f"{1_000_003 * trainable + seed:012x}", "name": f"trec-{tuning}", "config": config, "choices": choices}
    if error:
        (directory / "result.json").write_text(json.dumps({**result, "status": "failed", "error": error}))
        return directory
    fixed, rng = np.random.default_rng(7), np.random.default_rng([seed, trainable])
    if references is None:
        references = fixed.choice(LABELS, size=examples, p=[0.02, 0.26, 0.2, 0.18, 0.15, 0.19]).tolist()
    if predictions is None:
        easy = fixed.random(examples) * 0.8 + 0.2 * rng.random(examples) < skill - 0.04
        predictions = np.where(easy, references, rng.choice(LABELS, size=examples)).tolist()
    _lines(
        directory / "predictions.jsonl",
        [
            {"index": index, "reference": reference, "prediction": prediction}
            for index, (reference, prediction) in enumerate(zip(references, predictions, strict=True))
        ],
    )
    _lines(directory / "metrics.jsonl", _curve(skill, 25 if tuning == "full" else 60, rng))
    (directory / "result.json").write_text(
        json.dumps(
            {
                **result,
                "status": "done",
                "labels": LABELS,
                "dev": {"accuracy": skill + 0.01 * rng.normal()},
                "metrics": {
                    "accuracy": float(np.mean(np.array(references) == predictions)),
                    "macro_f1": float(macro_f1(references, predictions, LABELS)),
                },
                "trainable": trainable,
                "parameters": 22_715_526,
                "trainable_share": trainable / 22_715_526,
                "examples_per_second": speed + rng.normal(),
                "peak_memory_mb": memory + 5 * rng.random(),
                "seconds": 9860 / speed + rng.random(),
                "steps": 308,
                "epochs": 2.0,
                "compilations": 3,
                "environment": {"jax": "0.10.2", "flax": "0.12.8", "python": "3.11.2", "device": "cpu (2 cores)"},
            }
        )
    )
    return directory


def _curve(skill: float, time: float, rng: np.random.Generator) -> list[dict]:
    lines = []
    for step in range(0, 308, 4):
        at = {"step": step, "epoch": step / 154}
        loss = 0.25 + (1 - skill) * 2 + 1.5 * np.exp(-step / time) + 0.12 * rng.normal()
        lines.append({**at, "split": "train", "loss": max(0.02, loss), "learning_rate": 1e-3 * (1 - step / 308)})
        if step % 44 == 0 and step:
            level = skill - 0.5 * np.exp(-step / time) + 0.006 * rng.normal()
            lines.append({**at, "split": "dev", "loss": 1 - level, "accuracy": level, "macro_f1": level - 0.03})
    return lines


def write_runs(root: Path) -> Path:
    """Five strategies, two seeds, 200 examples; one run failed."""
    for tuning in STRATEGIES:
        for seed in range(2):
            write_run(root, tuning, seed, 200)
    write_run(root, "lora", 2, error="NaN loss at step 41; last good checkpoint: step 40")
    return root


@pytest.fixture
def runs(tmp_path):
    return write_runs(tmp_path)


@pytest.fixture(scope="module")
def shared_runs(tmp_path_factory):
    """As `runs`, once for the tests of a file that only read them."""
    return write_runs(tmp_path_factory.mktemp("shared"))
