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
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

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
    found = [
        c
        for n, c in vars(module).items()
        if isinstance(c, type) and issubclass(c, base) and c.__module__ == module.__name__ and not n.startswith("_")
    ]
    if len(found) != 1:
        raise InputError(f"{name} must define exactly one subclass of {base.__name__}, found {len(found)}.")
    return found[0]


ConfigType = TypeVar("ConfigType", bound=Config)
Path = tuple[str | int, ...]


def validated(cls: type[ConfigType], values: Any, where: str = "", origins: Mapping[Path, str] | None = None) -> ConfigType:
    """`values` as a config of `cls`, with what is wrong said in one sentence.

    Args:
        where: the file or command that the values are from.
        origins: the same for single values, by path: the longest path that leads to the error counts.

    Raises:
        InputError: naming the file or flag, the dotted path of the first mistake and, for a key, the nearest valid one.
    """
    try:
        return cls.model_validate(values)
    except pydantic.ValidationError as error:
        raise InputError(mistakes(cls, values, error, where, origins or {})[0][1]) from None


def mistakes(
    cls: type[Config], values: Any, error: pydantic.ValidationError, where: str = "", origins: Mapping[Path, str] | None = None
) -> list[tuple[Path, str]]:
    """`(path, sentence)` of every mistake, in the order of the fields; the alternatives of a union are one."""
    found: dict[Path, list[tuple[Any, type[Config] | None]]] = {}
    for detail in error.errors(include_url=False):
        path, owner = _place(cls, values, detail["loc"])
        found.setdefault(path, []).append((detail, owner))
    sentences = []
    for path, details in found.items():
        origin = max((key for key in origins or {} if path[: len(key)] == key), key=len, default=None)
        source = where if origin is None else (origins or {})[origin]
        told = _told(".".join(map(str, path)), details)
        sentences.append((path, f"{source}: {told}" if source else told))
    return sentences


def _told(name: str, details: list[tuple[Any, type[Config] | None]]) -> str:
    """What is wrong at the dotted `name`, without the file."""
    detail, owner = details[0]
    if detail["type"] == "extra_forbidden":
        key = str(detail["loc"][-1])
        return f"there is no key {name}.{nearest(key, owner.model_fields) if owner else ''}"
    if detail["type"] == "missing":
        return f"{name} is missing."
    if "error" in detail.get("ctx", {}):
        text = str(detail["ctx"]["error"])
        return f"{name}: {text}" + "." * (text[-1:] not in ".?!") if name else text
    reasons = [each["msg"].removeprefix("Input ").partition(", unable to parse")[0] for each, _ in details]
    reasons = [reason if not i else reason.removeprefix("should be ") for i, reason in enumerate(dict.fromkeys(reasons))]
    return f"{name or 'the value'} {' or '.join(reasons)}, not {detail['input']!r}."


def _place(cls: type[Config], values: Any, loc: Path) -> tuple[Path, type[Config] | None]:
    """The path of keys in a pydantic location, which also names the alternatives of unions, and the config it ends in."""
    path: Path = ()
    inside: type[Config] | None = cls  # what `values` are, or (of a list) what its members are
    for part in loc:
        owner = _actual(inside, values) if inside and not isinstance(values, list | tuple) else None
        field = owner.model_fields.get(str(part)) if owner else None
        known = isinstance(part, int) or field is not None or (isinstance(values, Mapping) and part in values)
        if not known:
            continue  # the name of a union's alternative
        path = (*path, part)
        if field is not None:
            inside = next(_configs(field.annotation), None)
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            values = None
    return path, owner if loc else None


def _configs(annotation: Any) -> Iterator[type[Config]]:
    """Every Config class that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for argument in get_args(annotation):
        yield from _configs(argument)


def _actual(cls: type[Config], values: Any) -> type[Config]:
    """The variant of `cls` that `values` name by their kind, or `cls` itself."""
    kind = values.get("kind") if isinstance(values, Mapping) else values
    below = [cls]
    for one in below:
        if "kind" in one.model_fields and one.model_fields["kind"].default == kind:
            return one
        below.extend(one.__subclasses__())
    return cls


def fingerprint(value: Any) -> str:
    """Twelve hexadecimal digits naming a resolved Config (or any JSON-like value): the sha256 of its canonical JSON."""
    import json

    plain = value.model_dump(mode="json") if isinstance(value, pydantic.BaseModel) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
