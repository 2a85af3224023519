"""Where arrays live: a mesh of all local devices, batches cut by rows over it, everything else on each.

[ rows 0..3 | rows 4..7 | ... ]  over axis "data"        parameters, optimizer state: the same on every device
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """One axis, `data`, over the given devices (all local ones by default)."""
    devices = jax.local_devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Every leaf whole on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_rows(batch: Any, mesh: Mesh) -> Any:
    """Every leaf `[B, ...]` cut by rows; B must be a multiple of the number of devices (`Loader(row_multiple=...)`)."""
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
