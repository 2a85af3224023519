"""The reference that our training speed is compared with: PyTorch + Transformers (+ PEFT for LoRA) at their strongest.

    texts, labels -> tokens -> length-grouped batches, padded to their longest -> BERT + classifier -> fused AdamW

The shape is MiniLM-L6 (6 layers, 384 wide, 12 heads, 1536 feed-forward, 30,522 words), dropout 0.1, float32 at the
highest matmul precision, 2 threads, gradients clipped at norm 1. Attention is the faster of `sdpa` and `eager`, measured
here: with dropout on, `sdpa` has no fused kernel on a CPU and does the same separate products. It is a process of its own,
because the thread pools of jax and torch fight inside one:

    python tools/torch_reference.py --json full [--steps 10]          one measurement; the last line is JSON
    python tools/torch_reference.py --json epoch --model DIR --data train.tsv
    python tools/torch_reference.py --serve --model DIR --data train.tsv

`--serve` stays warm and reads requests, one a line, so that a benchmark can alternate it with its own steps:

    full 5 | lora 5 | epoch [loop|trainer|both] | quit            -> one JSON object a line; {"error": sentence} on failure

Measure on a quiet machine only: OpenMP threads wait by spinning, so one other busy process makes a step 5 to 10 times
slower, which would flatter us. Answers state `others_busy_cores`: discard those where it is not near 0. An idle server uses
no CPU. Needs the parity extra (torch, transformers, peft, accelerate) and nothing of jax.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

SHAPE = {"num_hidden_layers": 6, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
ATTENTIONS = ("sdpa", "eager")
WARMUP, CLIP, LEARNING_RATE = 0.06, 1.0, 5e-5  # share of the steps; the last two are Trainer's defaults


def start(threads: int = 2) -> float:
    """Import the libraries and set up the process; returns the seconds it took. Call it before anything else.

    Freed memory is kept instead of returned: each step would else fault its activations in again (some 3 % of a step).
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


def build_model(directory: str | Path | None, labels: int, attention: str, lora: bool, lora_dropout: float = 0.0):
    """`BertForSequenceClassification` in training mode: the weights of `directory`, or random ones of the MiniLM shape.

    LoRA is PEFT's: rank 8, alpha 16 on query and value, the classifier trained too. `lora_dropout` is 0 unless asked for:
    PEFT then draws no extra masks, which is its fastest setting.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    options: dict[str, Any] = {"num_labels": labels, "attn_implementation": attention}
    if directory is None:
        model = BertForSequenceClassification(BertConfig(**SHAPE, **options))
    else:
        model = BertForSequenceClassification.from_pretrained(directory, dtype=torch.float32, **options)
    if lora:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            task_type="SEQ_CLS",
            r=8,
            lora_alpha=16,
            lora_dropout=lora_dropout,
            target_modules=["query", "value"],
            modules_to_save=["classifier"],
        )
        model = get_peft_model(model, config)
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
        """One step on `batch` (input_ids, attention_mask [B, T]; labels [B]); returns its loss, a detached scalar."""
        import torch

        loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trainable, CLIP)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class Step:
    """One training step on `batch` x `length` random tokens without padding: built once, run many times."""

    def __init__(
        self,
        lora: bool,
        attention: str,
        directory: str | Path | None = None,
        batch: int = 32,
        length: int = 64,
        labels: int = 6,
        lora_dropout: float = 0.0,
    ):
        import torch

        model = build_model(directory, labels, attention, lora, lora_dropout)
        self.learner = Learner(model, steps=1_000)
        tokens = torch.randint(5, model.config.vocab_size, (batch, length))
        self.batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.arange(batch) % labels}

    def times(self, n: int) -> list[float]:
        """Seconds of each of `n` steps."""
        marks = [time.perf_counter()]
        for _ in range(n):
            self.learner.update(self.batch)
            marks.append(time.perf_counter())
        return [after - before for before, after in pairwise(marks)]

    def run(self, n: int) -> float:
        """Median seconds a step over `n` steps."""
        return statistics.median(self.times(n))


def fastest_step(lora: bool, directory: str | Path | None = None, **options: Any) -> tuple[Step, dict[str, float]]:
    """The `Step` with the faster attention, warm, and the best seconds of each attention.

    The two take turns and their minima are compared, so that a disturbance of the machine does not choose.
    """
    steps = {attention: Step(lora, attention, directory, **options) for attention in ATTENTIONS}
    for step in steps.values():
        step.run(2)
    rounds = [{attention: step.run(1) for attention, step in steps.items()} for _ in range(5)]
    best = {attention: min(seconds[attention] for seconds in rounds) for attention in ATTENTIONS}
    return steps[min(best, key=best.get)], best


def tokenise(tokenizer, texts: Sequence[str], labels: Sequence[int], max_length: int) -> list[dict[str, Any]]:
    """One `{input_ids, attention_mask, labels}` per text, truncated to `max_length` tokens, not yet padded."""
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, return_token_type_ids=False)
    return [
        {"input_ids": tokens, "attention_mask": mask, "labels": label}
        for tokens, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], labels, strict=True)
    ]


def grouped_batches(rows: list[dict[str, Any]], batch: int, collate: Callable) -> Iterator:
    """Every row once in Transformers' length-grouped order (shuffled, sorted within every 50 batches), padded per batch."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    order = get_length_grouped_indices([len(row["input_ids"]) for row in rows], batch)
    for first in range(0, len(order), batch):
        yield collate([rows[i] for i in order[first : first + batch]])


def loop_epoch(model, tokenizer, rows: list[dict[str, Any]], batch: int) -> float:
    """One epoch in a plain loop; returns the mean training loss."""
    import torch
    from transformers import DataCollatorWithPadding

    learner = Learner(model, steps=-(-len(rows) // batch))
    losses = [learner.update(padded) for padded in grouped_batches(rows, batch, DataCollatorWithPadding(tokenizer))]
    return torch.stack(losses).mean().item()


def trainer_epoch(model, tokenizer, rows: list[dict[str, Any]], batch: int) -> float:
    """The same epoch by `transformers.Trainer`, with nothing logged, saved or evaluated; returns the mean training loss."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            num_train_epochs=1,
            per_device_train_batch_size=batch,
            learning_rate=LEARNING_RATE,
            optim="adamw_torch_fused",
            lr_scheduler_type="linear",
            warmup_steps=WARMUP,
            max_grad_norm=CLIP,
            train_sampling_strategy="group_by_length",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), rows, processing_class=tokenizer)
        return trainer.train().training_loss


METHODS = {"loop": loop_epoch, "trainer": trainer_epoch}


def epoch(
    texts: Sequence[str],
    labels: Sequence[int],
    directory: str | Path,
    batch: int = 32,
    max_length: int = 128,
    method: str = "both",
    attention: str = "eager",
    lora: bool = False,
) -> dict[str, Any]:
    """One epoch end to end, tokenisation to the last update, by the plain loop, by Trainer, or by both.

    Returns `seconds` (of the faster), `examples`, `method`, `seconds_by_method`, `loss` (mean of the epoch) and, not part of
    the seconds, `load_seconds`: reading model and tokenizer, and one discarded forward and backward pass that starts the
    threads and kernels.
    """
    from transformers import AutoTokenizer, DataCollatorWithPadding

    results = {}
    for name in METHODS if method == "both" else [method]:
        began = time.perf_counter()
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = build_model(directory, len(set(labels)), attention, lora)
        sample = tokenise(tokenizer, texts[:batch], labels[:batch], max_length)
        model(**DataCollatorWithPadding(tokenizer)(sample)).loss.backward()
        model.zero_grad(set_to_none=True)
        loaded = time.perf_counter()
        loss = METHODS[name](model, tokenizer, tokenise(tokenizer, texts, labels, max_length), batch)
        results[name] = {"seconds": time.perf_counter() - loaded, "load_seconds": loaded - began, "loss": loss}
    best = min(results, key=lambda name: results[name]["seconds"])
    return results[best] | {
        "examples": len(texts),
        "method": best,
        "attention": attention,
        "seconds_by_method": {name: result["seconds"] for name, result in results.items()},
    }


def read_classification(path: str | Path) -> tuple[list[str], list[int]]:
    """Texts and label numbers (of the sorted label names) of `text<TAB>label` lines, or of TREC's `LABEL:fine text`.

    Raises:
        ValueError: naming the line that is neither, or an empty file.
    """
    texts, names = [], []
    for number, line in enumerate(Path(path).read_text("utf-8", "replace").splitlines(), 1):
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


@contextlib.contextmanager
def others_busy() -> Iterator[dict[str, float]]:
    """A mapping that after the block holds `others_busy_cores`: cores that other processes kept busy meanwhile (Linux)."""

    def seconds() -> float:
        user, nice, system = (int(field) for field in Path("/proc/stat").read_text().split()[1:4])
        own = os.times()
        return (user + nice + system) / os.sysconf("SC_CLK_TCK") - own.user - own.system

    result: dict[str, float] = {}
    if not Path("/proc/stat").exists():
        yield result
        return
    began, before = time.perf_counter(), seconds()
    yield result
    result["others_busy_cores"] = round(max(0.0, seconds() - before) / (time.perf_counter() - began), 3)


class Reference:
    """Answers requests (`full N`, `lora N`, `epoch [METHOD]`), keeping each step's model warm between them."""

    def __init__(self, directory: str | None, data: str | None, lora_dropout: float, threads: int):
        self.directory, self.data, self.lora_dropout = directory, data, lora_dropout
        self.start_seconds = start(threads)
        self.steps: dict[str, tuple[Step, dict[str, float]]] = {}

    def answer(self, request: str) -> dict[str, Any]:
        """The measurement that `request` asks for. Raises ValueError with one sentence where it cannot be had."""
        what, _, argument = request.strip().partition(" ")
        if what == "epoch" and argument in ("", "both", *METHODS):
            return {"what": what} | self.epoch(argument or "both")
        if what in ("full", "lora") and argument.isdecimal() and int(argument) > 0:
            return {"what": what} | self.step(what, int(argument))
        raise ValueError(f"unknown request {request.strip()!r}: use 'full N', 'lora N', 'epoch [loop|trainer|both]' or 'quit'.")

    def warm(self, what: str) -> tuple[Step, dict[str, float]]:
        if what not in self.steps:
            self.steps[what] = fastest_step(what == "lora", self.directory, lora_dropout=self.lora_dropout)
        return self.steps[what]

    def step(self, what: str, count: int) -> dict[str, Any]:
        step, best = self.warm(what)
        with others_busy() as disturbance:
            times = step.times(count)
        return {
            "seconds": statistics.median(times),
            "seconds_each": times,
            "attention": min(best, key=best.get),
            "best_by_attention": best,
        } | disturbance

    def epoch(self, method: str) -> dict[str, Any]:
        if not (self.directory and self.data):
            raise ValueError("an epoch needs --model (weights and tokenizer) and --data (a classification file).")
        texts, labels = read_classification(self.data)
        _, best = self.warm("full")
        with others_busy() as disturbance:
            result = epoch(texts, labels, self.directory, method=method, attention=min(best, key=best.get))
        return result | disturbance

    def serve(self, requests: Iterable[str], reply: Callable[[dict[str, Any]], None]) -> None:
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
    parser.add_argument("--model", help="directory of weights and tokenizer (default: random weights)")
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
            reference.serve(iter(sys.stdin.readline, ""), lambda reply: print(json.dumps(reply), file=out, flush=True))
            return
        try:
            answer = reference.answer(f"{options.json} {options.method if options.json == 'epoch' else options.steps}")
        except ValueError as error:
            parser.error(str(error))
    print(json.dumps(answer | {"start_seconds": reference.start_seconds}), flush=True)


if __name__ == "__main__":
    main()
