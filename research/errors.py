"""What a program says when the user's input is wrong. Beside the flow; imports nothing of the project."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input is wrong. The message is one sentence that names the file, key or line and, where it can, the remedy.

    Library code raises it; the `graft` command prints the sentence and exits with code 2, without a traceback.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the closest of `choices`, else the list of them (a suffix for error messages)."""
    choices = sorted(map(str, choices))
    if close := difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5):
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(choices)}." if choices else ""
