"""One cell of a sweep in a process of its own: a crash stays its own, and so does its peak of memory.

    <cell>/cell.json {"name", "choices", "run"} --finetune--> result.json, status done; on an error status failed

`python -m experiments.worker DIR`. Ends when its standard input closes, so that it never outlives the sweep that started it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from research.errors import InputError
from research.files import write_json

BUSY = 75
"""Exit code of a worker whose cell another process is working on."""


def main(directory: Path) -> int:
    """Work on the cell in `directory`; 0 done, 1 failed (and recorded), BUSY."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with FileLock(directory / ".cell.lock", timeout=0):
            return _work(directory)
    except Timeout:
        return BUSY


def _work(directory: Path) -> int:
    cell = json.loads((directory / "cell.json").read_text(encoding="utf-8"))
    try:
        from research.config import validated
        from research.run import Run
        from research.running import finetune

        run = validated(Run, cell["run"], f"{directory / 'cell.json'}")
        finetune(run, directory, extra={"name": cell["name"], "choices": cell["choices"]}, progress=False)
        return 0
    except InputError as error:
        print(error, flush=True)
        record_failure(directory, str(error))
    except Exception as error:
        traceback.print_exc()
        record_failure(directory, f"{type(error).__name__}: {error}")
    return 1


def record_failure(directory: Path, error: str) -> None:
    """Write the result of a run that failed."""
    cell: dict[str, Any] = json.loads((directory / "cell.json").read_text(encoding="utf-8"))
    about = {"id": cell["id"], "name": cell["name"], "choices": cell["choices"], "config": cell["run"]}
    write_json(directory / "result.json", {**about, "status": "failed", "error": " ".join(error.split())})


def _end_with_parent() -> None:
    """Returns never: the process ends when the other side of standard input is gone."""
    while os.read(0, 1):  # the descriptor itself: a thread that waits in sys.stdin would break the interpreter's shutdown
        pass
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
