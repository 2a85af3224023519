"""`graft doctor`: whether this machine can do the work, and the remedy where it cannot.

versions, devices, cache, disk, cores, memory --checks--> findings; a problem makes the exit code 1
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from experiments.usage import Arguments

EXAMPLES = ("graft doctor", "graft doctor --json")
PACKAGES = (
    "graft-lm",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "scipy",
    "scikit-learn",
    "datasets",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "pydantic",
    "tyro",
    "matplotlib",
    "tensorboardX",
)
PARITY = ("torch", "transformers", "peft", "accelerate")
NEEDED_DISK = 2 * 2**30  # a model, its compiled programs and a sweep's checkpoints
NEEDED_MEMORY = 4 * 2**30
FROZEN = "pip install 'jax==0.10.2' 'flax==0.12.8'"  # the last pair that is made for Python 3.11


def main(args: Sequence[str]) -> int:
    """Entry of the command."""
    parser = Arguments("doctor", "Check versions, devices, cache, disk and memory. Exit code 1: something is wrong.", EXAMPLES)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    asked = parser.parse(args)
    found = examine()
    if asked.json:
        print(json.dumps(found, indent=1))
    else:
        _show(found)
    return 1 if found["problems"] else 0


def examine() -> dict[str, Any]:
    """All findings; `problems` are sentences that say what is wrong and what to do."""
    from research.text.references import cache_directory

    versions, parity = _versions(PACKAGES), _versions(PARITY)
    problems = pairs(versions, sys.version_info[:2])
    devices = _devices(problems)
    cache = cache_directory()
    there = next(path for path in (cache, *cache.parents) if path.exists())
    disk, memory = shutil.disk_usage(there).free, _memory()
    if not os.access(there, os.W_OK):
        problems.append(f"the cache directory {cache} cannot be written; set GRAFT_CACHE to a folder that can.")
    if disk < NEEDED_DISK:
        problems.append(f"only {_size(disk)} are free at {there}; free some, or set GRAFT_CACHE to a folder on another disk.")
    if memory is not None and memory < NEEDED_MEMORY:
        problems.append(f"only {_size(memory)} of memory; use smaller batches (--batches.size 8) and one job at a time.")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "parity": parity,
        "devices": devices,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory,
        "cache": str(cache),
        "cache_bytes": _held(cache),
        "free_bytes": disk,
        "problems": problems,
    }


def pairs(versions: Mapping[str, str | None], python: tuple[int, int]) -> list[str]:
    """What is wrong with the versions: sentences with the remedy. jax and flax move as a pair."""
    again = "pip install --upgrade --force-reinstall graft-lm"
    problems = [f"{name} is not installed; run: {again}." for name in ("jax", "jaxlib", "flax") if not versions.get(name)]
    if python < (3, 11):
        problems.append(f"Python {python[0]}.{python[1]} is too old; install 3.11 or newer.")
    if problems:
        return problems
    jax, jaxlib, flax = (_numbers(str(versions[name])) for name in ("jax", "jaxlib", "flax"))
    if jax[:2] != jaxlib[:2]:
        problems.append(
            f"jax {versions['jax']} and jaxlib {versions['jaxlib']} do not belong together; run: pip install "
            f"'jax=={versions['jax']}' 'jaxlib=={versions['jax']}'."
        )
    if jax >= (0, 11, 2) and flax <= (0, 12, 9):
        remedy = "pip install --upgrade 'jax>=0.12' 'flax>=0.12.12'" if python >= (3, 12) else FROZEN
        problems.append(f"flax {versions['flax']} cannot be imported with jax {versions['jax']}; run: {remedy}.")
    if not (0, 10, 1) <= jax < (0, 13):
        problems.append(f"jax {versions['jax']} is not supported; run: pip install 'jax>=0.10.1,<0.13'.")
    if jax >= (0, 11) and python < (3, 12):
        problems.append(f"jax {versions['jax']} is not made for Python 3.11; run: {FROZEN}, or use Python 3.12.")
    return problems


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _versions(names: Sequence[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _devices(problems: list[str]) -> list[str]:
    """What jax computes on; importing and asking is a check of its own."""
    try:
        import flax  # noqa: F401
        import jax

        return [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    except Exception as error:  # whatever a broken installation raises is the finding
        problems.append(f"jax does not start: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return []


def _memory() -> int | None:
    """Bytes of memory that this machine, or the container that we are in, has."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
    group = Path("/sys/fs/cgroup/memory.max")
    if group.exists() and (text := group.read_text().strip()).isdigit():
        limits.append(int(text))
    return min(limits, default=None)


def _held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _size(number: float) -> str:
    return f"{number / 2**30:.1f} GB" if number >= 2**30 else f"{number / 2**20:.0f} MB"


def _show(found: Mapping[str, Any]) -> None:
    listed: Callable[[Mapping[str, str | None]], str] = lambda versions: ", ".join(
        f"{name} {number or 'absent'}" for name, number in versions.items()
    )
    rows = {
        "Python": f"{found['python']} on {found['platform']}",
        "packages": listed(found["packages"]),
        "parity": listed(found["parity"]) + "  (tests and benchmarks only: make parity)",
        "devices": ", ".join(found["devices"]) or "none",
        "cores": found["cores"],
        "memory": _size(found["memory_bytes"]) if found["memory_bytes"] else "unknown",
        "cache": f"{found['cache']} holds {_size(found['cache_bytes'])}, {_size(found['free_bytes'])} free",
    }
    for name, value in rows.items():
        print(f"{name:10}{value}")
    print()
    for problem in found["problems"]:
        print(f"WRONG: {problem}")
    if not found["problems"]:
        print("Everything is in order.")
