from __future__ import annotations

import pytest

from research.text.references import cache_directory, resolve


@pytest.fixture
def cached():
    """The path of a `pypi:` reference that the cache holds; elsewhere the test is skipped, since no test downloads."""

    def path(reference: str, sha256: str):
        if not list(cache_directory().glob(f"wheels/*-{sha256[:16]}")):
            pytest.skip(f"{reference} is not in the cache; `make demo` puts it there")
        return resolve(reference, sha256=sha256)

    return path
