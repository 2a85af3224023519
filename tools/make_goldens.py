"""Writes tests/goldens/<family>.npz: what Transformers computes for a tiny random model, frozen so that tests need no PyTorch.

python tools/make_goldens.py        needs the parity extra

config          config.json as text
weights/NAME    float16 values that float32 holds exactly
inputs/NAME     tokens, mask, [types], [source, source_mask], labels
hidden, logits, loss, gradients/NAME     of the mean cross-entropy over real tokens (or rows); some tensors' only
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY, WIDTH, POSITIONS = 37, 16, 12
_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_labels": 3,
    "intermediate_size": 24,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
}
_LLAMA = _BERT | {"num_key_value_heads": 2, "max_position_embeddings": 64}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": POSITIONS,
    "init_std": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
FAMILIES = {
    "bert": ("BertForSequenceClassification", _BERT),
    "llama": ("LlamaForCausalLM", _LLAMA),
    "bart": ("BartForConditionalGeneration", _BART),
}


def reference(family: str, seed: int = 0, **overrides: Any):
    """A tiny Transformers model in evaluation mode, every parameter random and exact in float16."""
    import torch
    import transformers

    name, fields = FAMILIES[family]
    torch.manual_seed(seed)
    name = overrides.pop("architecture", name)
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**fields | overrides, architectures=[name], attn_implementation="eager"))
    with torch.no_grad():
        for parameter in [*model.parameters(), *(b for n, b in model.named_buffers() if n == "final_logits_bias")]:
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).half().float())
    return model.eval()


def example(family: str, seed: int = 0, length: int = 9, middle: bool = True) -> dict[str, np.ndarray]:
    """Inputs of four rows: full, padded left, right, and in the middle. No padding id stands at a real place."""
    rng = np.random.default_rng(seed)

    def padded(length: int) -> tuple[np.ndarray, np.ndarray]:
        mask = np.ones((4, length), np.int32)
        mask[1, :3] = mask[2, -2:] = 0
        mask[3, slice(2, 5) if middle else slice(0, 1)] = 0
        return rng.integers(3, VOCABULARY, mask.shape).astype(np.int32) * mask, mask

    inputs = dict(zip(("tokens", "mask"), padded(length), strict=True))
    if family == "bert":
        types = (np.arange(length) >= length // 2).astype(np.int32)
        return inputs | {"types": np.tile(types, (4, 1)), "labels": rng.integers(0, 3, 4).astype(np.int32)}
    if family == "bart":
        inputs |= dict(zip(("source", "source_mask"), padded(length + 2), strict=True))
    return inputs | {"labels": rng.integers(0, VOCABULARY, (4, length)).astype(np.int32)}


def measure(model, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """The last hidden states, logits, loss, and the loss's gradient for every parameter by name (`gradients`)."""
    import torch

    given = {name: torch.tensor(array, dtype=torch.long) for name, array in inputs.items()}
    if "source" in given:
        call = {
            "input_ids": given["source"],
            "attention_mask": given["source_mask"],
            "decoder_input_ids": given["tokens"],
            "decoder_attention_mask": given["mask"],
        }
    else:
        call = {"input_ids": given["tokens"], "attention_mask": given["mask"]}
        call |= {"token_type_ids": given["types"]} if "types" in given else {}
    output = model(**call, output_hidden_states=True)
    layers = output.get("decoder_hidden_states") or output.hidden_states
    found = {"hidden": layers[-1].detach().numpy()}
    if "logits" in output:
        chosen = torch.log_softmax(output.logits, -1).gather(-1, given["labels"][..., None])[..., 0]
        weights = given["mask"] if chosen.ndim == 2 else given["mask"][:, 0]  # a row padded left has no first token to classify
        loss = -(chosen * weights).sum() / weights.sum()
        loss.backward()
        gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
        found |= {"logits": output.logits.detach().numpy(), "loss": loss.item(), "gradients": gradients}
    return found


def main() -> None:
    """Write the goldens of all families."""
    folder = Path(__file__).resolve().parents[1] / "tests" / "goldens"
    folder.mkdir(exist_ok=True)
    for family in FAMILIES:
        model, inputs = reference(family), example(family)
        found = measure(model, inputs)
        shared = {tensor.data_ptr(): name for name, tensor in reversed(model.state_dict().items())}
        weights = {name: tensor.numpy() for name, tensor in model.state_dict().items() if shared[tensor.data_ptr()] == name}
        kept = [name for name in found["gradients"] if ".1." in name or "layer" not in name]
        np.savez_compressed(
            folder / f"{family}.npz",
            config=model.config.to_json_string(use_diff=False),
            hidden=found["hidden"],
            logits=found["logits"],
            loss=found["loss"],
            **{f"inputs/{name}": array for name, array in inputs.items()},
            **{f"weights/{name}": array.astype(np.float16) for name, array in weights.items()},
            **{f"gradients/{name}": found["gradients"][name] for name in kept},
        )
        print(f"{family}: {(folder / f'{family}.npz').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
