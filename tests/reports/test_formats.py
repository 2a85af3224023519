"""The writers: columns, escaping, emphasis, and that LaTeX accepts what is written for it."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess

import pytest
from rich.console import Console

from research.reports import build, load_runs, to_csv, to_latex, to_markdown, to_rich
from research.reports.quantities import quantity

NASTY = r"[a_b] & 50% #1 ~x^2 {y} \z $d$ <i> |p| `q` *r*"


@pytest.fixture(scope="module")
def table(shared_runs):
    return build(load_runs(shared_runs), baseline={"tuning": "full"}, resamples=200)


@pytest.fixture
def nasty(tmp_path, make_run):
    root = tmp_path / "nasty"
    make_run(root, "full", 0, 50, note="plain")
    make_run(root, "full", 0, 50, note=NASTY)
    make_run(root, "lora", 0, 50, note=NASTY, error="100% of _x_ & <y>\nsecond line")
    return build(load_runs(root), rows=("note",), resamples=50)


def test_csv_holds_raw_numbers_in_the_promised_columns(table):
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert list(lines[0]) == [
        "tuning",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "accuracy_p",
        "macro_f1",
        "macro_f1_low",
        "macro_f1_high",
        "macro_f1_p",
        "trainable",
        "trainable_share",
        "examples_per_second",
        "peak_memory_mb",
        "seconds",
        "seeds",
        "failed",
        "mark",
    ]
    for line, row in zip(lines, table.rows, strict=True):
        assert line["tuning"] == row.label and int(line["seeds"]) == 2
        assert float(line["accuracy"]) == pytest.approx(row.metrics["accuracy"].mean, rel=1e-9)
        assert float(line["accuracy_low"]) <= float(line["accuracy"]) <= float(line["accuracy_high"]) <= 1
        assert (line["accuracy_p"] == "") == (row.label == "full")
        assert float(line["trainable_share"]) == pytest.approx(int(line["trainable"]) / 22_715_526)
    assert {line["tuning"]: line["failed"] for line in lines} == dict.fromkeys(("full", "bitfit", "layernorm", "head"), "0") | {
        "lora": "1"
    }


def test_readers_get_percent_units_marks_and_failures(table):
    text = to_markdown(table)
    assert text.startswith("| Tuning | Accuracy (%) | Macro-F1 (%) | Trainable | Share (%) | Examples/s | Peak memory (MB) |")
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert text.count("**") == 4 and "22,715,526" in text and "‡ [" in text
    assert "- trec-lora (tuning lora, seed 2) failed: NaN loss at step 41" in text


def test_nothing_a_user_names_can_break_markdown_or_latex(nasty):
    line = next(line for line in to_markdown(nasty).splitlines() if "50%" in line)
    assert line.startswith("| " + r"\[a\_b\] & 50% #1 ~x^2 {y} \\z $d$ \<i\> \|p\| \`q\` \*r\* |")
    latex = to_latex(nasty)
    assert (
        r"{[}a\_b] \& 50\% \#1 \textasciitilde{}x\textasciicircum{}2 \{y\} \textbackslash{}z \$d\$ $<$i$>$ \textbar{}p" in latex
    )
    assert r"100\% of \_x\_ \& $<$y$>$ second line" in latex


def test_latex_ranks_and_compiles(table, nasty, tmp_path):
    latex = to_latex(table)
    assert latex.count(r"\textbf{") == 2 and latex.count(r"\underline{") == 2 and r"$^{\ddagger}$" in latex
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{latex}{to_latex(nasty)}\end{{document}}"
    (tmp_path / "paper.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:]


def test_the_terminal_table_fits_100_columns_uncut(table):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(to_rich(table, "TREC-6"))
    text = console.export_text()
    assert "…" not in text and all(len(line) <= 100 for line in text.splitlines())
    for row in table.rows:
        line = next(line for line in text.splitlines() if line.strip().startswith(row.label))
        assert f"{row.metrics['accuracy'].mean:.1%}"[:-1] + row.mark in line and f"{row.costs['trainable']:,.0f}" in line
    assert "NaN loss at step 41" in text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.93749, "93.7"),
        ("trainable_share", 2310 / 22_715_526, "0.0102"),
        ("trainable_share", 1, "100"),
        ("examples_per_second", 1234.56, "1,235"),
        ("seconds", 9.996, "10.0"),
        ("matthews", 0.91549, "0.915"),
        ("seconds", None, "–"),
        ("seconds", 0.0, "0.00"),
        ("peak_memory_mb", float("nan"), "–"),
        ("bleu", 27.34, "27.3"),
    ],
)
def test_numbers_are_rounded_for_a_reader(name, value, text):
    assert quantity(name).text(value) == text


def test_what_prints_alike_ranks_alike_and_losses_rank_downwards(tmp_path, make_run):
    references = ["LOC"] * 4000
    for tuning, misses in (("full", 400), ("lora", 401), ("head", 500)):
        make_run(tmp_path, tuning, 0, references=references, predictions=["HUM"] * misses + references[misses:])
    table = build(load_runs(tmp_path), metrics=["accuracy"], resamples=50)
    assert {row.label: table.rank("accuracy", row) for row in table.rows} == {"full": 1, "lora": 1, "head": 2}
    assert quantity("loss").better == "lower" and quantity("expected_calibration_error").better == "lower"
