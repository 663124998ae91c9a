"""One step for one device or many, of one process or many: data parallelism.

A process starts with `initialize`; `make_parallel` then tells where arrays go:

    parallel = make_parallel("sharded", batch_size=32)
    step = parallel.step(functools.partial(make_train_step, model, tx))
    state = parallel.put_state(state)
    for batch in train_batches(..., batch_size=32, shard=parallel.shard):
        state, metrics = step(state, parallel.put_batch(batch), key)
"""

import contextlib
import dataclasses
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MODES = ("sharded", "pmap", "none")
AXIS = "batch"
# Seconds after which all processes end with an error once one of them is dead, or has
# ended and the others have not.
TIMEOUT = 90


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = TIMEOUT,
) -> None:
    """Joins this process with the others of its run; nothing to do for a lone one.

    Before anything else that touches jax's devices. Under Slurm, Open MPI, Kubernetes
    (an indexed job) and on TPUs no arguments are needed, for jax detects the rest.
    Slurm and Open MPI give a process one device, unless JAX_LOCAL_DEVICE_IDS=0,1,...
    names more.

    Args:
        coordinator: host:port of process 0, reachable by all.
        num_processes: how many there are; 1 leaves all others out of it.
        process_id: number of this one, from 0.
        timeout: see `TIMEOUT`.
    Raises:
        ValueError: if some of the arguments are missing and jax cannot tell them.
    """
    given = (coordinator, num_processes, process_id)
    alone = not any(value is not None for value in given) and not _is_one_of_many()
    if num_processes == 1 or alone or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            *given,
            cluster_detection_method=None if None in given else "deactivate",
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    except ValueError as error:
        raise ValueError(
            "this process is one of several, but jax cannot tell how to reach the "
            f"others ({error}) Give each --coordinator=host:port, --num_processes and "
            "--process_id, or --num_processes=1 to one that shall run alone"
        ) from error
    # On CPUs, the first exchange fails if processes come to it 30 s apart, as they may
    # later. One between processes and one between all devices are kept for reuse.
    multihost_utils.sync_global_devices("fcn_jax")
    ones = np.ones(jax.local_device_count())
    split = NamedSharding(_mesh(_devices()), PartitionSpec(AXIS))
    ones = jax.make_array_from_process_local_data(split, ones)
    multihost_utils.process_allgather(ones, tiled=True)


def is_main() -> bool:
    """Whether this is the process that logs and draws."""
    return jax.process_index() == 0


def preempted(step: int) -> bool:
    """Whether to save and stop after this step, for a process got SIGTERM.

    All processes of a run agree on the step; each must ask after every step. To be
    used with several processes only, where jax takes the signal.
    """
    reached = multihost_utils.reached_preemption_sync_point
    return jax.process_count() > 1 and reached(step)


def sum_over_processes(array: np.ndarray) -> np.ndarray:
    """The sum of the arrays that each process gives, such as confusion matrices."""
    array = np.asarray(array)
    # As bytes, for jax would narrow 64 bits to 32.
    parts = _gather(np.frombuffer(array.tobytes(), np.uint8))
    return parts.view(array.dtype).reshape(-1, *array.shape).sum(axis=0)


def wait_for_all() -> None:
    """Returns once every process of the run has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("fcn_jax")


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """What is in it is done by process 0, then by the others: they find files ready."""
    if not is_main():
        wait_for_all()
    yield
    if is_main():
        wait_for_all()


def part(source: Any) -> Any:
    """This process's share of a source, for an evaluation that all take part in."""
    return _Part(source, range(jax.process_index(), len(source), jax.process_count()))


def global_state(state: Any) -> Any:
    """The same arrays, as arrays of all processes, which a checkpoint needs.

    Args:
        state: on every device of this process, as `Parallel.step` returns it.
    """
    if jax.process_count() == 1:
        return state
    everywhere = NamedSharding(_mesh(_devices()), PartitionSpec())

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
            _refuse_difference(
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
            _refuse_difference(shape, message)
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
    devices, processes = _devices(), jax.process_count()
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


@dataclasses.dataclass
class _Part:
    source: Any
    indices: range

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> dict:
        return self.source[self.indices[i]]


def _is_one_of_many() -> bool:
    """Whether a scheduler that jax knows started this process as one of several.

    jax would take a lone process in a scheduler's shell for one of a run.
    """
    names = os.environ

    def count(name: str) -> int:
        return int(names.get(name) or 1)

    tpu = names.get("TPU_PROCESS_ADDRESSES") or names.get("TPU_WORKER_HOSTNAMES") or ""
    return (
        ("SLURM_STEP_NODELIST" in names and count("SLURM_NTASKS") > 1)
        or count("OMPI_COMM_WORLD_SIZE") > 1
        or ("KUBERNETES_SERVICE_HOST" in names and "JOB_COMPLETION_INDEX" in names)
        or "," in tpu
        or count("MEGASCALE_NUM_SLICES") > 1
        # jax sets the first on a TPU host, the second where there is none to ask.
        or ("TPU_ML_PLATFORM" in names and "TPU_SKIP_MDS_QUERY" not in names)
    )


def _devices() -> list[jax.Device]:
    """All devices, those of a process side by side, as its rows of a batch are."""
    processes = range(jax.process_count())
    return [d for p in processes for d in jax.local_devices(process_index=p)]


def _mesh(devices: list[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _gather(values: np.ndarray) -> np.ndarray:
    """[processes, ...] of the values that each process gives."""
    return np.asarray(multihost_utils.process_allgather(values))


def _refuse_difference(values: Any, message: str) -> None:
    """Raises ValueError in every process where they give different values."""
    gathered = _gather(np.array(values, np.uint32))
    if (gathered != gathered[0]).any():
        raise ValueError(message)
