"""What all tests share: programs compiled once are kept in pytest's cache, and a toy task to run the engine on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is compiled; processes that tests start inherit it. `pytest --cache-clear` empties it."""
    if hasattr(config, "cache"):  # not under `-p no:cacheprovider`
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("programs")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See tests/toy.py; copy it before changing it."""
    from tests.toy import toy_folder

    return toy_folder(tmp_path_factory.mktemp("toy"))
