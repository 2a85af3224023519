"""Automatic batch size: the fewest parts a batch must be computed in to fit the device's memory, found by compiling."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from research.batches.loader import Loader
from research.errors import InputError
from research.sharding.mesh import shard_rows


def memory_limit() -> int:
    """Bytes that one device may hold: what it reports, or the host's free memory for a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def needed(step: Any, state: Any, frozen: Any, batch: Any) -> int:
    """Bytes that a compiled step holds at once: arguments, results that do not reuse them, and temporaries."""
    analysis = step.lower(state, frozen, batch).compile().memory_analysis()
    own = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return own + analysis.temp_size_in_bytes


def fitting(
    compiled: Callable[[int], Any], state: Any, frozen: Any, loader: Loader, mesh: Mesh, limit: int | None = None
) -> int:
    """The smallest power of two of parts in which `compiled(parts)` handles the largest batch within `limit` bytes.

    Raises:
        InputError: not even one row at a time fits.
    """
    limit = memory_limit() if limit is None else limit
    largest = max((loader[i] for i in range(len(loader))), key=lambda batch: batch.tokens.size)
    placed, parts = shard_rows(largest, mesh), 1
    while True:
        bytes_needed = None
        try:
            bytes_needed = needed(compiled(parts), state, frozen, placed)
        except jax.errors.JaxRuntimeError as error:  # accelerators refuse such a program while compiling it
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
        if bytes_needed is not None and bytes_needed <= limit:
            return parts
        if parts >= largest.tokens.shape[0]:
            shown = "more than there is" if bytes_needed is None else f"{bytes_needed >> 20} MB"
            remedy = "use a smaller model or policy.remat"
            raise InputError(f"a step needs {shown} with one row at a time, and {limit >> 20} MB are free: {remedy}.")
        parts *= 2
