"""tools/torch_reference.py runs, trains what it says, and answers over its line protocol (needs the parity extra)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

PROGRAM = Path(__file__).resolve().parents[2] / "tools" / "torch_reference.py"


@pytest.fixture(scope="module")
def reference():
    sys.path.insert(0, str(PROGRAM.parent))
    try:
        import torch_reference
    finally:
        sys.path.remove(str(PROGRAM.parent))
    threads = torch.get_num_threads()
    yield torch_reference
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Path, Path]:
    """A directory with a tiny BERT and its tokenizer, and a classification file of 40 sentences of 1 to 10 words."""
    folder = tmp_path_factory.mktemp("tiny")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(ord("a") + i) for i in range(20))]
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(folder)
    data = folder / "train.tsv"
    data.write_text("".join(f"{' '.join(words[5:][: 1 + i % 10])}\t{'good' if i % 2 else 'bad'}\n" for i in range(40)))
    return folder, data


@pytest.mark.parametrize("lora", [False, True])
def test_a_step_moves_exactly_what_the_strategy_trains(reference, tiny, lora, monkeypatch):
    monkeypatch.setattr(reference, "WARMUP", 0.0)
    step = reference.Step(lora, "sdpa", tiny[0], batch=4, length=8)
    before = {name: parameter.detach().clone() for name, parameter in step.learner.model.named_parameters()}
    assert len(step.times(3)) == 3  # LoRA's A moves once its B has left zero
    moved = {name for name, parameter in step.learner.model.named_parameters() if not torch.equal(parameter, before[name])}
    adapters = {name for name in before if "lora_" in name}
    expected = adapters | {name for name in before if "modules_to_save" in name} if lora else set(before)
    assert all(module.training for module in step.learner.model.modules())  # dropout is on
    assert all(".query." in name or ".value." in name for name in adapters)
    assert moved <= expected
    assert {name for name in expected - moved if "key.bias" not in name} == set()  # softmax ignores it
    assert not lora or len(expected) == 2 * 2 * 2 + 2  # layers x {query, value} x {A, B}, and the classifier


def test_grouped_batches_hold_every_row_once_and_pad_less_than_random_ones(reference, tiny):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny[0])
    texts, labels = reference.read_classification(tiny[1])
    assert (len(texts), set(labels)) == (40, {0, 1})
    rows = reference.tokenise(tokenizer, texts, labels, max_length=8)
    assert max(len(row["input_ids"]) for row in rows) == 8
    collate = transformers.DataCollatorWithPadding(tokenizer)
    grouped = list(reference.grouped_batches(rows, 4, collate))
    seen = sorted((*t[t > 0].tolist(), int(y)) for b in grouped for t, y in zip(b["input_ids"], b["labels"], strict=True))
    assert seen == sorted((*row["input_ids"], row["labels"]) for row in rows)
    in_order = [collate(rows[i : i + 4]) for i in range(0, 40, 4)]
    assert sum(b["input_ids"].numel() for b in grouped) < sum(b["input_ids"].numel() for b in in_order)


def test_loop_and_trainer_run_the_same_epoch(reference, tiny):
    texts, labels = reference.read_classification(tiny[1])
    result = reference.epoch(texts, labels, tiny[0], batch=8, method="both")
    assert result["examples"] == 40 and result["seconds"] == min(result["seconds_by_method"].values())
    losses = [reference.epoch(texts, labels, tiny[0], batch=8, method=method)["loss"] for method in ("loop", "trainer")]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


def test_serve_answers_each_line_with_json_and_survives_a_bad_one(tiny):
    folder, data = tiny
    done = subprocess.run(
        [sys.executable, PROGRAM, "--serve", "--model", folder, "--data", data],
        text=True,
        capture_output=True,
        input="lora 2\nfull none\nepoch loop\nquit\nfull 1\n",
        timeout=120,
    )
    ready, lora, bad, epoch = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 0 and ready["ready"]
    assert lora["seconds"] > 0 and len(lora["seconds_each"]) == 2 and set(lora["best_by_attention"]) == {"sdpa", "eager"}
    assert "full none" in bad["error"] and epoch["examples"] == 40


def test_a_line_without_a_label_is_refused_by_number(tiny, tmp_path):
    broken = tmp_path / "broken.tsv"
    broken.write_text("fine\t1\nno label here\n")
    done = subprocess.run(
        [sys.executable, PROGRAM, "--json", "epoch", "--model", tiny[0], "--data", broken], text=True, capture_output=True
    )
    assert done.returncode == 2 and "broken.tsv, line 2" in done.stderr and not done.stdout
