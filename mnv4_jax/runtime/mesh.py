"""The mesh and its shardings.

There is one mesh axis, `data`. It splits the batch and, with `train.shard_state`, the state.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, "data", over `devices` (default: all devices of all processes).

    Devices are in the order of their processes, so that each process holds the rows of a global
    batch that its pipeline loads: process 0 has the first rows. (`jax.make_mesh` may reorder them
    to suit a torus; on TPU not even `jax.devices()` keeps a host's chips together.)
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first axis of an array over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_where_possible(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Splits the longest axis that the number of devices divides; replicates if there is none."""
    fits = [axis for axis, length in enumerate(shape) if length and length % mesh.size == 0]
    if not fits:
        return replicated(mesh)
    axis = max(fits, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows [b, …] of a batch → global arrays [b * processes, …] on the mesh.

    Returns without waiting for the transfer. Every process must call it, with equal shapes.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
