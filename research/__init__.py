"""Graft: fine-tuning strategies and decoding strategies for Transformers in JAX, compared.

model, params, tokenizer = research.load("hf:sentence-transformers/all-MiniLM-L6-v2")
output = model.apply(params, research.Batch.of([[101, 7592, 102]]))        # .hidden [B,T,D], .logits
result = research.finetune(model="minilm", task="trec", tuning="lora")     # a run, as `graft finetune` makes it
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from research.api import evaluate, finetune, predict
    from research.batches.batch import Batch
    from research.checkpoints.pretrained import load

_PUBLIC = {
    "Batch": "research.batches.batch",
    "load": "research.checkpoints.pretrained",
    "finetune": "research.api",
    "evaluate": "research.api",
    "predict": "research.api",
}
__all__ = ["Batch", "evaluate", "finetune", "load", "predict"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: `import research` alone stays instant."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'research' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
