"""The names and configs of the families, against goldens frozen from Transformers, which is not needed here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research.checkpoints.pretrained import load, save
from research.errors import InputError
from research.models.family import Fields, family
from tests.parity import check
from tests.tiny import FAMILIES, tiny

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"


def golden(name: str, folder: Path) -> tuple[dict, dict]:
    """Write the golden model's files to `folder`; its inputs, and what the reference computed."""
    stored = np.load(GOLDENS / f"{name}.npz")
    part = lambda prefix: {k.removeprefix(prefix): stored[k] for k in stored.files if k.startswith(prefix)}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(str(stored["config"]))
    save_file({k: v.astype(np.float32) for k, v in part("weights/").items()}, folder / "model.safetensors")
    return part("inputs/"), {k: stored[k] for k in ("hidden", "logits", "loss")} | {"gradients": part("gradients/")}


@pytest.mark.parametrize("name", FAMILIES)
def test_golden_and_round_trip(name, tmp_path):
    """Same hidden states, logits, loss and gradients as the reference; what is written is what was read, bit by bit."""
    inputs, expected = golden(name, tmp_path / "in")
    model, variables, tokenizer = load(tmp_path / "in")
    assert tokenizer is None and len(expected["gradients"]) > 10
    check(model, variables, inputs, expected)

    save(model, variables, tmp_path / "out")
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("in", "out"))
    assert before.keys() == after.keys()
    assert all(before[k].tobytes() == after[k].tobytes() and before[k].shape == after[k].shape for k in before)
    again, same, _ = load(tmp_path / "out")
    assert again == model
    first = (tmp_path / "out" / "model.safetensors").read_bytes()
    save(again, same, tmp_path / "out")  # into a folder that is there
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"], "something temporary was left behind"


@pytest.mark.parametrize("name", FAMILIES)
def test_names_are_one_to_one(name):
    """No two of our names share a tensor, none is left untranslated, and a split model has the same ones."""
    from research.models import layout

    model, variables = tiny(name)
    kind = family(name, "")
    names = layout.names(model.config, variables["params"])
    written = [kind.written(n, model.config.head) for n in names]
    assert len(set(written)) == len(written)
    assert not any("/" in w or "kernel" in w or "layers/" in w for w in written)
    stack = next(reversed(model.config.stacks))
    split, params = model.split(variables["params"], {stack: 2})
    assert sorted(kind.written(n, split.config.head) for n in layout.names(split.config, params)) == sorted(written)
    found = frozenset(map(kind.canonical, written))
    assert kind.write(split.config, found) == kind.write(model.config, found)


REFUSED = [
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
    ("bert", {"is_decoder": True}, "is_decoder"),
    ("bert", {"hidden_act": "gelu_fast"}, "hidden_act = 'gelu_fast'"),
    ("bert", {"num_attention_heads": 5}, "16 cannot be divided among 5"),
    ("bert", {"hidden_size": "16"}, "hidden_size must be int"),
    ("bert", {"hidden_dropout_prob": 1.5}, "dropout"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}}, "rope_parameters"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama", {"num_key_value_heads": 3}, "multiple of kv_heads"),
    ("bart", {"normalize_before": True}, "normalize_before"),
    ("bart", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ("bart", {"encoder_layerdrop": 0.1}, "encoder_layerdrop"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_refuses_what_it_does_not_honour(name, change, message):
    values = json.loads(str(np.load(GOLDENS / f"{name}.npz")["config"])) | change
    with pytest.raises(InputError, match=message) as error:
        family(name, "").read(Fields(values, "here/config.json"), frozenset())
    assert "here/config.json" in str(error.value)


def test_unknown_family_lists_the_known_ones():
    with pytest.raises(InputError, match=r"'gpt9'.*bart, bert, llama"):
        family("gpt9", "config.json")


def test_fields_nobody_knows_are_reported():
    values = json.loads(str(np.load(GOLDENS / "bert.npz")["config"])) | {"moonlight": 3, "transformers_version": "4"}
    fields = Fields(values, "config.json")
    family("bert", "").read(fields, frozenset())
    assert fields.unread == ("moonlight",)


def test_what_a_file_cannot_say_is_not_written(tmp_path):
    """A BERT without biases in its attention has no place in BERT's config, so it is not written as one that has."""
    model, variables = tiny("bert", attention_bias=False)
    with pytest.raises(InputError, match="cannot hold this model's encoder"):
        save(model, variables, tmp_path / "out")
    assert not list(tmp_path.iterdir())
