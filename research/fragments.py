"""YAML fragments and how they become a run: names are looked up, layers laid over each other, origins remembered.

    {task: trec, tuning: {base: lora, rank: 4}}         what a file, a flag or a notebook says
            |  configs/tasks/trec.yaml, configs/tuning/lora.yaml
            v
    Draft  values {task: {data: ...}, tuning: {kind: lora, rank: 4, ...}}     origins {tuning: configs/tuning/lora.yaml, ...}
            |  validated
            v
    Run    frozen, complete; an error names the file or flag that the value is from

In a *room* (`model`, `task`, `tuning`, `optimizer`, `batches`) a value may be a name in configs/, a path to a YAML file,
a mapping, a mapping with a `base` that it differs from, or (tuning) a list of these: their composition. Beside the flow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from research.config import validated
from research.errors import InputError, nearest

if TYPE_CHECKING:
    from research.run import Run

ROOMS = {"model": "models", "task": "tasks", "tuning": "tuning", "optimizer": "optimizers", "batches": "batches"}
DEFAULTS = {"model": "minilm", "tuning": "full", "optimizer": "adamw", "batches": "packed"}
"""What a run takes where nothing is said. A task has no default."""


# ---- YAML -----------------------------------------------------------------------------------------------------------
class _Loader(yaml.SafeLoader):
    """YAML as its version 1.2 reads scalars: 5e-5 is a number, `no` and `on` are words, and no key stands twice."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def parse_yaml(text: str, where: str) -> Any:
    """The value that `text` holds.

    Raises:
        InputError: naming `where` and the line of what is not YAML, or of a key that stands twice.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{where}{line}: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{where}: {' '.join(str(error).split())}.") from None


def read_yaml(path: Path) -> Any:
    """The value in a YAML file.

    Raises:
        InputError: as `parse_yaml`; also if the file is absent or not UTF-8.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), shown(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"{path} cannot be read: {reason}.") from None


# ---- where fragments lie ----------------------------------------------------------------------------------------------
def configs() -> Path:
    """The folder of shipped fragments: in an installed package `research/_configs`, in a checkout `configs`."""
    installed = Path(__file__).parent / "_configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def names(folder: str) -> list[str]:
    """The fragments in a folder of configs/, such as `tuning`."""
    return sorted(path.stem for path in (configs() / folder).glob("*.yaml"))


def shown(path: Path) -> str:
    """A path as messages name it: short where it lies in configs/ or below the working directory."""
    path = path.absolute()
    if path.is_relative_to(configs()):
        return str(Path("configs") / path.relative_to(configs()))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def find(folder: str, name: str, where: str, beside: Path | None = None) -> Path:
    """The file of a fragment: a name in configs/`folder`, or a path from the folder `beside` or the working directory.

    Raises:
        InputError: there is none; names the nearest.
    """
    is_path = "/" in name or name.endswith((".yaml", ".yml"))
    tried = [(beside or Path()) / name, Path(name)] if is_path else [configs() / folder / f"{name}.yaml"]
    for path in tried:
        if path.is_file():
            return path
    if is_path:
        raise InputError(f"{where}: there is no file {name}.")
    raise InputError(f"{where}: there is no {name!r} in configs/{folder}.{nearest(name, names(folder))}")


def _layers(room: str, value: Any, where: str, beside: Path | None, seen: tuple[Path, ...] = ()) -> Iterator[tuple[dict, str]]:
    """`(values, origin)` of a room's value, each to be laid over the ones before."""
    if isinstance(value, str):
        if room == "model" and (value.startswith(("hf:", "pypi:")) or Path(value).is_dir()):
            yield {"reference": value}, where
        elif room in ("tuning", "batches") and re.fullmatch(r"\w+(\.\w+)+", value) and not value.endswith((".yaml", ".yml")):
            yield {"kind": value}, where  # a module of the user's own
        else:
            path = find(ROOMS[room], value, where or room, beside).resolve()
            if path in seen:
                raise InputError(f"{shown(path)} is its own base.")
            yield from _layers(room, read_yaml(path), shown(path), path.parent, (*seen, path))
    elif isinstance(value, list | tuple) and room == "tuning" and value:
        yield {"kind": "compose", "parts": [_laid(_layers(room, part, where, beside, seen)) for part in value]}, where
    elif isinstance(value, Mapping):
        if "base" in value:
            yield from _layers(room, value["base"], where, beside, seen)
        yield {key: one for key, one in value.items() if key != "base"}, where
    else:
        raise InputError(f"{where}: {room} must be a name, a file or a mapping, not {value!r}.")


def _laid(layers: Iterator[tuple[dict, str]]) -> dict[str, Any]:
    draft = Draft()
    for values, where in layers:
        draft.put((), values, where)
    return draft.values


# ---- the draft of a run -----------------------------------------------------------------------------------------------
@dataclass
class Draft:
    """Values on their way to a Run, and which file or flag each is from (by path; the longest path that leads to it counts)."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[tuple[str | int, ...], str] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Any, where: str, beside: Path | None = None) -> Draft:
        """The defaults with `values` laid over them. `beside`: the folder that relative paths to fragments start from."""
        return cls().lay(DEFAULTS, "the defaults").lay(values, where, beside)

    def copy(self) -> Draft:
        """A draft that can be changed without changing this one."""
        return Draft(deepcopy(self.values), dict(self.origins))

    def lay(self, values: Any, where: str, beside: Path | None = None) -> Draft:
        """Lay `values`, whose keys may be dotted, over what is there; rooms first. Returns itself.

        Raises:
            InputError: a name that there is not, a file that is no YAML, values that are no mapping.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"{where} must hold a mapping of keys to values, not {values!r}.")
        for key in sorted(values, key=lambda key: key not in ROOMS):
            self.put(keys(str(key)), values[key], where, beside)
        return self

    def put(self, path: tuple[str, ...], value: Any, where: str, beside: Path | None = None) -> None:
        """Set one value. A mapping is laid over the mapping that is there, except that a room's new fragment replaces it."""
        if len(path) == 1 and path[0] in ROOMS:
            fresh = not isinstance(value, Mapping) or bool({"base", "kind", "reference"} & value.keys())
            if fresh:
                self.values.pop(path[0], None)
                self.origins = {key: origin for key, origin in self.origins.items() if key[0] != path[0]}
            for layer, origin in _layers(path[0], value, where, beside):
                self._merge(path, layer, origin)
        else:
            self._merge(path, value, where)

    def validated(self) -> Run:
        """The complete Run.

        Raises:
            InputError: naming the file or flag, the dotted path, and the nearest valid key.
        """
        from research.run import Run

        if "task" not in self.values:
            known = ", ".join(names("tasks"))
            raise InputError(f"the run has no task; name one (--task): {known}, or a YAML file of your own.")
        return validated(Run, self.values, origins=self.origins)

    def _merge(self, path: tuple[str, ...], value: Any, where: str) -> None:
        node = self.values
        for number, key in enumerate(path[:-1]):
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                inner = ".".join(path[: number + 1])
                raise InputError(f"{where}: there is no {'.'.join(path)}, since {inner} is {node!r} and no mapping.")
        if isinstance(value, Mapping):
            if path and not isinstance(node.get(path[-1]), dict):
                node[path[-1]] = {}
            for key, one in value.items():
                self._merge((*path, str(key)), one, where)
        else:
            node[path[-1]] = deepcopy(value)
        if path and value != {}:
            self.origins[path] = where  # for a mistake that concerns a mapping as a whole: who spoke last


def keys(dotted: str) -> tuple[str, ...]:
    """The path of a dotted key. What lies below `select` are dotted keys themselves."""
    first, _, rest = dotted.partition(".")
    return (first, rest) if first == "select" and rest else tuple(dotted.split("."))
