"""Data parallelism: run one step on one device or many, of one process or many.

A process starts with `fcn_jax.processes.initialize`. Then `make_parallel` decides where
the arrays go:

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
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import GetAttrKey

from fcn_jax.data.padding import enlarge
from fcn_jax.processes import (
    all_devices,
    assert_equal_across_processes,
    gather_parts,
    largest_over_processes,
)

MODES = ("sharded", "zero1", "pmap", "none")
AXIS = "batch"
_MIN_SPLIT = 2**14  # Values of an array that are worth sending in parts.


@dataclasses.dataclass
class Parallel:
    """Run a step on the devices that `make_parallel` chose.

    Attributes:
        mode: one of `MODES`, as for `make_parallel`.
        batch_size: images per step, over all processes.
        mesh: the devices of the step; in mode "pmap" those of this process only.
    """

    mode: str
    batch_size: int
    mesh: Mesh
    _shape: tuple[int, ...] | None = None

    @property
    def shard(self) -> tuple[int, int]:
        """Return the index of this process's shard of each batch, and the number."""
        return jax.process_index(), jax.process_count()

    def step(self, make_step: Callable[..., Callable]) -> Callable:
        """Return a compiled step for what `put_state` and `put_batch` return.

        Args:
            make_step: takes ``axis_name`` and returns the pure ``(state, batch, key) ->
                (state, metrics)``, which sums over that axis unless it is None.

        Returns:
            The same function, compiled. It donates the state that it takes. It draws
            dropout masks for the whole batch, in mode "pmap" for each device's share.
        """
        if self.mode == "pmap":
            return jax.pmap(
                make_step(axis_name=AXIS),
                axis_name=AXIS,
                in_axes=(None, 0, None),
                out_axes=None,
                donate_argnums=0,
            )
        replicated, split = self._sharding(), self._sharding(AXIS)
        step, held = make_step(axis_name=None), replicated
        if self.mode == "zero1":
            step, held = self._keeping_parts(step), None  # As the state comes.
        return jax.jit(
            step,
            in_shardings=(held, split, replicated),
            out_shardings=(held, replicated),
            donate_argnums=0,
        )

    def put_state(self, state: Any) -> Any:
        """Copy a state to every device, in mode "zero1" each its parts of it.

        Raises:
            ValueError: if the processes pass different states.
        """
        state = jax.tree.map(np.asarray, state)
        if jax.process_count() > 1:
            checksum = 0
            for leaf in jax.tree.leaves(state):
                checksum = zlib.crc32(leaf.tobytes(), checksum)
            assert_equal_across_processes(
                checksum,
                "the processes do not start from the same state: check that all of "
                "them see the same files, above all the same run directory",
            )
        return jax.tree.map(
            lambda x, held: jax.make_array_from_callback(x.shape, held, x.__getitem__),
            state,
            self.shardings(state),
        )

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Start to send this process's shard of a batch, an equal share to each device.

        All processes must pass their shards of a step. If these have "size", they are
        padded to the largest of them, because all devices run one program.

        Raises:
            ValueError: if the processes pass batches without "size" of different
                shapes.
        """
        if "size" in batch:
            shape = largest_over_processes(batch["label"].shape[1:])
            batch = enlarge(batch, shape)
        else:
            self._check_shape(batch["image"].shape)
        devices = len(self.mesh.local_devices)

        def put(x: np.ndarray) -> jax.Array:
            if self.mode == "pmap":
                x = x.reshape(devices, -1, *x.shape[1:])
            return jax.make_array_from_process_local_data(self._sharding(AXIS), x)

        return jax.tree.map(put, batch)

    def one_copy(self, state: Any) -> Any:
        """Return a state on one device of this process, for local computations.

        It shares its memory with ``state`` and is invalid once a step has donated that.
        What the devices hold in parts comes as numpy arrays, put together one by one,
        for which all processes must call this.
        """

        def one(x: jax.Array) -> jax.Array | np.ndarray:
            return x.addressable_data(0) if x.is_fully_replicated else gather_parts(x)

        return jax.tree.map(one, state)

    def _sharding(self, *axes: str) -> NamedSharding:
        return NamedSharding(self.mesh, P(*axes))

    def shardings(self, state: Any) -> Any:
        """Return how the devices hold each array of a state."""

        def held(path: tuple, x: jax.Array) -> NamedSharding:
            if self.mode != "zero1" or path[0] != GetAttrKey("opt_state"):
                return self._sharding()
            divisible = [i for i, n in enumerate(x.shape) if n % self.mesh.size == 0]
            if x.size < _MIN_SPLIT or not divisible:
                return self._sharding()
            longest = max(divisible, key=lambda i: x.shape[i])
            return self._sharding(*[None] * longest, AXIS)

        return jax.tree_util.tree_map_with_path(held, state)

    def _keeping_parts(self, step: Callable) -> Callable:
        """Return a step whose state is held as the one before it."""

        def keeping(state: Any, *inputs: Any) -> tuple[Any, Any]:
            state, metrics = step(state, *inputs)
            held = self.shardings(state)
            return jax.lax.with_sharding_constraint(state, held), metrics

        return keeping

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if jax.process_count() == 1:
            return
        message = (
            "batches without sizes must have the same shape in all processes, and "
            f"{shape} differs from another: crop or resize all images to one size, or "
            "pad them with a bucket"
        )
        if self._shape is None:  # Only the first batch waits for the other processes.
            self._shape = shape
            assert_equal_across_processes(shape, message)
        if shape != self._shape:
            raise ValueError(message)


def make_parallel(mode: str, *, batch_size: int, accumulate: int = 1) -> Parallel:
    """Choose the devices of a step: all devices of all processes, or one.

    Args:
        mode: "sharded" (jit); "zero1", the same in less memory: each device holds a
            part of the optimiser's state (ZeRO stage 1, Rajbhandari et al.,
            arXiv:1910.02054); "pmap"; or "none" for one device.
        batch_size: images per step, over all processes.
        accumulate: micro-batches per step (gradient accumulation).

    Raises:
        ValueError: if ``mode`` is unknown, ``mode`` is "none" in a run of several
            processes, or the batch cannot be split evenly.
    """
    if mode not in MODES:
        raise ValueError(f"mode = {mode!r} is not one of " + ", ".join(MODES))
    devices, processes = all_devices(), jax.process_count()
    if mode == "none":
        if processes > 1:
            raise ValueError(
                f'mode = "none" is for one process, but this run has {processes}: use '
                '"sharded"'
            )
        devices = devices[:1]
    shares = len(devices) * accumulate
    if batch_size % shares:
        one_device = processes == 1 < len(devices)
        raise ValueError(
            f"batch_size = {batch_size} cannot be split evenly over {len(devices)} "
            f"device(s) of {processes} process(es) and {accumulate} micro-batch(es): "
            f"use a multiple of {shares}"
            + (', or mode "none", which uses one device' if one_device else "")
        )
    mesh = _mesh(devices)
    return Parallel(mode, batch_size, mesh.local_mesh if mode == "pmap" else mesh)


def prediction_devices() -> list[jax.Device]:
    """Return the devices that share predictions: all of this process.

    ``jax.default_device`` leaves only one.
    """
    default = jax.config.jax_default_device
    return jax.local_devices() if default is None else [default]


def prediction_shardings(batch_size: int) -> tuple[Sharding | None, Sharding | None]:
    """Return where predictions hold the network, and where batches of images.

    As many devices share a batch as divide it evenly. Where that is one, it is the one
    that jax chooses, and both are None.
    """
    devices = prediction_devices()
    divisors = (n for n in range(len(devices), 0, -1) if batch_size % n == 0)
    mesh = _mesh(devices[: next(divisors)])
    if mesh.size == 1:
        return None, None
    shardings = (NamedSharding(mesh, spec) for spec in (P(), P(AXIS)))
    return tuple(shardings)


def _mesh(devices: list[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
