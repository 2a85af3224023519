"""What a family's file says: how its `config.json` reads as a ModelConfig, and what its tensors are called there.

    config.json  --Fields-->  ModelConfig                encoder/layers/3/attention/query/kernel  [in, out]
                 <--json---                  --rules-->  encoder.layer.3.attention.self.query.weight  [out, in]

Only the direction from our names to theirs is written down. Reading asks the file for the tensor behind every name that the
model has; writing asks the model. So the two are inverse by construction, and what nobody asked for is left over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pydantic

from research.config import variant, variants
from research.errors import InputError
from research.models.config import Head, Layer, ModelConfig, Stack

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}  # theirs -> ours
THEIRS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}

# Fields that say nothing about the function or how it is trained: bookkeeping, and defaults of another library's generation.
_NEUTRAL = {
    "architectures",
    "model_type",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "_name_or_path",
    "name_or_path",
    "use_cache",
    "gradient_checkpointing",
    "pad_token_id",
    "bos_token_id",
    "sep_token_id",
    "id2label",
    "label2id",
    "problem_type",
    "finetuning_task",
    "task_specific_params",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torchscript",
    "use_bfloat16",
    "chunk_size_feed_forward",
    "_attn_implementation",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "force_bos_token_to_be_generated",
    "num_beams",
    "num_beam_groups",
    "early_stopping",
    "max_length",
    "min_length",
    "length_penalty",
    "no_repeat_ngram_size",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "prefix",
}


class Fields:
    """The fields of one `config.json`, read by name and type. Remembers which were read; `unread` are the others."""

    def __init__(self, values: Mapping[str, Any], path: Path | str):
        self.values, self.path = values, path
        self._read: set[str] = set()

    def __call__(self, key: str, kind: type, default: Any = ...) -> Any:
        """The value of `key`, which must be of `kind`; `default` where it is absent or null.

        Raises:
            InputError: absent without a default, or of another type.
        """
        value = self.raw(key)
        if value is None:
            if default is ...:
                raise InputError(f"{self.path} has no {key!r}.")
            return default
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise InputError(f"{self.path}: {key} must be {kind.__name__}, not {value!r}.")
        return value

    def raw(self, key: str, default: Any = None) -> Any:
        """The value of `key` as it stands, `default` where it is absent."""
        self._read.add(key)
        return self.values.get(key, default)

    def only(self, **allowed: tuple) -> None:
        """Refuse any value of a field but these: the others ask for something that is not built here."""
        for key, values in allowed.items():
            if (value := self.raw(key, values[0])) not in values:
                raise InputError(f"{self.path}: {key} = {value!r} is not supported, only {' or '.join(map(repr, values))}.")

    def activation(self, key: str, default: str) -> str:
        """The activation that `key` names, in our terms."""
        name = self(key, str, default)
        if name not in ACTIVATIONS:
            raise InputError(f"{self.path}: {key} = {name!r} is not supported, only {', '.join(ACTIVATIONS)}.")
        return ACTIVATIONS[name]

    def head_width(self, width: int, heads: int) -> int:
        """`width / heads`, which must be whole."""
        if heads <= 0 or width % heads:
            raise InputError(f"{self.path}: a width of {width} cannot be divided among {heads} attention heads.")
        return width // heads

    def ends(self, default: int | None) -> tuple[int, ...]:
        """The tokens that end a sequence: `eos_token_id`, one number, a list or null."""
        value = self.raw("eos_token_id", default)
        return tuple(value) if isinstance(value, list) else () if value is None else (value,)

    @property
    def unread(self) -> tuple[str, ...]:
        """The fields that nothing has asked for and that are not known to be mere bookkeeping."""
        return tuple(sorted(self.values.keys() - self._read - _NEUTRAL))


class Family:
    """One architecture of the ecosystem, by the names of its files. A subclass is one file in `models/families/`."""

    architectures: ClassVar[dict[str, str | None]]  # classes in config.json -> the form of head they have, the bare one first
    prefix: ClassVar[str]  # what stands before the names of everything but the head, in a file of a model with a head
    rules: ClassVar[tuple[tuple[str, Any], ...]]  # rewriting of our names, each applied in turn
    aliases: ClassVar[tuple[tuple[str, str], ...]] = ()  # rewriting of names that some files use for the same tensors
    ties: ClassVar[dict[str, str]] = {}  # tensors that repeat another one, where a file has both
    harmless: ClassVar[str] = r"(?!)"  # tensors that carry nothing learned

    def config(self, fields: Fields, tensors: frozenset[str]) -> ModelConfig:
        """The ModelConfig of a file that holds these tensors. Every field that is not honoured is refused."""
        raise NotImplementedError

    def json(self, config: ModelConfig) -> dict[str, Any]:
        """The fields that `config` would read as `config`."""
        raise NotImplementedError

    # ---- names ------------------------------------------------------------------------------------------------------
    def tensor(self, name: str) -> str:
        """The file's name, without `prefix`, for one of our logical names."""
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        return re.sub(r"/(kernel|scale|embedding)$", "/weight", name).replace("/", ".")

    def canonical(self, tensor: str) -> str:
        """A name found in a file, as `tensor` would write it."""
        tensor = tensor.removeprefix(self.prefix)
        for pattern, replacement in self.aliases:
            tensor = re.sub(pattern, replacement, tensor)
        return tensor

    def written(self, name: str, head: Head | None) -> str:
        """The name under which to write one of our logical names."""
        bare = head is None or name.startswith("head/")
        return self.tensor(name) if bare else self.prefix + self.tensor(name)

    def unpack(self, name: str, tensor: np.ndarray) -> np.ndarray:
        """What the file's tensor says about one of our names: kernels are the other way round."""
        return tensor.T if name.endswith("/kernel") else tensor

    def pack(self, name: str, array: np.ndarray) -> np.ndarray:
        """The inverse of `unpack`."""
        return array.T if name.endswith("/kernel") else array

    # ---- configs ----------------------------------------------------------------------------------------------------
    def with_head(self, config: ModelConfig, head: Head | None) -> ModelConfig:
        """The same body under another head, with whatever this family puts between the two."""
        return config.model_copy(update={"head": head})

    def read(self, fields: Fields, tensors: frozenset[str]) -> ModelConfig:
        """`config`, with a value out of range told as bad input."""
        try:
            return self.config(fields, tensors)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{fields.path}: {'.'.join(map(str, first['loc'])) or 'model'}: {first['msg']}.") from None

    def write(self, config: ModelConfig, tensors: frozenset[str]) -> dict[str, Any]:
        """`json`, checked: what it reads as is `config` again, so nothing of a model is lost in its file.

        Raises:
            InputError: the family's format cannot say what this config says.
        """
        values = {"model_type": config.family, **self.json(config)}
        stacks = {name: _joined(stack) for name, stack in config.stacks.items()}
        before = config.model_copy(update=stacks).model_dump()
        after = self.read(Fields(values, "config.json"), tensors).model_dump()
        if lost := sorted(key for key in before if before[key] != after[key]):
            raise InputError(f"the files of a {config.family} model cannot hold this model's {', '.join(lost)}.")
        return values

    def architecture(self, form: str | None) -> str:
        """The class name of a model with this form of head."""
        for name, known in self.architectures.items():
            if known == form:
                return name
        raise InputError(f"{next(iter(self.architectures))} files have no {form} head.")

    def form(self, fields: Fields) -> str | None:
        """The form of head that `architectures` names; None for a bare model or one whose head is not known here."""
        return self.architectures.get(named_architecture(fields) or "")


def named_architecture(fields: Fields) -> str | None:
    """The class that wrote the file, None where it does not say."""
    stated = fields.raw("architectures")
    return stated[0] if isinstance(stated, list) and stated else None


def only_layer(stack: Stack) -> Layer:
    """The one kind of layer a uniform stack consists of."""
    kinds = {kind for run in stack.runs for kind in run.kinds}
    if len(kinds) > 1:
        raise InputError(f"the file's format holds one kind of layer, and this model has {len(kinds)}.")
    return kinds.pop()


def _joined(stack: Stack) -> Stack:
    """A uniform stack as a single run: where a run was split for training is no property of the model."""
    run = stack.runs[0].model_copy(update={"kinds": (only_layer(stack),), "repeats": stack.layers})
    return stack.model_copy(update={"runs": (run,)})


def family(name: str, path: Path | str) -> Family:
    """The family that `model_type` names, or a dotted module of the user's own.

    Raises:
        InputError: none of that name; the message lists those there are.
    """
    room = "research.models.families"
    if "." not in name and name not in variants(room):
        raise InputError(f"{path}: model_type {name!r} is not known here. Known: {', '.join(variants(room))}.")
    return variant(room, Family, name)()
