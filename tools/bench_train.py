"""Training speed, beside the strongest PyTorch reference in the same run. Prints one JSON line last.

    python tools/bench_train.py [--data train.tsv] [--rounds 5]

Step: MiniLM's shape, 32 x 64 tokens, dropout 0.1, AdamW, gradients clipped; one warm process each, taking turns, the ratio
formed turn by turn and its median reported, so that a machine whose speed drifts does not matter. Epoch (with --data): the
file's texts and labels in, a model trained on each once out; tokenising, batching and compiling included, imports and
reading the weights not. Ours runs packed batches; the reference length-grouped ones, padded to their longest, by the
faster of a plain loop and Transformers' Trainer. The reference needs the parity extra (`make parity`); without it only our
own times are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.allocator import tuned_restart

ROWS, LENGTH, CLASSES = 32, 64, 6
LEARNING_RATE = {"full": 1e-4, "lora": 1e-3}


def learner(kind: str) -> Callable[[int], float]:
    """Seconds of a warm step under a strategy: `run(n)` is the median of n."""
    import jax
    import numpy as np

    from research.batches.batch import Batch
    from research.checkpoints.pretrained import read
    from research.fragments import read_yaml
    from research.models.config import Head
    from research.models.model import Policy
    from research.objectives.objective import objective
    from research.training.optimizer import Optimizer, build
    from research.training.state import State
    from research.training.step import train_step
    from research.tuning.strategy import tune

    source = read_yaml(Path(__file__).parents[1] / "configs/models/minilm.yaml")
    base = read(**source, head=Head(form="classification", outputs=CLASSES, dropout=0.1))
    model = base.model.with_policy(Policy(scan=False))  # for a step that runs long enough to be worth compiling longer
    tuned = tune(model, base.variables["params"], kind, jax.random.key(0), fresh=base.report.fresh)
    optimizer = Optimizer(learning_rate=LEARNING_RATE[kind], weight_decay=0.01)
    transformation, _ = build(optimizer, 1000, tuned.trainable, tuned.names)
    step = jax.jit(train_step(tuned, objective("classification"), transformation), donate_argnums=0)
    draw = np.random.default_rng(0)
    batch = jax.device_put(
        Batch(
            tokens=draw.integers(1000, 30000, (ROWS, LENGTH), dtype=np.int32),
            segments=np.ones((ROWS, LENGTH), np.int32),
            targets={"label": draw.integers(0, CLASSES, (ROWS, 1), dtype=np.int32)},
            weights=np.ones((ROWS, 1), np.float32),
            ids=np.arange(ROWS, dtype=np.int32)[:, None],
        )
    )
    state = State.create(tuned.trainable, tuned.state, transformation, 0)

    def run(count: int) -> float:
        nonlocal state
        times = []
        for _ in range(count):
            began = time.perf_counter()
            state, metrics = step(state, tuned.frozen, batch)
            jax.block_until_ready((state, metrics))
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    run(2)
    return run


def epoch(path: Path) -> tuple[float, int]:
    """Seconds of one epoch of a classification file, end to end and compiled anew, and its examples."""
    import jax

    from research.fragments import Draft
    from research.metrics.lookup import direction
    from research.setting import Setting
    from research.training.loop import fit
    from research.training.progress import Progress
    from research.training.tracking import open_tracker

    jax.clear_caches()
    tabs = "\t" in path.open(encoding="utf-8", errors="replace").readline()
    layout = (
        {"format": "tsv", "header": False, "columns": ["text", "label"]}
        if tabs
        else {"format": "text", "encoding": "latin-1", "pattern": r"(?P<label>[A-Z]+):(?P<fine>\w+) (?P<text>.*)"}
    )
    task = {"data": {"train": str(path), **layout}, "objective": {"kind": "classification"}, "max_length": 128}
    run = Draft.of({"model": "minilm", "task": task, "tuning": "full", "training": {"epochs": 1}}, "bench").validated()
    setting = Setting.of(run)
    began = time.perf_counter()
    prepared, _ = setting.prepared(setting.splits.train)
    loader = setting.loader(prepared, train=True)
    with tempfile.TemporaryDirectory() as folder, Progress(show=False) as progress:
        directory = Path(folder)
        fit(
            setting.tuned,
            run.task.objective,
            run.optimizer,
            run.training,
            loader,
            None,
            directory=directory,
            tracker=lambda after: open_tracker(directory, after=after),
            progress=progress,
            seed=0,
            metric=run.task.metric,
            better=direction(run.task.metric),
        )
        return time.perf_counter() - began, len(prepared)


class Reference:
    """The PyTorch side: a warm process that answers one request a line."""

    def __init__(self, data: Path | None, lora_dropout: float = 0.0):
        from research.fragments import read_yaml
        from research.text.references import resolve

        source = read_yaml(Path(__file__).parents[1] / "configs/models/minilm.yaml")
        command = [
            sys.executable,
            str(Path(__file__).parent / "torch_reference.py"),
            "--serve",
            "--model",
            str(resolve(source["reference"], sha256=source["sha256"])),
            "--lora-dropout",
            str(lora_dropout),
        ]
        command += ["--data", str(data)] if data else []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def ask(self, request: str) -> dict[str, Any]:
        """The answer to `full N`, `lora N` or `epoch METHOD`."""
        assert self.process.stdin
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise SystemExit(f"bench_train: the reference failed: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.communicate("quit\n")


@contextlib.contextmanager
def reference(data: Path | None) -> Iterator[Reference | None]:
    """The reference, None where the parity extra is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "peft")):
        print("the parity extra is not installed (make parity): only our own times follow", file=sys.stderr)
        yield None
        return
    other = Reference(data)
    try:
        yield other
    finally:
        other.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="a classification file (text<TAB>label, or TREC's LABEL:fine text) for the epoch"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of five steps each")
    parser.add_argument("--epochs", type=int, default=1, help="turns of an epoch each")
    args = parser.parse_args()
    if args.data and not args.data.is_file():
        parser.error(f"--data: there is no file {args.data}")

    found: dict[str, Any] = {}
    ratios: dict[str, list[float]] = {}
    with reference(args.data) as other:
        ours = {kind: learner(kind) for kind in ("full", "lora")}
        for kind, (theirs, ratio) in {"full": ("torch_full", "full_vs_torch"), "lora": ("peft_lora", "lora_vs_peft")}.items():
            times: dict[str, list[float]] = {}
            for number in range(args.rounds):
                times.setdefault(f"ours_{kind}", []).append(ours[kind](5))
                shown = f"{kind} {number + 1}/{args.rounds}: ours {times[f'ours_{kind}'][-1]:.3f} s"
                if other:
                    times.setdefault(theirs, []).append(other.ask(f"{kind} 5")["seconds"])
                    ratios.setdefault(ratio, []).append(times[theirs][-1] / times[f"ours_{kind}"][-1])
                    shown += f", reference {times[theirs][-1]:.3f} s, ratio {ratios[ratio][-1]:.2f}"
                print(shown, file=sys.stderr)
            found |= {f"{name}_seconds": round(statistics.median(values), 4) for name, values in times.items()}
        ours.clear()
        for _ in range(args.epochs if args.data else 0):
            seconds, examples = epoch(args.data)
            found |= {"ours_epoch_seconds": round(seconds, 2), "epoch_examples": examples}
            if other:
                answer = other.ask("epoch both")
                found["trainer_epoch_seconds"] = round(answer["seconds"], 2)
                ratios.setdefault("epoch_vs_trainer", []).append(answer["seconds"] / seconds)
            print(f"epoch: {found}", file=sys.stderr)
    found |= {name: round(statistics.median(values), 3) for name, values in ratios.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    tuned_restart()
    main()
