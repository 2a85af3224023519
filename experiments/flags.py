"""The command line as values: `--optimizer.learning-rate 1e-4` lies over what the files say, and its type is the field's.

    ["run.yaml", "--jobs", "2", "--tuning", "lora", "--tuning.rank", "4"]
            |  split(own={"--jobs"})
            v
    (["run.yaml", "--jobs", "2"],  [Flag(("tuning",), ["lora"]), Flag(("tuning", "rank"), ["4"])])
                                            |  resolve(draft, flags)
                                            v
                                           Run

What a word means depends on the field: `1` is a number for a rank and a name for a class. So each flag has several readings,
and the first that the field takes counts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pydantic

from research.config import mistakes
from research.errors import InputError, nearest
from research.fragments import ROOMS, Draft, keys, parse_yaml


@dataclass(frozen=True)
class Flag:
    """A dotted flag and the words after it."""

    text: str  # as it was typed, without its value
    path: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def readings(self) -> list[Any]:
        """What the words may mean, the likeliest first."""
        if not self.words:
            return [True]
        values, words = [_value(word) for word in self.words], list(self.words)
        if len(self.path) == 1 and self.path[0] in ROOMS:
            return values if len(values) == 1 else [values]  # a fragment, or several composed
        readings: list[Any] = [values[0], words[0], values, words] if len(words) == 1 else [values, words]
        if len(words) % 2 == 0:
            readings.append(dict(zip(words[::2], words[1::2], strict=True)))
        return readings


def split(args: Sequence[str], own: Collection[str], switches: Collection[str] = ()) -> tuple[list[str], list[Flag]]:
    """The arguments of the command itself (its `own` options; `switches` take no value), and the flags for the config.

    Raises:
        InputError: an argument that is neither.
    """
    mine: list[str] = []
    flags: list[Flag] = []
    words: list[str] = mine
    for arg in args:
        if not arg.startswith("-") or arg == "-" or re.fullmatch(r"-\.?\d.*", arg):
            words.append(arg)
            continue
        name, equals, value = arg.partition("=")
        if name in own or name in switches or name in ("-h", "--help"):
            mine.append(arg)
            words = mine if not equals and name in own else _Refusing(name)
            continue
        if not name.startswith("--") or len(name) < 3:
            raise InputError(f"unknown option {name}.{nearest(name, [*own, *switches])}")
        words = [value] if equals else []
        flags.append(Flag(name, keys(name[2:].replace("-", "_")), words))  # type: ignore[arg-type]
    return mine, [_finished(flag) for flag in flags]


class _Refusing(list):
    """Where words go that belong to no option."""

    def __init__(self, after: str):
        super().__init__()
        self.after = after

    def append(self, word: str) -> None:
        raise InputError(f"{self.after} takes no further value, but {word!r} follows it.")


def _finished(flag: Flag) -> Flag:
    """`--x.no-y` is `--x.y false`."""
    *parents, last = flag.path
    if not flag.words and last.startswith("no_"):
        return Flag(flag.text, (*parents, last.removeprefix("no_")), ("false",))
    return Flag(flag.text, flag.path, tuple(flag.words))


def _value(word: str) -> Any:
    """A word as YAML, where it is a number, a list, ...; else the word itself."""
    if word == "None":
        return None
    if word.startswith("#") or " #" in word:
        return word  # no comments on a command line
    try:
        return parse_yaml(word, "")
    except InputError:
        return word


def refuse_unknown(flags: Sequence[Flag], known: Collection[str], options: Collection[str]) -> None:
    """Refuse flags whose first key is none of `known`, suggesting also the command's own `options`.

    Raises:
        InputError: naming the nearest.
    """
    for flag in flags:
        if flag.path[0] not in known:
            choices = [*options, *(f"--{name.replace('_', '-')}" for name in known)]
            raise InputError(f"unknown option {flag.text}.{nearest(flag.text, choices)}")


def resolve(draft: Draft, flags: Sequence[Flag]) -> Any:
    """The Run that `draft` and the flags over it make; flags that choose a fragment come first.

    Raises:
        InputError: the first mistake, naming the flag or file that it is in.
    """
    from research.run import Run

    flags = sorted(flags, key=lambda flag: len(flag.path) > 1)
    chosen, first = [0] * len(flags), {}
    above = {flag.path[:length]: flag.text for flag in flags for length in range(1, len(flag.path))}
    while True:
        attempt = draft.copy()
        for number, flag in zip(chosen, flags, strict=True):
            attempt.put(flag.path, flag.readings[number], flag.text)
        if "task" not in attempt.values:
            return attempt.validated()  # says what is missing
        try:
            run = Run.model_validate(attempt.values)
            break
        except pydantic.ValidationError as error:
            path, sentence = mistakes(Run, attempt.values, error, origins=attempt.origins | above)[0]
        at = next((i for i, flag in reversed([*enumerate(flags)]) if path[: len(flag.path)] == flag.path), None)
        if at is None:
            raise InputError(sentence)
        sentence = first.setdefault(at, sentence)
        if chosen[at] + 1 == len(flags[at].readings):
            raise InputError(sentence)
        chosen[at] += 1
    for flag in flags:
        if not flag.words and reduce(lambda part, key: getattr(part, key, None), flag.path, run) is not True:
            raise InputError(f"{flag.text} needs a value.")
    return run
