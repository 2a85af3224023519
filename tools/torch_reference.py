"""The reference that our training speed is compared with: PyTorch + Transformers (+ PEFT for LoRA) at their strongest.

    texts, labels -> tokens -> length-grouped batches, padded to their longest -> BERT + classifier -> AdamW (fused)

The shape is MiniLM-L6 (6 layers, 384 wide, 12 heads, 1536 feed-forward, 30,522 words), dropout 0.1, float32 at the highest
matmul precision, 2 threads, gradient clipping at norm 1. Attention is the faster of `sdpa` and `eager`, measured here: with dropout
on, `sdpa` has no fused kernel on a CPU and falls back to the same separate products.

A process of its own, because the thread pools of jax and torch fight inside one:

    python tools/torch_reference.py --json full [--steps 10]         one measurement; the last line is JSON
    python tools/torch_reference.py --json epoch --model DIR --data train.tsv
    python tools/torch_reference.py --serve --model DIR --data train.tsv

Measure on a quiet machine only: OpenMP's threads wait by spinning, and one other busy process makes a step 5 to 10 times slower, which
would flatter us. Every answer states `others_busy_cores`; discard those where it is not near 0.

`--serve` stays warm and reads requests, one a line, so that a benchmark can alternate it with its own steps:

    full 5 | lora 5 | epoch [loop|trainer|both] | quit           -> one JSON object a line, {"error": sentence} if it fails

Needs the parity extra (torch, transformers, peft, accelerate); imports nothing of jax. Idle between requests it uses no CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

SHAPE = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "vocab_size": 30522}
ATTENTIONS = ("sdpa", "eager")
WARMUP, CLIP, LEARNING_RATE = 0.06, 1.0, 5e-5  # Trainer's defaults for the last two


def start(threads: int = 2) -> float:
    """Import the libraries and set up the process; returns the seconds it took. Call it before anything else.

    Freed memory is kept, not returned to the system: each step would otherwise fault its activations in again (some 3 % of a step).
    """
    began = time.perf_counter()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            ctypes.CDLL("libc.so.6").mallopt(option, 2**30)
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    return time.perf_counter() - began


def build_model(model_directory: str | Path | None, labels: int, attention: str, lora: bool, lora_dropout: float = 0.0, seed: int = 0):
    """`BertForSequenceClassification` in training mode: weights of `model_directory`, or random ones of the MiniLM shape.

    LoRA is PEFT's: rank 8, alpha 16 on query and value, the classifier trained too. `lora_dropout` is 0 unless asked for: PEFT
    then skips the extra masks, which is its fastest setting.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    options = {"num_labels": labels, "attn_implementation": attention}
    if model_directory is None:
        model = BertForSequenceClassification(BertConfig(**SHAPE, **options))
    else:
        model = BertForSequenceClassification.from_pretrained(model_directory, dtype=torch.float32, **options)
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=lora_dropout,
                                                 target_modules=["query", "value"], modules_to_save=["classifier"]))
    return model.train()  # from_pretrained returns it in evaluation mode, without dropout


class Learner:
    """A model with fused AdamW and a linear schedule over `steps` updates."""

    def __init__(self, model, steps: int):
        import torch
        from transformers import get_linear_schedule_with_warmup

        self.model = model
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trainable, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, round(WARMUP * steps), steps)

    def update(self, batch):
        """One step on `batch` (input_ids, attention_mask [B, T]; labels [B]); returns the loss, detached, without waiting for it."""
        import torch

        loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trainable, CLIP)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class Step:
    """One training step on a batch of `batch` x `length` random tokens without padding, built once and run many times."""

    def __init__(self, lora: bool, attention: str, model_directory: str | Path | None = None, batch: int = 32, length: int = 64,
                 labels: int = 6, lora_dropout: float = 0.0):
        import torch

        model = build_model(model_directory, labels, attention, lora, lora_dropout)
        self.learner = Learner(model, steps=10_000)
        tokens = torch.randint(model.config.vocab_size // 10, model.config.vocab_size, (batch, length))
        self.batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.arange(batch) % labels}

    def times(self, n: int) -> list[float]:
        """Seconds of each of `n` steps."""
        marks = [time.perf_counter()]
        for _ in range(n):
            self.learner.update(self.batch)
            marks.append(time.perf_counter())
        return [after - before for before, after in zip(marks, marks[1:])]

    def run(self, n: int) -> float:
        """Median seconds a step over `n` steps."""
        return statistics.median(self.times(n))


def fastest_step(lora: bool, model_directory: str | Path | None = None, trials: int = 4, **options: Any) -> tuple[Step, dict[str, float]]:
    """The `Step` with the faster attention, warm, and the best seconds of each.

    The two take turns and their minima are compared, so that a disturbance of the machine does not choose.
    """
    steps = {attention: Step(lora, attention, model_directory, **options) for attention in ATTENTIONS}
    seconds = dict.fromkeys(ATTENTIONS, float("inf"))
    for step in steps.values():
        step.run(2)
    for _ in range(trials):
        for attention, step in steps.items():
            seconds[attention] = min(seconds[attention], step.run(1))
    return steps[min(seconds, key=seconds.get)], seconds


def tokenise(tokenizer, texts: Sequence[str], labels: Sequence[int], max_length: int) -> list[dict[str, Any]]:
    """One `{input_ids, attention_mask, labels}` per text, truncated to `max_length` tokens, not yet padded."""
    ids = tokenizer(list(texts), truncation=True, max_length=max_length, return_token_type_ids=False, return_attention_mask=False)["input_ids"]
    return [{"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": label} for tokens, label in zip(ids, labels, strict=True)]


def grouped_batches(rows: list[dict[str, Any]], batch: int, collate: Callable) -> Iterator:
    """Every row once, in Transformers' length-grouped order (shuffled, then sorted within every 50 batches), padded per batch."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    order = get_length_grouped_indices([len(row["input_ids"]) for row in rows], batch)
    for first in range(0, len(order), batch):
        yield collate([rows[i] for i in order[first:first + batch]])


def loop_epoch(model, tokenizer, texts: Sequence[str], labels: Sequence[int], batch: int, max_length: int) -> float:
    """One epoch in a plain loop; returns the mean training loss."""
    import torch
    from transformers import DataCollatorWithPadding

    rows = tokenise(tokenizer, texts, labels, max_length)
    learner = Learner(model, steps=-(-len(rows) // batch))
    losses = [learner.update(padded) for padded in grouped_batches(rows, batch, DataCollatorWithPadding(tokenizer))]
    return torch.stack(losses).mean().item()


def trainer_epoch(model, tokenizer, texts: Sequence[str], labels: Sequence[int], batch: int, max_length: int) -> float:
    """The same epoch through `transformers.Trainer`, with nothing logged, saved or evaluated; returns the mean training loss."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    rows = tokenise(tokenizer, texts, labels, max_length)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, use_cpu=True, num_train_epochs=1, per_device_train_batch_size=batch, learning_rate=LEARNING_RATE,
            optim="adamw_torch_fused", lr_scheduler_type="linear", warmup_steps=WARMUP, max_grad_norm=CLIP,
            train_sampling_strategy="group_by_length", logging_strategy="no", save_strategy="no", report_to="none",
            disable_tqdm=True, dataloader_pin_memory=False)
        trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), rows, processing_class=tokenizer)
        return trainer.train().training_loss


METHODS = {"loop": loop_epoch, "trainer": trainer_epoch}


def epoch(texts: Sequence[str], labels: Sequence[int], model_directory: str | Path, batch: int = 32, max_length: int = 128,
          method: str = "both", attention: str = "eager", lora: bool = False) -> dict[str, Any]:
    """One epoch end to end, tokenisation to the last update, by the plain loop, by Trainer, or by both (the faster is reported).

    Returns `seconds`, `examples`, `method`, `seconds_by_method`, `loss` (mean of the epoch), and apart from them `load_seconds`: reading
    model and tokenizer, and one discarded forward and backward pass that starts threads and kernels.
    """
    from transformers import AutoTokenizer, DataCollatorWithPadding

    results = {}
    for name in METHODS if method == "both" else [method]:
        began = time.perf_counter()
        tokenizer = AutoTokenizer.from_pretrained(model_directory)
        model = build_model(model_directory, len(set(labels)), attention, lora)
        sample = tokenise(tokenizer, texts[:batch], labels[:batch], max_length)
        model(**DataCollatorWithPadding(tokenizer)(sample)).loss.backward()
        model.zero_grad(set_to_none=True)
        loaded = time.perf_counter()
        loss = METHODS[name](model, tokenizer, texts, labels, batch, max_length)
        results[name] = {"seconds": time.perf_counter() - loaded, "load_seconds": loaded - began, "loss": loss}
    best = min(results, key=lambda name: results[name]["seconds"])
    return results[best] | {"examples": len(texts), "method": best, "attention": attention,
                            "seconds_by_method": {name: result["seconds"] for name, result in results.items()}}


def read_classification(path: str | Path) -> tuple[list[str], list[int]]:
    """Texts and label numbers (of the sorted label names) of `text<TAB>label` lines, or of TREC's `LABEL:fine text`.

    Raises:
        ValueError: naming the line that is neither, or an empty file.
    """
    texts, names = [], []
    for number, line in enumerate(Path(path).read_bytes().decode("utf-8", "replace").splitlines(), 1):
        text, tab, name = line.rpartition("\t")
        if not tab:
            kind, _, text = line.partition(" ")
            name = kind.partition(":")[0] if ":" in kind else ""
        if not (text.strip() and name.strip()):
            raise ValueError(f"{path}, line {number}: expected 'text<TAB>label' or 'LABEL:fine text'.")
        texts.append(text.strip())
        names.append(name.strip())
    if not texts:
        raise ValueError(f"{path} is empty.")
    index = {name: i for i, name in enumerate(sorted(set(names)))}
    return texts, [index[name] for name in names]


def others_busy_seconds() -> float:
    """CPU seconds that all other processes have used so far (Linux; 0 elsewhere): its growth shows a disturbed measurement."""
    try:
        user, nice, system = (int(field) for field in Path("/proc/stat").read_text().split()[1:4])
    except (OSError, ValueError):
        return 0.0
    own = os.times()
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - own.user - own.system


class Reference:
    """Answers requests (`full N`, `lora N`, `epoch [METHOD]`), keeping each step's model warm between them."""

    def __init__(self, model_directory: str | None, data: str | None, lora_dropout: float, threads: int):
        self.model_directory, self.data, self.lora_dropout = model_directory, data, lora_dropout
        self.start_seconds = start(threads)
        self.steps: dict[str, tuple[Step, dict[str, float]]] = {}

    def answer(self, request: str) -> dict[str, Any]:
        """The measurement that `request` asks for. Raises ValueError with one sentence where it cannot be had."""
        what, _, argument = request.strip().partition(" ")
        if what == "epoch":
            return self.epoch(argument or "both")
        if what not in ("full", "lora") or not argument.isdecimal() or int(argument) < 1:
            raise ValueError(f"unknown request {request!r}: expected 'full N', 'lora N', 'epoch [loop|trainer|both]' or 'quit'.")
        if what not in self.steps:
            self.steps[what] = fastest_step(what == "lora", self.model_directory, lora_dropout=self.lora_dropout)
        step, by_attention = self.steps[what]
        times = step.times(int(argument))
        return {"what": what, "seconds": statistics.median(times), "seconds_each": times,
                "attention": min(by_attention, key=by_attention.get), "best_by_attention": by_attention}

    def epoch(self, method: str) -> dict[str, Any]:
        if not (self.model_directory and self.data):
            raise ValueError("an epoch needs --model (a directory with weights and tokenizer) and --data (a classification file).")
        if method not in (*METHODS, "both"):
            raise ValueError(f"unknown way to run an epoch {method!r}: expected loop, trainer or both.")
        texts, labels = read_classification(self.data)
        if "full" not in self.steps:
            self.steps["full"] = fastest_step(False, self.model_directory, lora_dropout=self.lora_dropout)
        _, by_attention = self.steps["full"]
        return {"what": "epoch", "start_seconds": self.start_seconds} | epoch(
            texts, labels, self.model_directory, method=method, attention=min(by_attention, key=by_attention.get))

    def serve(self, requests: Iterator[str], reply: Callable[[dict[str, Any]], None]) -> None:
        """Answer line after line until `quit` or the end; a request that fails is answered with its error."""
        reply({"ready": True, "start_seconds": self.start_seconds})
        for request in requests:
            if request.strip() == "quit":
                break
            try:
                reply(self.answer(request))
            except Exception as error:
                reply({"error": str(error)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--json", choices=("full", "lora", "epoch"), help="measure this once and print JSON")
    mode.add_argument("--serve", action="store_true", help="answer requests read from standard input")
    parser.add_argument("--model", help="directory with config.json, model.safetensors, tokenizer.json (default: random weights)")
    parser.add_argument("--data", help="classification file for the epoch")
    parser.add_argument("--steps", type=int, default=10, help="steps of full and lora; the median is reported")
    parser.add_argument("--method", choices=(*METHODS, "both"), default="both", help="how the epoch runs")
    parser.add_argument("--lora-dropout", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for path in filter(None, (options.model, options.data)):
        if not Path(path).exists():
            parser.error(f"{path} does not exist.")
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # libraries print; standard output carries JSON only
        reference = Reference(options.model, options.data, options.lora_dropout, options.threads)
        if options.serve:
            reference.serve(iter(sys.stdin.readline, ""), lambda answer: print(json.dumps(answer), file=out, flush=True))
            return
        try:
            answer = reference.answer(f"epoch {options.method}" if options.json == "epoch" else f"{options.json} {options.steps}")
        except ValueError as error:
            parser.error(str(error))
    print(json.dumps(answer | {"start_seconds": reference.start_seconds}), flush=True)


if __name__ == "__main__":
    main()
