"""Configuration: frozen pydantic models, variants found by the name of their file. Beside the flow.

    YAML values --resolve names--> mapping --validate--> frozen Config --hash--> run id

A *variant* (a tuning strategy, an objective, ...) is a module that defines exactly one subclass of its room's base
class. `kind: lora` names `research/tuning/lora.py`; `kind: my_package.my_module` names a module of the user's own, so that
nothing has to be registered anywhere.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from typing import Any

import pydantic

from research.errors import InputError, nearest


class Config(pydantic.BaseModel):
    """Base of every configuration: immutable, hashable, and strict about keys."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True)


def variants(room: str) -> list[str]:
    """The kinds that `room` (a package such as `research.tuning`) offers: the names of its public modules."""
    return [m.name for m in pkgutil.iter_modules(importlib.import_module(room).__path__) if not m.name.startswith("_")]


def variant(room: str, base: type, kind: str) -> type:
    """The one subclass of `base` defined by module `kind` of `room`, or by the dotted module `kind` of a user's package.

    Raises:
        InputError: no such module, or it does not define exactly one public subclass of `base`.
    """
    name = kind if "." in kind else f"{room}.{kind}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and not (name == error.name or name.startswith(error.name + ".")):
            raise  # the variant exists but one of its own imports does not
        raise InputError(f"unknown kind {kind!r} of {base.__name__.lower()}.{nearest(kind, variants(room))}") from None
    found = [c for n, c in vars(module).items()
             if isinstance(c, type) and issubclass(c, base) and c.__module__ == module.__name__ and not n.startswith("_")]
    if len(found) != 1:
        raise InputError(f"{name} must define exactly one subclass of {base.__name__}, found {len(found)}.")
    return found[0]


def fingerprint(value: Any) -> str:
    """Twelve hexadecimal digits naming a resolved Config (or any JSON-like value): the sha256 of its canonical JSON."""
    import json

    plain = value.model_dump(mode="json") if isinstance(value, pydantic.BaseModel) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
