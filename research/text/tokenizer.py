"""Text to token ids and back, by the `tokenizer.json` beside a model.

    ["What is NATO ?"] --encode_batch--> Encodings(ids=[[101, 2054, ..., 102]], types=[[0, 0, ..., 0]])
    pairs of texts     --encode_batch--> [CLS] first [SEP] second [SEP], types 0 and 1, as the file says

Nothing is padded here: a `Batch` decides where examples lie. The work is done in Rust, on every core, without the GIL.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers

from research.errors import InputError


@dataclass(frozen=True)
class Encodings:
    """Token ids and segment types, one int32 array `[length]` per example, and how many examples were cut to fit."""

    ids: list[np.ndarray]
    types: list[np.ndarray]
    truncated: int = 0


class Tokenizer:
    """A `tokenizers.Tokenizer` with the special tokens that its model was trained with.

    `pad_id`, `mask_id`, `bos_id`, `eos_id`, `unk_id`, `cls_id` and `sep_id` are None where the model has no such token.
    Calls may come from several threads at once.
    """

    def __init__(self, backend: tokenizers.Tokenizer, files: dict[str, dict[str, Any]] | None = None):
        """`files`: content of `tokenizer_config.json` and `special_tokens_map.json`, as far as there are any."""
        self.files = files or {}
        text = backend.to_str()
        stated = json.loads(text)
        # The file of a sentence encoder cuts to its training length and pads to it: left on, both would pass unnoticed.
        self._backend = tokenizers.Tokenizer.from_str(text)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._cutting: dict[int, tokenizers.Tokenizer] = {}
        fallback = {"pad": (stated.get("padding") or {}).get("pad_token"), "unk": stated["model"].get("unk_token")}
        self.pad_id, self.mask_id, self.bos_id, self.eos_id, self.unk_id, self.cls_id, self.sep_id = (
            self._special(name, fallback.get(name)) for name in ("pad", "mask", "bos", "eos", "unk", "cls", "sep")
        )

    @classmethod
    def load(cls, directory: Path) -> Tokenizer | None:
        """The tokenizer of a model's folder; None where it has no `tokenizer.json`.

        Raises:
            InputError: one of the files is damaged.
        """
        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            return None
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more precise
            raise InputError(f"{path} is not a readable tokenizer ({str(error).splitlines()[0]}).") from None
        files = {}
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if (beside := path.with_name(name)).is_file():
                try:
                    files[name] = json.loads(beside.read_text("utf-8"))
                except ValueError as error:
                    raise InputError(f"{beside} is not readable JSON ({error}).") from None
        return cls(backend, files)

    def save(self, directory: Path) -> None:
        """Writes what `load` reads; cutting and padding, which are choices of a run, are not among it."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        contents = {"tokenizer.json": self._backend.to_str(pretty=True)}
        contents |= {name: json.dumps(content, indent=2, ensure_ascii=False) for name, content in self.files.items()}
        for name, content in contents.items():
            temporary = directory / f".{name}.{os.getpid()}"
            temporary.write_text(content, "utf-8")
            temporary.replace(directory / name)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, added ones included; a model's embedding may have more rows than that."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode_batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        max_length: int | None = None,
        overflow: Literal["truncate", "refuse"] = "truncate",
    ) -> Encodings:
        """Tokenizes `texts`, or texts and their `pairs`, with the special tokens of the model.

        Args:
            max_length: the most tokens an example may have, special tokens included; None: any number.
            overflow: what becomes of longer ones: cut (of a pair the longer side first) and counted, or refused.

        Raises:
            InputError: an example is too long and `overflow` is "refuse"; `max_length` has no room for any text.
        """
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        cut = max_length is not None and overflow == "truncate"
        backend = self._cut_to(max_length, pairs is not None) if cut else self._backend
        encoded = backend.encode_batch_fast(inputs)
        if max_length is not None and not cut:
            for index, (text, one) in enumerate(zip(texts, encoded, strict=True)):
                if len(one) > max_length:
                    what = f"example {index} ({text[:40]!r}) has {len(one)} tokens"
                    raise InputError(f"{what}, more than max_length {max_length}; raise max_length or truncate.")
        truncated = sum(bool(one.overflowing) for one in encoded) if cut else 0
        ids, types = ([np.array(getattr(e, name), np.int32) for e in encoded] for name in ("ids", "type_ids"))
        return Encodings(ids, types, truncated)

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special: bool = True) -> str:
        """The text of `ids [T]`, without special tokens unless asked for."""
        return self._backend.decode(np.asarray(ids).tolist(), skip_special_tokens=skip_special)

    def _cut_to(self, max_length: int, is_pair: bool) -> tokenizers.Tokenizer:
        """A copy that cuts: the setting belongs to the Rust object, and changing it would disturb the other threads."""
        if max_length <= (special := self._backend.num_special_tokens_to_add(is_pair)):
            raise InputError(f"max_length {max_length} has no room for text beside the {special} special tokens.")
        if max_length not in self._cutting:
            copy = tokenizers.Tokenizer.from_str(self._backend.to_str())
            copy.enable_truncation(max_length, strategy="longest_first")
            self._cutting[max_length] = copy
        return self._cutting[max_length]

    def _special(self, name: str, fallback: str | None) -> int | None:
        for content in self.files.values():
            token = content.get(f"{name}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token is not None and (number := self._backend.token_to_id(token)) is not None:
                return number
        return None if fallback is None else self._backend.token_to_id(fallback)
