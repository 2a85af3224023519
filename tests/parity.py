"""How a model is held against a reference, live or frozen: hidden states, logits, loss and the gradients of one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.batches.batch import Batch
from research.checkpoints.pretrained import tensors
from research.models.model import Model


def batch_of(inputs: Mapping[str, np.ndarray]) -> Batch:
    """The inputs of `tools/make_goldens.py` as a Batch."""
    source = Batch.of(inputs["source"], inputs["source_mask"]) if "source" in inputs else None
    return Batch.of(inputs["tokens"], inputs["mask"], inputs.get("types"), source)


def close(ours: Any, theirs: Any, what: str, tolerance: float = 1e-4, floor: float = 1e-6) -> None:
    """Equal up to `tolerance` of the reference's largest number (at least `floor`)."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (what, ours.shape, theirs.shape)
    error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), floor)
    assert error < tolerance, f"{what}: relative error {error:.1e}"


def check(model: Model, variables: Mapping[str, Any], inputs: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> None:
    """Hold hidden states and logits at real places, and gradients under the file's names, against `expected`."""
    batch, real = batch_of(inputs), inputs["mask"] > 0
    # A classifier reads the first real token; the reference reads place 0, so only rows that begin with one compare.
    counted = real if np.ndim(inputs["labels"]) == 2 else real[:, 0]

    def loss(params):
        output = model.apply(variables | {"params": params}, batch)
        if output.logits is None:
            return 0.0, output
        chosen = jnp.take_along_axis(jax.nn.log_softmax(output.logits), inputs["labels"][..., None], -1)[..., 0]
        return -jnp.sum(chosen * counted) / jnp.sum(counted), output

    (value, output), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    close(output.hidden[real], expected["hidden"][real], "hidden")
    if output.logits is None:
        return
    close(output.logits[counted], expected["logits"][counted], "logits")
    close(value, expected["loss"], "loss")
    ours = tensors(model, gradients)
    for name, gradient in expected["gradients"].items():
        # A key's bias moves no probability: its gradient is rounding noise on both sides, hence the floor.
        close(ours[name], gradient, f"gradient of {name}", floor=1e-2)
