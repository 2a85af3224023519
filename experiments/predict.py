"""`graft predict`: a finished run at work on texts.

--text, --file or standard input --Trained.classify--> label and probability: a table on a terminal, JSON lines elsewhere
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.usage import Arguments
from research.errors import InputError

EXAMPLES = (
    'graft predict runs/mine --text "Who wrote Hamlet?" --text "How far is the moon?"',
    "graft predict runs/mine --file questions.txt > labels.jsonl     one text a line; for pairs, a tab between the two",
    "cat questions.txt | graft predict runs/mine",
)


def main(args: Sequence[str]) -> int:
    """Entry of the command."""
    parser = Arguments("predict", "Classify texts with a finished run.", EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="the directory of a finished run")
    parser.add_argument("--text", action="append", metavar="TEXT", help="a text (may be given again)")
    parser.add_argument("--file", metavar="FILE", help="a file with one text a line")
    parser.add_argument("--json", action="store_true", help="JSON lines, also on a terminal")
    asked = parser.parse(args)
    lines = _lines(asked.text, asked.file)

    from research.trained import Trained

    trained = Trained.load(asked.run)
    rows = classified(trained, lines)
    if asked.json or not sys.stdout.isatty():
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    else:
        show(rows)
    return 0


def _lines(texts: list[str] | None, file: str | None) -> list[tuple[str, str]]:
    """`(where it is from, text)` of every text.

    Raises:
        InputError: no text at all, or a file that cannot be read.
    """
    if texts and file:
        raise InputError("give --text or --file, not both.")
    if texts:
        return [("--text", text) for text in texts]
    if file is None and sys.stdin.isatty():
        raise InputError("there is no text: give --text, --file, or lines on standard input.")
    name = file or "standard input"
    try:
        content = sys.stdin.read() if file is None else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}.") from None
    found = [(f"{name}, line {number}", line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    if not found:
        raise InputError(f"{name} holds no text.")
    return found


def classified(trained: Any, lines: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """A row for each text: `text`, `label` (or `value`, or `labels`), `probability` and `probabilities` by label.

    Raises:
        InputError: the run classifies pairs and a line is none.
    """
    texts, pairs = [text for _, text in lines], None
    if trained.setting.run.task.data.pair:
        halves = [text.split("\t") for text in texts]
        for (where, _), half in zip(lines, halves, strict=True):
            if len(half) != 2:
                raise InputError(f"{where}: this run classifies pairs; put one tab between the two texts.")
        texts, pairs = [half[0] for half in halves], [half[1] for half in halves]
    labels = trained.setting.splits.labels
    rows = []
    for number, found in enumerate(trained.classify(texts, pairs)):
        row: dict[str, Any] = {"text": texts[number]} | ({"pair": pairs[number]} if pairs else {})
        value, chances = found["prediction"], found.get("probabilities")
        row["labels" if isinstance(value, list) else "value" if isinstance(value, float) else "label"] = value
        if chances is not None:
            named = dict(zip(labels, chances, strict=True))
            row |= ({} if isinstance(value, list) else {"probability": named[value]}) | {"probabilities": named}
        rows.append(row)
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table."""
    import rich.box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("text", "prediction", box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("probability", justify="right")
    for row in rows:
        value = row.get("label", row.get("value", row.get("labels")))
        shown = f"{value:.4g}" if isinstance(value, float) else ", ".join(value) if isinstance(value, list) else str(value)
        text = " | ".join([row["text"], *([row["pair"]] if "pair" in row else [])])
        table.add_row(Text(text), Text(shown), f"{row['probability']:.1%}" if "probability" in row else "")
    Console(highlight=False).print(table)
