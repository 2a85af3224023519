"""Llama checkpoints in the legacy format of llama2.c: seven int32, then float32 tensors in a fixed order, without names.

    dim hidden layers heads kv_heads +-vocabulary length | embedding | norms [L,D] | wq [L,D,D] | wk | wv | wo | ...

Its rotary pairs are neighbours (x_0, x_1); ours, like those of the Hugging Face files, lie half a head apart. Reordering
the rows of the query and key projections makes the two the same function.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from research.checkpoints.weights import Weights
from research.errors import InputError

_HEADER = ("dim", "hidden", "layers", "heads", "kv_heads", "vocabulary", "length")


def open_weights(path: Path) -> Weights:
    """The file as a Llama config and tensors under their Hugging Face names, memory-mapped.

    Raises:
        InputError: not such a file, or of another length than its header says.
    """
    header = np.fromfile(path, "<i4", 7)
    if len(header) < 7 or min(*header[:5], header[6]) <= 0 or header[5] == 0 or header[3] % header[4] or header[0] % header[3]:
        raise InputError(f"{path} is no llama2.c checkpoint of the legacy format (seven int32, then float32).")
    size = dict(zip(_HEADER, map(int, header), strict=True))
    tied, vocabulary = size["vocabulary"] > 0, abs(size["vocabulary"])
    width, hidden, layers, heads = size["dim"], size["hidden"], size["layers"], size["heads"]
    head_width = width // heads
    grouped = size["kv_heads"] * head_width
    parts = {
        "embed_tokens": (vocabulary, width),
        "input_layernorm": (layers, width),
        "self_attn.q_proj": (layers, width, width),
        "self_attn.k_proj": (layers, grouped, width),
        "self_attn.v_proj": (layers, grouped, width),
        "self_attn.o_proj": (layers, width, width),
        "post_attention_layernorm": (layers, width),
        "mlp.gate_proj": (layers, hidden, width),
        "mlp.down_proj": (layers, width, hidden),
        "mlp.up_proj": (layers, hidden, width),
        "norm": (width,),
        "rotary": (size["length"], head_width),  # a table of cosines and sines, which follow from the config
    } | ({} if tied else {"lm_head": (vocabulary, width)})
    numbers = sum(int(np.prod(shape)) for shape in parts.values())
    if path.stat().st_size != 28 + 4 * numbers:
        raise InputError(f"{path} has {path.stat().st_size} bytes where its header announces {28 + 4 * numbers}.")

    mapped, at, tensors = np.memmap(path, "<f4", "r", 28), 0, {}
    for name, shape in parts.items():
        block = mapped[at : (at := at + int(np.prod(shape)))].reshape(shape)
        if name in ("embed_tokens", "norm", "lm_head"):
            tensors[f"{name}.weight" if name == "lm_head" else f"model.{name}.weight"] = block
        elif name != "rotary":
            tensors |= {f"model.layers.{layer}.{name}.weight": block[layer] for layer in range(layers)}

    def read(name: str) -> np.ndarray:
        return _halves(tensors[name], head_width) if "q_proj" in name or "k_proj" in name else tensors[name]

    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": size["kv_heads"],
        "max_position_embeddings": size["length"],
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "eos_token_id": [1, 2],  # its texts are separated by the token that begins one
    }
    return Weights(config, path, dict.fromkeys(tensors, path), read)


def _halves(kernel: np.ndarray, head_width: int) -> np.ndarray:
    """Rows 0, 1, 2, 3, ... of each head as 0, 2, ..., 1, 3, ...: neighbours become partners half a head apart."""
    rows, width = kernel.shape
    return kernel.reshape(rows // head_width, head_width // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
