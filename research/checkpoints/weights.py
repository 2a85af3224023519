"""Where a pretrained model's numbers lie: a folder, or one file, seen as a config and named tensors read one at a time.

folder/config.json + model.safetensors                        folder/model.safetensors.index.json + its shards
name.safetensors + config.json or name_config.json beside it  name.bin, in the format of llama2.c
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research.errors import InputError
from research.text.references import cache_directory

FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Weights:
    """A config and the tensors that go with it. `read(name)` gives one tensor, in the type that it is stored in."""

    config: Mapping[str, Any]
    config_file: Path
    files: Mapping[str, Path]  # tensor -> the file that holds it
    read: Callable[[str], np.ndarray]


def open_weights(path: Path) -> Weights:
    """The model that lies at `path`. Opens the files and reads their headers, no more.

    Raises:
        InputError: no model there, or a damaged file.
    """
    if path.suffix == ".bin" and path.is_file():
        from research.checkpoints import llama2c

        return llama2c.open_weights(path)
    files, config_file = _located(path)
    try:
        config = json.loads(config_file.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"{config_file} is not readable JSON ({error}).") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f"{config_file} has no 'model_type', so it is no model's config.")
    return Weights(config, config_file, *_opened(files))


def weight_files(path: Path) -> list[Path]:
    """The files that hold the numbers of the model at `path`, in the order of their names."""
    return [path] if path.suffix == ".bin" and path.is_file() else _located(path)[0]


def _located(path: Path) -> tuple[list[Path], Path]:
    if path.is_file() and path.suffix == ".safetensors":
        for config in (path.with_name("config.json"), path.with_name(f"{path.stem}_config.json")):
            if config.is_file():
                return [path], config
        raise InputError(f"{path} has no config.json or {path.stem}_config.json beside it.")
    if not path.is_dir():
        raise InputError(f"{path} is neither a model's folder nor a .safetensors or .bin file.")
    config, single, index = (path / name for name in ("config.json", "model.safetensors", "model.safetensors.index.json"))
    if not config.is_file():
        raise InputError(f"{path} has no config.json, so it is no model's folder.")
    if single.is_file():
        return [single], config
    if not index.is_file():
        other = " pytorch_model.bin is not read; convert it to safetensors." if (path / "pytorch_model.bin").exists() else ""
        raise InputError(f"{path} has no model.safetensors.{other}")
    try:
        shards = [path / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index} is not an index of shards ({error}).") from None
    for shard in shards:
        if not shard.is_file():
            raise InputError(f"{index} names {shard.name}, which is not there.")
    return shards, config


def _opened(paths: list[Path]) -> tuple[dict[str, Path], Callable[[str], np.ndarray]]:
    import ml_dtypes  # noqa: F401  teaches NumPy bfloat16, by name, which the library below looks up
    import safetensors

    holders, where = {}, {}
    for path in paths:
        try:
            holder = safetensors.safe_open(path, framework="numpy")
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"{path} is truncated or not a safetensors file ({error}).") from None
        for name in holder.keys():  # noqa: SIM118  not a mapping
            holders[name], where[name] = holder, path

    def read(name: str) -> np.ndarray:
        kind = holders[name].get_slice(name).get_dtype()
        if kind not in FLOATS:
            raise InputError(f"{where[name]}: tensor {name} holds {kind}; only {', '.join(FLOATS)} are read.")
        return holders[name].get_tensor(name)

    return where, read


def base_hash(path: Path) -> str:
    """What a checkpoint says of its base model: the sha256 of its weights file, of several the sha256 of their hashes' list.

    Files are hashed once: the cache directory remembers the outcome by path, size and time of change.
    """
    digests = [_digest(file) for file in weight_files(Path(path))]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _digest(file: Path) -> str:
    stat = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
    remembered = cache_directory() / "hashes" / key
    if remembered.is_file() and len(known := remembered.read_text()) == 64:
        return known
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        temporary = remembered.with_name(f".{key}.{os.getpid()}")
        temporary.write_text(digest)
        temporary.replace(remembered)
    except OSError:  # a cache that cannot be written costs time, not correctness
        pass
    return digest
