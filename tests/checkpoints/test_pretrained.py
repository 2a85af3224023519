"""Loading and saving: heads kept, replaced and made; everything wrong with a file told in one sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from research import trees
from research.checkpoints.pretrained import base_hash, load, read, save
from research.checkpoints.weights import open_weights
from research.errors import InputError
from research.models.config import Head
from tests.tiny import tiny, tiny_batch


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The tiny BERT classifier's folder; copy it before changing it."""
    folder = tmp_path_factory.mktemp("saved") / "bert"
    save(*tiny("bert", layers=2), folder)
    return folder


def changed(saved, folder, tensors=None, **config):
    """A copy of the folder with tensors and config fields replaced; None removes."""
    shutil.copytree(saved, folder)
    merged = lambda old, new: {k: v for k, v in (old | new).items() if v is not None}
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(merged(values, config)))
    save_file(merged(load_file(folder / "model.safetensors"), tensors or {}), folder / "model.safetensors")
    return folder


Q = "bert.encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({Q: None}, {}, r"model\.safetensors lacks the tensor encoder\.layer\.1\.attention\.self\.query\.weight"),
        ({"bert.surplus": np.zeros(2, np.float32)}, {}, r"model\.safetensors holds the tensor bert\.surplus"),
        ({"qa_outputs.weight": np.zeros(2, np.float32)}, {}, r"holds the tensor qa_outputs\.weight"),
        ({Q: np.zeros((24, 23), np.float32)}, {}, rf"{Q} has shape \[24, 23\] where the config says \[24, 24\]"),
        ({Q: np.zeros((24, 24), np.int8)}, {}, rf"model\.safetensors: tensor {Q} holds I8"),
        ({"classifier.weight": None}, {}, r"lacks the tensor classifier\.weight"),
        ({}, {"num_hidden_layers": 3}, r"lacks the tensor encoder\.layer\.2\."),
        ({}, {"num_hidden_layers": 1}, r"holds the tensor bert\.encoder\.layer\.1\."),
        ({}, {"vocab_size": 41}, r"word_embeddings\.weight has shape \[40, 24\] where the config says \[41, 24\]"),
        ({}, {"model_type": "gpt9"}, r"config\.json: model_type 'gpt9' is not known here. Known: bart, bert, llama"),
        ({}, {"architectures": ["BertForMaskedLM"]}, r"config\.json: the head of BertForMaskedLM is not read"),
        ({}, {"hidden_act": "mish"}, r"config\.json: hidden_act = 'mish'"),
    ],
)
def test_bad_files(saved, tmp_path, tensors, config, message):
    with pytest.raises(InputError, match=message):
        load(changed(saved, tmp_path / "bad", tensors, **config))


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_truncated(saved, tmp_path, size):
    folder = shutil.copytree(saved, tmp_path / "cut")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:size])
    with pytest.raises(InputError, match=r"model\.safetensors is truncated or not a safetensors file"):
        load(folder)


def test_not_a_model(tmp_path):
    for content, message in (
        (None, "no config.json"),
        ("{", "not readable JSON"),
        ("{}", "no 'model_type'"),
        ('{"model_type": "bert"}', r"no model\.safetensors\. pytorch_model\.bin is not read"),
    ):
        if content:
            (tmp_path / "config.json").write_text(content)
            (tmp_path / ("pytorch_model.bin" if "bert" in content else "model.safetensors")).touch()
            if "bert" in content:
                (tmp_path / "model.safetensors").unlink()
        with pytest.raises(InputError, match=message):
            load(tmp_path)


def test_heads(saved, tmp_path):
    """Kept where form and size agree, replaced where they differ, made where there is none; the rest stays as it was."""
    _, kept = tiny("bert", layers=2)
    same = read(saved, head=Head(form="classification", outputs=3, dropout=0.3))
    assert same.report.fresh == () and same.model.config.head.dropout == 0.3
    assert jax.tree.all(jax.tree.map(np.array_equal, same.variables, kept))

    other = read(saved, head=Head(form="classification", outputs=5), seed=1)
    assert other.report.fresh == ("head/output/bias", "head/output/kernel")
    assert other.report.dropped == ("classifier.bias", "classifier.weight")
    assert "newly initialised: head/output/bias, head/output/kernel" in str(other.report)
    flat, before = trees.flatten(other.variables["params"]), trees.flatten(kept["params"])
    assert flat["head/output/kernel"].shape == (24, 5) and 0.1 < np.std(flat["head/output/kernel"]) < 0.3
    assert all(np.array_equal(flat[k], before[k]) for k in flat if not k.startswith("head/"))
    assert jax.eval_shape(other.model.apply, other.variables, tiny_batch("bert")).logits.shape == (4, 5)
    again = read(saved, head=Head(form="classification", outputs=5), seed=1)
    assert np.array_equal(again.variables["params"]["head"]["output"]["kernel"], flat["head/output/kernel"])

    body = read(saved, head=None)
    assert body.model.config.head is None and "head" not in body.variables["params"] and len(body.report.dropped) == 2
    # A masked-language file: another head, and no pooler. A classifier gets a new one, as the reference library's does.
    names = dict.fromkeys(("classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"))
    folder = changed(
        saved, tmp_path / "mlm", names | {"cls.predictions.bias": np.zeros(40, np.float32)}, architectures=["BertForMaskedLM"]
    )
    mlm = read(folder, head=Head(form="classification", outputs=2))
    assert mlm.report.dropped == ("cls.predictions.bias",)
    assert set(mlm.report.fresh) == {"pooler/dense/kernel", "pooler/dense/bias", "head/output/kernel", "head/output/bias"}
    save(mlm.model, mlm.variables, tmp_path / "new")
    assert load(tmp_path / "new")[0] == mlm.model


def test_tied_tensors(tmp_path):
    """A file may repeat a tied tensor, or hold only the repeat; a repeat that differs is refused."""
    model, variables = tiny("llama", layers=2)
    save(model, variables, tmp_path / "llama")
    table = load_file(tmp_path / "llama" / "model.safetensors")["model.embed_tokens.weight"]
    inverse = np.zeros(3, np.float32)
    both = changed(
        tmp_path / "llama",
        tmp_path / "both",
        {"lm_head.weight": table, "model.layers.0.self_attn.rotary_emb.inv_freq": inverse},
    )
    only = changed(tmp_path / "llama", tmp_path / "only", {"lm_head.weight": table, "model.embed_tokens.weight": None})
    for folder in (both, only):
        assert jax.tree.all(jax.tree.map(np.array_equal, load(folder)[1], variables))
    with pytest.raises(InputError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        load(changed(tmp_path / "llama", tmp_path / "differs", {"lm_head.weight": table + 1}))


def test_base_hash(saved, tmp_path, monkeypatch):
    """The file's sha256; remembered, and formed again when the file changes."""
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(saved, tmp_path / "copy")
    file = folder / "model.safetensors"
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert base_hash(folder) == base_hash(file) == expected
    (kept,) = (tmp_path / "cache" / "hashes").iterdir()
    kept.write_text("f" * 64)
    assert base_hash(folder) == "f" * 64
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert base_hash(folder) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_tuning_leaves_are_not_lost(tmp_path):
    model, variables = tiny("llama", layers=2)
    with pytest.raises(InputError, match="merge"):
        save(model, variables | {"tuning": {"decoder": np.zeros(2)}}, tmp_path / "out")


def test_llama2c_layout(tmp_path):
    """The legacy format, written from named tensors with neighbouring rotary pairs, reads as those tensors."""
    model, variables = tiny("llama", layers=2, head=Head(form="language", tied=False))
    save(model, variables, tmp_path / "hf")
    named = load_file(tmp_path / "hf" / "model.safetensors")

    def interleaved(kernel):
        halves = kernel.reshape(-1, 2, 3, kernel.shape[1])  # heads of width 6
        return halves.swapaxes(1, 2).reshape(kernel.shape)

    per_layer = [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.down_proj",
        "mlp.up_proj",
    ]
    parts = [named["model.embed_tokens.weight"]]
    for part in per_layer:
        arrays = [named[f"model.layers.{i}.{part}.weight"] for i in range(2)]
        parts += [interleaved(a) if part[-6:] in ("q_proj", "k_proj") else a for a in arrays]
    parts += [named["model.norm.weight"], np.zeros((16, 6), np.float32), named["lm_head.weight"]]
    content = struct.pack("<7i", 24, 40, 2, 4, 2, -40, 16) + b"".join(p.astype("<f4").tobytes() for p in parts)
    (tmp_path / "model.bin").write_bytes(content)
    body = read(tmp_path / "hf", head=None).report  # an untied head is dropped, not taken for a repeat of the embedding
    assert body.dropped == ("lm_head.weight",) and body.loaded == len(named) - 1
    weights = open_weights(tmp_path / "model.bin")
    assert weights.files.keys() == named.keys()
    assert all(np.array_equal(weights.read(name), named[name]) for name in named)
    assert jax.tree.all(jax.tree.map(np.array_equal, load(tmp_path / "model.bin")[1], variables))
    (tmp_path / "model.bin").write_bytes(content[:-4])
    with pytest.raises(InputError, match=r"model\.bin has \d+ bytes where its header announces"):
        load(tmp_path / "model.bin")
