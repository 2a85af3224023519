"""Arguments and help of the commands: argparse for a command's own options, tyro's rendering for those of a config.

Run (task trec, tuning lora) --its classes--> a concrete pydantic class --tyro--> help that shows exactly LoRA's options
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

import pydantic

from experiments.flags import Flag, split
from research.config import Config
from research.errors import InputError, nearest
from research.fragments import DEFAULTS, ROOMS, names


class Arguments(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one sentence, and can leave dotted flags to a config."""

    def __init__(self, command: str, description: str, examples: Sequence[str]):
        shown = "examples:\n" + "\n".join(f"  {example}" for example in examples)
        super().__init__(
            f"graft {command}",
            description=description,
            epilog=shown,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}.")

    @property
    def options(self) -> list[str]:
        """The names of all options."""
        return [name for action in self._actions for name in action.option_strings if name.startswith("--")]

    def parse(self, args: Sequence[str]) -> argparse.Namespace:
        """The parsed arguments; an unknown option is refused with the nearest one."""
        known, unknown = self.parse_known_args(list(args))
        if unknown:
            noun = "option" if unknown[0].startswith("-") else "argument"
            raise InputError(f"{self.prog}: unknown {noun} {unknown[0]}.{nearest(unknown[0], self.options)}")
        return known

    def parse_with_flags(self, args: Sequence[str]) -> tuple[argparse.Namespace, list[Flag]]:
        """As `parse`, and the flags that are no options of the command, for the config. `--help` is `help` of the first."""
        switches = {name for action in self._actions if action.nargs == 0 for name in action.option_strings}
        mine, flags = split(args, set(self.options) - switches, switches)
        asked = {"-h", "--help"} & set(mine)
        parsed = self.parse([arg for arg in mine if arg not in asked])
        parsed.help = bool(asked)
        return parsed, flags


def print_options(run: Config) -> None:
    """Print which fragments there are to choose from, and every flag of the run that was chosen."""
    import tyro

    print("\nchoose the parts of a run by name, YAML file, or mapping:")
    for room, folder in ROOMS.items():
        default = f" (default: {DEFAULTS[room]})" if room in DEFAULTS else ""
        print(f"  --{room:11}{', '.join(names(folder))}{default}")
    print("\nand override any value; what follows fits the parts that are chosen:\n")
    cls, default = concrete(run)
    try:
        tyro.cli(cls, default=default, args=["--help"], prog="graft finetune [CONFIG.yaml]", description="")
    except SystemExit:
        return


def concrete(config: Config) -> tuple[type[pydantic.BaseModel], pydantic.BaseModel]:
    """`config` as an equal instance of a class that declares each part as the kind that it is, and that class."""
    cls, values, changed = type(config), {}, {}
    for name, field in cls.model_fields.items():
        values[name] = value = getattr(config, name)
        if isinstance(value, Config):
            inner, values[name] = concrete(value)
            if inner is not field.annotation:
                changed[name] = (inner, values[name])
    if not changed:
        return cls, config
    made: Any = pydantic.create_model(cls.__name__, __base__=cls, __doc__=cls.__doc__, **changed)
    return made, made.model_construct(**values)
