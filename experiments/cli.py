"""The `graft` command. Each subcommand is the file of its name; nothing heavy is imported before one is chosen.

graft finetune ...  --experiments.finetune.main(args)-->  exit code
                    --InputError-->  one sentence, 2          GRAFT_DEBUG=1 shows where it comes from
                    --Ctrl-C------>  how to go on, 130
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from experiments.allocator import tuned_restart
from research.errors import InputError, nearest

COMMANDS = {
    "finetune": "train one model on one task under one tuning strategy",
    "evaluate": "the metrics of a finished run, with intervals, on its test split or on other data",
    "predict": "classify texts with a finished run",
    "sweep": "train every cell of a grid, and make the table that compares them",
    "report": "make the table and the page again from finished runs",
    "doctor": "check this machine: versions, devices, cache, disk",
}
_HELP = """usage: graft COMMAND ...

Which fine-tuning strategy should I use, and by how much is it better?

commands:
{commands}

`graft COMMAND --help` explains a command, with examples.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code: 0 done, 1 some part failed, 2 bad input, 130 interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(_HELP.format(commands="\n".join(f"  {name:10}{text}" for name, text in COMMANDS.items())), end="")
        return 0
    try:
        if args[0] not in COMMANDS:
            raise InputError(f"there is no command {args[0]!r}.{nearest(args[0], COMMANDS)}")
        if argv is None and args[0] == "finetune":
            tuned_restart()
        return importlib.import_module(f"experiments.{args[0]}").main(args[1:]) or 0
    except InputError as error:
        if os.environ.get("GRAFT_DEBUG"):
            raise
        print(f"graft: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("graft: interrupted; the same command goes on where this one stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `graft predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
