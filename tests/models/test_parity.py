"""Parity with Transformers on random tiny models, through its files: read what it wrote, and it reads what we write."""

from __future__ import annotations

import json

import numpy as np
import pytest

from research.checkpoints.pretrained import load, read, save
from tests.parity import batch_of, check, close

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from tools.make_goldens import POSITIONS, example, measure, reference  # noqa: E402

CASES = {
    "bert at its position limit, tanh GELU": ("bert", POSITIONS, {"hidden_act": "gelu_new", "type_vocab_size": 3}),
    "bert without a head": ("bert", 7, {"architecture": "BertModel"}),
    "llama untied, wide heads": ("llama", 9, {"head_dim": 6, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "llama tied, with biases": (
        "llama",
        9,
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1, "rms_norm_eps": 1e-3},
    ),
    "bart scaled, at its limit": ("bart", POSITIONS - 2, {"scale_embedding": True, "activation_function": "relu"}),
    "bart without a head": ("bart", 6, {"architecture": "BartModel"}),
}


@pytest.mark.parametrize("case", CASES)
def test_same_function_and_gradients(case, tmp_path):
    """Hidden states, logits and gradients agree under full rows and left, right and middle padding."""
    family, length, overrides = CASES[case]
    theirs, inputs = reference(family, seed=3, **overrides), example(family, seed=4, length=length)
    theirs.save_pretrained(tmp_path / "theirs")
    found = read(tmp_path / "theirs")
    assert found.report.unread == () and found.report.dropped == () and found.report.fresh == ()
    check(found.model, found.variables, inputs, measure(theirs, inputs))

    save(found.model, found.variables, tmp_path / "ours")
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in theirs.state_dict().items():
        assert np.array_equal(tensor.numpy(), again.state_dict()[name].numpy()), name


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_files_shards_and_old_names(kind, tmp_path):
    """float16 and bfloat16 files in shards, with BERT's old names gamma and beta, give the float32 numbers they hold."""
    import torch
    from safetensors.torch import load_file, save_file

    theirs = reference("bert", seed=5).to(getattr(torch, kind))
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    old = lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    for shard in shards:
        save_file({old(n): t for n, t in load_file(shard).items()}, shard)
    index["weight_map"] = {old(n): f for n, f in index["weight_map"].items()}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model, variables, _ = load(tmp_path)
    inputs = example("bert")
    ours = model.apply(variables, batch_of(inputs)).hidden
    close(ours[inputs["mask"] > 0], measure(theirs.float(), inputs)["hidden"][inputs["mask"] > 0], "hidden")
