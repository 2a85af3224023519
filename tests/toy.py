"""A whole fine-tuning task in a folder, small enough to train in a second: what tests of the engine run on.

folder/  model/   a random 2-layer BERT without a head, and a WordPiece tokenizer of the task's own words
         toy.csv  120 sentences of 1 to 12 words in three classes, each told by one word

run = toy_run(folder, tuning="lora")        finetune(run, directory)
process = start(run, directory)             the same in a process of its own, which may be killed
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from research.checkpoints.pretrained import save
from research.run import Run
from research.text.tokenizer import Tokenizer
from tests.tiny import tiny

CLUES = {"animal": ("horse", "frog", "goose"), "city": ("paris", "lima", "oslo"), "metal": ("iron", "tin", "zinc")}
FILLERS = ("the", "a", "one", "old", "new", "that", "this", "here", "there", "very", "seen", "near", "far", "big", "small")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def sentences(count: int = 120, seed: int = 0) -> list[tuple[str, str]]:
    """`(text, label)`: fillers around one clue."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        label = sorted(CLUES)[number % len(CLUES)]
        words = [str(word) for word in rng.choice(FILLERS, int(rng.integers(1, 12)))]
        words[int(rng.integers(len(words)))] = str(rng.choice(CLUES[label]))
        rows.append((" ".join(words), label))
    return rows


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    """Rows under the header `text,label`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def toy_tokenizer() -> Tokenizer:
    """WordPiece over whole words, with BERT's `[CLS] a [SEP] b [SEP]`."""
    words = [*SPECIAL, *FILLERS, *(clue for clues in CLUES.values() for clue in clues)]
    backend = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return Tokenizer(backend, {"tokenizer_config.json": names})


def toy_folder(folder: Path) -> Path:
    """Write the model, its tokenizer and the CSV, and return the folder."""
    tokenizer = toy_tokenizer()
    save(*tiny("bert", layers=2, vocabulary=tokenizer.vocabulary_size, head=None), folder / "model", tokenizer)
    config = folder / "model/config.json"
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    config.write_text(json.dumps(json.loads(config.read_text()) | dropout))
    write_csv(folder / "toy.csv", sentences())
    return folder


def toy_run(folder: Path, **changes: Any) -> Run:
    """The run on a toy folder: 80 examples to train on, 20 each for dev and test; `changes` replace top-level parts.

    Five steps an epoch in packed batches of one shape, two epochs, dropout on, dev after each epoch.
    """
    data = {"train": str(folder / "toy.csv"), "hold_out": {"dev": 20, "test": 20}}
    parts = {
        "model": {"reference": str(folder / "model")},
        "task": {"data": data, "objective": "classification", "max_length": 16},
        "tuning": "full",
        "batches": {"kind": "packed", "size": 16, "shapes": 1},
        "optimizer": {"kind": "adamw", "learning_rate": 3e-3},
        "training": {"epochs": 2, "log_every": 2},
    }
    return Run.model_validate(parts | changes)


def start(run: Run, directory: Path, *, devices: int = 1, **options: Any) -> subprocess.Popen[str]:
    """`finetune(run, directory, **options)` in a process with so many simulated devices, from the repository's root."""
    program = (
        "import json, sys; from research.run import Run; from research.running import finetune\n"
        "run, directory, options = sys.argv[1:]\n"
        "finetune(Run.model_validate_json(run), directory, progress=False, **json.loads(options))"
    )
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    arguments = [sys.executable, "-c", program, run.model_dump_json(), str(directory), json.dumps(options)]
    root = Path(__file__).resolve().parents[1]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(arguments, cwd=root, env=os.environ | flags, text=True, **pipes)


def arrays(directory: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint in a directory such as `checkpoints/last`, by path."""
    import orbax.checkpoint as ocp

    newest = max(int(path.name) for path in directory.iterdir() if path.name.isdigit())
    path = (directory / str(newest) / "state").absolute()
    with ocp.PyTreeCheckpointer() as reader:  # as NumPy, however many devices there were
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree)
        found = reader.restore(path, restore_args=how)
    named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(found)}
    return {"step": np.array(newest)} | named
