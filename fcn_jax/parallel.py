"""One step for one device or many, of one process or many: data parallelism.

A process starts with `fcn_jax.processes.initialize`; then `make_parallel` tells where
arrays go:

    parallel = make_parallel("sharded", batch_size=32)
    step = parallel.step(functools.partial(make_train_step, model, tx))
    state = parallel.put_state(state)
    for batch in train_batches(..., batch_size=32, shard=parallel.shard):
        state, metrics = step(state, parallel.put_batch(batch), key)
"""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fcn_jax.processes import all_devices, refuse_difference

MODES = ("sharded", "pmap", "none")
AXIS = "batch"


def global_state(state: Any) -> Any:
    """The same arrays, as arrays of all processes, which a checkpoint needs.

    Args:
        state: on every device of this process, as `Parallel.step` returns it.
    """
    if jax.process_count() == 1:
        return state
    everywhere = NamedSharding(_mesh(all_devices()), PartitionSpec())

    def widen(x: jax.Array) -> jax.Array:
        if not x.is_fully_addressable:
            return x
        copies = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, everywhere, copies)

    return jax.tree.map(widen, state)


@dataclasses.dataclass
class Parallel:
    """Where a step runs, made by `make_parallel`.

    Attributes:
        mode: of `MODES`.
        batch_size: images of a step, over all processes.
        mesh: the devices: all of them, under "pmap" those of this process.
    """

    mode: str
    batch_size: int
    mesh: Mesh
    _shape: tuple[int, ...] | None = None

    @property
    def shard(self) -> tuple[int, int]:
        """The part of each batch that this process reads: (which, of how many)."""
        return jax.process_index(), jax.process_count()

    def step(self, make_step: Callable[..., Callable]) -> Callable:
        """A compiled step, which takes what `put_state` and `put_batch` return.

        Args:
            make_step: takes ``axis_name``, gives the pure ``(state, batch, key) ->
                (state, metrics)`` that sums over that axis, if it is not None.
        Returns:
            The same function; the state given to it is used up. A dropout mask is drawn
            for the whole batch, under "pmap" for each device's part of it.
        """
        if self.mode == "pmap":
            return jax.pmap(
                make_step(axis_name=AXIS),
                axis_name=AXIS,
                in_axes=(None, 0, None),
                out_axes=None,
                donate_argnums=0,
            )
        same, split = self._sharding(), self._sharding(AXIS)
        return jax.jit(
            make_step(axis_name=None),
            in_shardings=(same, split, same),
            out_shardings=same,
            donate_argnums=0,
        )

    def put_state(self, state: Any) -> Any:
        """A copy of a state on every device.

        Raises:
            ValueError: if the processes bring different states.
        """
        state = jax.tree.map(np.asarray, state)
        if jax.process_count() > 1:
            checksum = 0
            for leaf in jax.tree.leaves(state):
                checksum = zlib.crc32(leaf.tobytes(), checksum)
            refuse_difference(
                checksum,
                "the processes do not start from the same state: do they see the same "
                "files, --workdir above all?",
            )
        same = self._sharding()
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, same, x.__getitem__), state
        )

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Starts to send this process's part of a batch, an equal part to each device.

        Raises:
            ValueError: if the shape is not that of the other processes.
        """
        self._check_shape(batch["image"].shape)
        devices = len(self.mesh.local_devices)

        def put(x: np.ndarray) -> jax.Array:
            if self.mode == "pmap":
                x = x.reshape(devices, -1, *x.shape[1:])
            return jax.make_array_from_process_local_data(self._sharding(AXIS), x)

        return jax.tree.map(put, batch)

    def one_copy(self, state: Any) -> Any:
        """A state on one device of this process, to compute with apart from the rest.

        It shares its memory with the state, and is used up with it.
        """
        return jax.tree.map(lambda x: x.addressable_data(0), state)

    def _sharding(self, *axes: str) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if jax.process_count() == 1:
            return
        message = (
            f"with several processes all images of a run must share a size, {shape} is "
            "a batch of another one: set data.crop or data.size"
        )
        if self._shape is None:  # Later on no process waits for the others to ask.
            self._shape = shape
            refuse_difference(shape, message)
        if shape != self._shape:
            raise ValueError(message)


def make_parallel(mode: str, *, batch_size: int, accumulate: int = 1) -> Parallel:
    """How to run a step: on all devices of all processes, or on one.

    Args:
        mode: "sharded" (jit), "pmap" or "none", for one device only.
        batch_size: images of a step, over all processes.
        accumulate: parts that a step takes one by one.
    Raises:
        ValueError: if the mode is not known or the batch cannot be split evenly.
    """
    if mode not in MODES:
        raise ValueError(f"parallel = {mode!r} is not one of " + ", ".join(MODES))
    devices, processes = all_devices(), jax.process_count()
    if mode == "none":
        if processes > 1:
            raise ValueError(
                f'parallel = "none" is for one process, and there are {processes}: set '
                'parallel = "sharded"'
            )
        devices = devices[:1]
    shares = len(devices) * accumulate
    if batch_size % shares:
        parts = f" in {accumulate} parts (accumulate)" if accumulate > 1 else ""
        several = processes == 1 < len(devices)
        alone = ', or parallel = "none", which uses one' if several else ""
        raise ValueError(
            f"batch_size = {batch_size} cannot be split evenly over {len(devices)} "
            f"devices of {processes} process(es){parts}: set a multiple of {shares}"
            + alone
        )
    mesh = _mesh(devices)
    return Parallel(mode, batch_size, mesh.local_mesh if mode == "pmap" else mesh)


def _mesh(devices: list[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
