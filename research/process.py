"""Facts and settings of this process: compiled programs kept on disk, memory at its peak, versions."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from importlib import metadata
from pathlib import Path

import jax

from research.text.references import cache_directory


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, so that a second process starts at once. A cache that is set already is left alone."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def peak_memory() -> int:
    """Bytes at the peak: of the fullest device, or of this process where devices do not say (CPU)."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if used := [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]:
        return max(used)
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss begins with the peak of the process that started this one
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def environment() -> dict[str, str]:
    """What a result may depend on beside its config."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers")
    versions = {name: metadata.version(name) for name in packages}
    devices = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind} ({jax.default_backend()})"
    machine = {"python": platform.python_version(), "devices": devices, "cores": str(os.cpu_count())}
    return versions | machine | {"date": time.strftime("%Y-%m-%d")}
