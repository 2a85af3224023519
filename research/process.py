"""Facts and settings of this process: compiled programs kept on disk, memory at its peak, versions."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from importlib import metadata

import jax

from research.text.references import cache_directory


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, so that a second process starts at once. A cache that is set already is left alone."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def peak_memory() -> int:
    """Bytes at the peak: of the fullest device, or of this process where devices do not say (CPU)."""
    used = [stats["peak_bytes_in_use"] for d in jax.local_devices() if (stats := d.memory_stats()) and "peak_bytes_in_use" in stats]
    unit = 1 if sys.platform == "darwin" else 1024
    return max(used) if used else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment() -> dict[str, str]:
    """What a result may depend on beside its config."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers")
    versions = {name: metadata.version(name) for name in packages}
    devices = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind} ({jax.default_backend()})"
    return versions | {"python": platform.python_version(), "devices": devices, "cores": str(os.cpu_count()), "date": time.strftime("%Y-%m-%d")}
