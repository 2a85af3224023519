"""The house rules: rooms import in one direction, the core knows no variants, files and functions stay small, tests test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOW = ("text", "batches", "models", "tuning", "objectives", "checkpoints", "training", "decoding", "reports")  # data's way
BESIDE = ("metrics", "sharding", "config", "errors", "files", "trees")  # import no room
LIBRARY = sorted((ROOT / "research").rglob("*.py"))
PROGRAMS = [*LIBRARY, *sorted((ROOT / "experiments").rglob("*.py")), *sorted((ROOT / "tools").rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
CORE = [
    "models/model.py",
    "models/block.py",
    "models/layers.py",
    "models/attention.py",
    "models/cache.py",
    "models/layout.py",
    "training/step.py",
    "training/loop.py",
    "training/state.py",
    "training/evaluation.py",
    "tuning/strategy.py",
]
names = lambda paths: pytest.mark.parametrize("path", paths, ids=lambda p: str(p.relative_to(ROOT)))


def imported(path: Path) -> set[tuple[str, ...]]:
    """What of `research` a file imports, wherever in it: ("tuning", "strategy"), ..."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            # `from research import metrics` names the room in its aliases.
            modules = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "research" else [node.module]
            found |= {tuple(module.split(".")[1:]) for module in modules if module.split(".")[0] == "research"}
        elif isinstance(node, ast.Import):
            found |= {tuple(a.name.split(".")[1:]) for a in node.names if a.name.split(".")[0] == "research"}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: a relative import"
    return found


@names(LIBRARY)
def test_rooms_import_in_one_direction(path):
    place = path.relative_to(ROOT / "research").with_suffix("").parts
    room = place[0]
    used = {parts[0] for parts in imported(path) if parts}
    if room in FLOW:
        allowed = {*FLOW[: FLOW.index(room) + 1], *BESIDE}
    elif room in BESIDE:
        allowed = {room, "errors", "config"}
    else:
        assert len(place) == 1, f"{room} is no room of the plan"
        allowed = used  # run, setting, ... : what binds the rooms together
    assert used <= allowed, f"{path.name} of {room} imports {sorted(used - allowed)}"
    if room in (*FLOW, *BESIDE):
        assert not re.search(r"^\s*(from|import) (experiments|tools|tests)\b", path.read_text(), re.M)


def test_every_room_is_in_the_plan():
    rooms = {p.name for p in (ROOT / "research").iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert rooms <= {*FLOW, *BESIDE} and len(rooms) >= 10


def variants() -> set[str]:
    """The names of strategies, families, objectives and decoders: one file each."""
    found = set()
    for room, base in (("tuning", "strategy"), ("models/families", ""), ("objectives", "objective"), ("decoding", "")):
        files = (ROOT / "research" / room).glob("*.py")
        found |= {p.stem for p in files if not p.stem.startswith("_") and p.stem != base}
    return found


@names([ROOT / "research" / name for name in CORE])
def test_the_core_knows_no_variants(path):
    """No name of a variant as a string, an identifier, an attribute or an import (docstrings may give examples)."""
    tree, known = ast.parse(path.read_text()), variants()
    assert {"lora", "bert", "greedy", "classification", "compose"} <= known
    # Words with another meaning: a remat policy, a field of the config, a norm, the seam for keys and values; and a list
    # of parts is a composition.
    known -= {"full", "head", "select", "layernorm", "prefix"} | ({"compose"} if path.name == "strategy.py" else set())
    documentation = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body and isinstance(node.body[0], ast.Expr)
    }
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            used.add(node.value.lower())
        elif isinstance(node, ast.Name | ast.Attribute):
            used.add((node.id if isinstance(node, ast.Name) else node.attr).lower())
        elif isinstance(node, ast.ImportFrom):
            used |= {part.lower() for part in [*(node.module or "").split("."), *(a.name for a in node.names)]}
    assert not used & known


def functions(path: Path) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


@names([*PROGRAMS, *TESTS])
def test_small_files_and_functions(path):
    assert len(path.read_text().splitlines()) <= 500
    lengths = {f.name: f.end_lineno - f.lineno + 1 - len((ast.get_docstring(f) or "").splitlines()) for f in functions(path)}
    assert not {name: lines for name, lines in lengths.items() if lines > 80}, "documentation is not counted"


@names([p for p in [*PROGRAMS, *TESTS] if p != Path(__file__).resolve()])
def test_nothing_is_left_for_later(path):
    text = path.read_text()
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
    assert path.name == "__init__.py" or ast.get_docstring(ast.parse(text)), "a file says what it is for"
    assert path.stem not in ("utils", "helpers", "misc", "common", "legacy") and not re.search(r"_v\d+$", path.stem)


def asserts(function: ast.FunctionDef, checkers: set[str]) -> bool:
    """Whether a test says what must hold: an assert, `raises` or `warns`, or a call of something that asserts."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("raises", "warns", "fail") or name.startswith("assert_") or name in checkers:
                return True
    return False


@names(TESTS)
def test_tests_assert(path):
    helpers = [f for file in (path, *(ROOT / "tests").glob("*.py")) for f in functions(file) if not f.name.startswith("test_")]
    checkers: set[str] = set()
    while more := {f.name for f in helpers if asserts(f, checkers)} - checkers:
        checkers |= more
    tests = [f for f in functions(path) if f.name.startswith("test_")]
    assert tests, "a file without tests"
    assert not [f.name for f in tests if not asserts(f, checkers)]
