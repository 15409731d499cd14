"""Where a run's pictures come from: decoded again, kept on the host's disk, or in device memory."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline import slots as slots_lib
from input_pipeline.batches import Batch, Batches, OnBad, train_batches
from input_pipeline.sources import Source
from mnv4_jax.config import train_transform
from mnv4_jax.runtime.mesh import batch_sharding, put_batch, replicated

_SHARE_OF_FREE = 0.6  # of a device's free memory, for pictures: a step needs memory too


class TrainPictures:
    """The training batches of a run on its devices.

    Pictures are decoded in the first epoch. With `data.cache` "device", and with "auto" on a GPU or
    TPU, they move to the devices if they fit, at the end of the first epoch after which all are
    decoded. From then on only the positions of crops are sent. The batches are always the same.

    Args:
      config: the run's.
      source: the pictures.
      mesh: the run's.
      start: number of the first batch.
      on_bad: called for pictures that cannot be read, see `train_batches`.
      say: called with a line that says what was chosen.
    """

    def __init__(
        self,
        config: ConfigDict,
        source: Source,
        mesh: Mesh,
        *,
        start: int,
        on_bad: OnBad,
        say: Callable[[str], None],
    ):
        self._mesh, self._say = mesh, say
        self._start = self._done = start
        data, transform = config.data, train_transform(config.data)
        self._side_px = transform.shorter_px
        self._slots = slots_lib.open_for(source, self._side_px, data.cache, data.cache_gib, say)
        self._per_epoch = max(1, -(-len(source) // config.train.batch_size))
        self._open = functools.partial(
            train_batches,
            source,
            transform,
            batch_size=config.train.batch_size,
            seed=config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            blended=data.blended,
            webp=data.webp_prob,
            weights=data.weights,
            balance=data.balance,
            threads=data.threads,
            workers=data.workers,
            on_bad=on_bad,
            slots=self._slots,
        )
        self._batches: Batches = self._open(start=start)
        self._resident: jax.Array | None = None  # [N, side, side, 3] uint8 on every device
        self._crops = jax.jit(
            functools.partial(crops, size=transform.size), out_shardings=batch_sharding(mesh)
        )
        is_accelerator = jax.default_backend() != "cpu"
        wanted = data.cache == "device" or (data.cache == "auto" and is_accelerator)
        self._wants_device = wanted and self._slots is not None
        if self._wants_device and (reason := self._why_not_resident(data, len(source))):
            self._wants_device = False
            if data.cache == "device":
                say(f"pictures stay on the host: {reason}")

    def __next__(self) -> tuple[Batch, dict[str, jax.Array]]:
        """(a batch of this process, "image", "label" and "position" of the global batch)."""
        # Not before the first batch: checking all slots of a large set takes half a minute.
        at_an_epochs_end = self._done > self._start and self._done % self._per_epoch == 0
        if self._wants_device and at_an_epochs_end and self._slots.complete():
            self._move()
        batch = next(self._batches)
        self._done += 1
        names = ("label", "position", "image" if self._resident is None else "crop")
        arrays = put_batch({name: batch[name] for name in names}, self._mesh)
        if self._resident is not None:
            arrays["image"] = self._crops(self._resident, arrays.pop("crop"))
        return batch, arrays

    def close(self) -> None:
        self._batches.close()

    def _move(self) -> None:
        self._wants_device = False
        pixels = self._slots.memory.reshape(-1, self._side_px, self._side_px, 3)
        sides = self._slots.sides(np.arange(len(pixels)))
        if sides[sides > 0].min() < self._side_px:
            self._say("pictures stay on the host: some are smaller than others (data.crop=native)")
            return
        self._batches.close()
        self._resident = jax.device_put(pixels, replicated(self._mesh))
        self._batches = self._open(start=self._done, resident=True)
        self._say(f"all pictures are in device memory: {pixels.nbytes / 2**30:.2f} GiB")

    def _why_not_resident(self, data: ConfigDict, n: int) -> str | None:
        if jax.process_count() > 1:
            return "data.cache=device is for runs of one process"
        if tuple(data.zoom) != (1, 1) or data.blended or data.webp_prob:
            return "data.zoom, data.blended and data.webp_prob change them there"
        needed = n * self._side_px**2 * 3
        free = min(_free_bytes(device) for device in self._mesh.local_devices)
        if needed > _SHARE_OF_FREE * free:
            return f"{needed / 2**30:.1f} GiB do not fit in {free / 2**30:.1f} GiB of device memory"
        return None


def crops(pixels: jax.Array, places: jax.Array, *, size: int) -> jax.Array:
    """[N, S, S, 3] uint8, [B, 3] int32 (index, top, left) -> [B, size, size, 3] uint8."""

    def one(place):
        start = (place[0], place[1], place[2], jnp.int32(0))
        return jax.lax.dynamic_slice(pixels, start, (1, size, size, 3))[0]

    return jax.vmap(one)(places)


def _free_bytes(device: jax.Device) -> int:
    if stats := device.memory_stats():
        return stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
    return psutil.virtual_memory().available  # a CPU's
