"""The page: valid, offline, escaped, sortable in a real browser, and written whole or not at all."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from research.errors import InputError
from research.reports import load_runs, placement, write

VOID = {"meta", "link", "br", "line", "circle", "use", "path", "img", "input", "hr", "rect"}
OPTIONS = {"baseline": {"tuning": "full"}, "title": "TREC-6", "question": "Which strategy?", "resamples": 100}
EVIL = '"><script>alert(1)</script>&amp;'


class Outline(HTMLParser):
    """Checks that tags nest and ids are unique; collects links, headings and table cells."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.links, self.tags, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        self.links += [value for name, value in attributes if name in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, f"unexpected </{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.fixture(scope="module")
def report(shared_runs):
    write(load_runs(shared_runs), shared_runs, **OPTIONS)
    return shared_runs


def test_the_page_is_valid_offline_and_complete(report):
    html = (report / "report.html").read_text()
    outline = Outline(html)
    assert len(outline.ids) == len(set(outline.ids))
    for link in outline.links:
        assert link.startswith(("#", "data:")) or (report / link).exists(), link
        assert not link.startswith("#") or link[1:] in outline.ids
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    for tag, count in {"h1": 1, "figure": 4, "main": 1, "script": 1, "table": 1, "style": 1}.items():
        assert outline.tags.count(tag) == count, tag
    text = " ".join(outline.text)
    for expected in ("Which strategy?", "NaN loss at step 41", "p < 0.05", "jax", "0.10.2", "tuning.kind: lora"):
        assert expected in text
    assert "<mark>tuning.kind: lora</mark>" in html and "<mark>epochs" not in html
    assert ">Dev accuracy (%)</text>" in html and ">layernorm</text>" in html  # text in figures stays text


def test_everything_is_written_and_is_the_same_each_time(report):
    names = {
        "table.csv",
        "table.md",
        "table.tex",
        "report.html",
        "trade_off.svg",
        "wall_time.svg",
        "learning_curves.svg",
        "training_loss.svg",
    }
    before = {name: (report / name).read_bytes() for name in names}
    assert {path.name for path in report.iterdir()} == names | {"runs"}
    write(load_runs(report / "runs"), report, **OPTIONS)
    assert {name: (report / name).read_bytes() for name in names} == before
    with pytest.raises(InputError):
        write(load_runs(report / "runs"), report, metrics=["nothing"])
    assert {path.name: path.read_bytes() for path in report.iterdir() if path.is_file()} == before


def test_whatever_a_run_says_is_text(tmp_path, make_run):
    make_run(tmp_path, "full", 0, 40, note=EVIL)
    make_run(tmp_path, "full", 0, 40, note="$\\frac{1$")
    make_run(tmp_path, "lora", 1, 40, note=EVIL, error=EVIL)
    options = {"title": EVIL, "question": EVIL, "environment": {EVIL: EVIL}}
    write(load_runs(tmp_path), tmp_path / "out", rows=("note",), resamples=50, **options)
    html = (tmp_path / "out" / "report.html").read_text()
    outline = Outline(html)
    assert outline.tags.count("script") == 1 and "alert(1)</script>" not in html
    assert "".join(outline.text).count(EVIL) >= 8  # title, question, row, error, figures, environment: as written


def test_labels_move_no_further_than_they_must():
    assert placement.spread([0, 10, 20], 5) == [0, 10, 20]
    assert placement.spread([0, 0, 30], 4) == [-2, 2, 30]
    assert placement.spread([5, 5, 5, 8], 2) == pytest.approx([2.75, 4.75, 6.75, 8.75])


def test_a_click_on_a_header_sorts_the_rows(report, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium to sort in")
    with (report / "table.csv").open() as file:
        accuracies = {line["tuning"]: float(line["accuracy"]) for line in csv.DictReader(file)}
    html = (report / "report.html").read_text()
    script = """<script>
      const buttons = [...document.querySelectorAll(".results thead button")];
      const click = name => buttons.find(button => button.textContent.includes(name)).click();
      const order = () => [...document.querySelectorAll(".results tbody th")].map(cell => cell.dataset.sort).join(" ");
      const seen = ["Trainable", "Trainable", "Accuracy", "Tuning"].map(name => { click(name); return order(); });
      const sorted = document.querySelectorAll("[aria-sort]");
      document.body.dataset.seen = [...seen, sorted.length, sorted[0].getAttribute("aria-sort")].join("|");
    </script></body>"""
    clicked = tmp_path / "clicked.html"
    clicked.write_text(html.replace("</body>", script))
    dom = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-sync",
            "--disable-background-networking",
            "--disable-component-update",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            clicked.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    by_size = ["head", "layernorm", "bitfit", "lora", "full"]
    by_accuracy = sorted(by_size, key=lambda name: -accuracies[name])
    seen = re.search(r'data-seen="([^"]*)"', dom)[1].split("|")
    assert [line.split() for line in seen[:4]] == [by_size, by_size[::-1], by_accuracy, sorted(by_size)]
    assert seen[4:] == ["1", "ascending"]
