"""The processes of a run: join them, agree on values, share the work."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # The only way to the coordinator's store.
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Seconds until all processes end with an error after one of them has died, or has
# ended before the others.
TIMEOUT = 90
# Milliseconds to wait for a slow process; a dead one is noticed within `TIMEOUT`.
_PATIENCE = 24 * 3600 * 1000

Item = TypeVar("Item")

_calls = itertools.count()  # Of `largest_over_processes`.


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = TIMEOUT,
) -> None:
    """Join this process with the others of its run; do nothing if it runs alone.

    Call it before anything else that uses jax's devices. jax detects all arguments
    under Slurm, Open MPI, Kubernetes (an indexed job) and on TPUs. Slurm and Open MPI
    give each process one device, unless JAX_LOCAL_DEVICE_IDS=0,1,... names more.

    Args:
        coordinator: "host:port" of process 0, which all processes can reach.
        num_processes: processes of the run; 1 runs this process alone.
        process_id: number of this process, from 0.
        timeout: see `TIMEOUT`.

    Raises:
        ValueError: if arguments are missing that jax cannot detect.
    """
    given = (coordinator, num_processes, process_id)
    alone = all(value is None for value in given) and not _is_one_of_several()
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
            "this process is one of several, but jax cannot detect the others "
            f"({error}) Give every process coordinator (host:port), num_processes and "
            "process_id, or give num_processes = 1 to run this process alone"
        ) from error
    # On CPUs the first exchange fails if processes reach it 30 s apart, as they may
    # later in a run. The connections of these two, one between processes and one
    # between all devices, are kept and used again.
    wait_for_all()
    ones = np.ones(jax.local_device_count())
    split = NamedSharding(Mesh(np.array(all_devices()), ("all",)), PartitionSpec("all"))
    ones = jax.make_array_from_process_local_data(split, ones)
    multihost_utils.process_allgather(ones, tiled=True)


def is_main() -> bool:
    """Tell whether this is process 0, which writes the logs and pictures."""
    return jax.process_index() == 0


def preempted(step: int) -> bool:
    """Tell whether to save and stop after a step, because a process got SIGTERM.

    All processes of a run must ask after every step, and all get the same answer. A
    process that runs alone always gets False and must handle the signal itself.
    """
    reached = multihost_utils.reached_preemption_sync_point
    return jax.process_count() > 1 and reached(step)


def sum_over_processes(array: np.ndarray) -> np.ndarray:
    """Sum the arrays that the processes pass, such as confusion matrices."""
    array = np.asarray(array)
    # Send bytes, because jax would narrow 64 bits to 32.
    gathered = _gather(np.frombuffer(array.tobytes(), np.uint8))
    return gathered.view(array.dtype).reshape(-1, *array.shape).sum(axis=0)


def gather_parts(array: jax.Array) -> np.ndarray:
    """Return an array that the devices of all processes hold in parts."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def gather_texts(text: str) -> list[str]:
    """Return the texts that the processes pass, in the order of the processes."""
    if jax.process_count() == 1:
        return [text]
    data = text.encode()
    (longest,) = largest_over_processes([len(data)])
    rows = _gather(np.frombuffer(data.ljust(longest, b" "), np.uint8))
    return [row.tobytes().decode().rstrip(" ") for row in rows]


def assert_equal_across_processes(values: Any, message: str) -> None:
    """Raise ValueError in every process if their uint32 ``values`` differ."""
    gathered = _gather(np.array(values, np.uint32))
    if (gathered != gathered[0]).any():
        raise ValueError(message)


def largest_over_processes(values: Sequence[int]) -> tuple[int, ...]:
    """Return the largest of the numbers that the processes pass, place by place.

    They go through the coordinator and not through the devices, so no process waits for
    what its devices are computing. All processes must call this equally often.
    """
    if jax.process_count() == 1:
        return tuple(values)
    client, call = distributed.global_state.client, next(_calls)
    folder = f"fcn_jax/largest/{call}/"
    client.key_value_set(f"{folder}{jax.process_index()}", ",".join(map(str, values)))
    client.wait_at_barrier(folder, _PATIENCE)
    found = client.key_value_dir_get(folder)
    if is_main():  # Whoever is past this barrier has read what was before it.
        client.key_value_delete(f"fcn_jax/largest/{call - 1}/")
    rows = np.array([text.split(",") for _, text in found], np.int64)
    return tuple(rows.max(axis=0).tolist())


def wait_for_all() -> None:
    """Return once every process of the run has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("fcn_jax")


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Run the body on process 0 first, then on the others."""
    if not is_main():
        wait_for_all()
    yield
    if is_main():
        wait_for_all()


def process_shard(source: Any) -> Any:
    """Return the examples of a source that this process evaluates."""
    return _Shard(source, range(len(source))[_own_indices()])


def own_share(values: Sequence[Item]) -> Sequence[Item]:
    """Return the values that this process works on, as `process_shard` does."""
    return values[_own_indices()]


def merge_shards(values: Sequence[float], length: int) -> np.ndarray:
    """Return a number for each example of a source, whichever process found it.

    Args:
        values: a number for each example of this process's `process_shard`.
        length: examples of the whole source.

    Returns:
        [length] float64, in the order of the source.
    """
    merged = np.zeros(length)
    merged[_own_indices()] = values
    return sum_over_processes(merged)


def all_devices() -> list[jax.Device]:
    """Return all devices ordered by process, as the rows of a batch are."""
    processes = range(jax.process_count())
    return [d for p in processes for d in jax.local_devices(process_index=p)]


def _own_indices() -> slice:
    return slice(jax.process_index(), None, jax.process_count())


def _gather(values: np.ndarray) -> np.ndarray:
    """Return the values of all processes, [processes, ...]."""
    return np.asarray(multihost_utils.process_allgather(values))


@dataclasses.dataclass
class _Shard:
    source: Any
    indices: range

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> dict:
        return self.source[self.indices[i]]


def _is_one_of_several() -> bool:
    """Tell whether a scheduler that jax knows started this process as one of several.

    Without this check, jax would join a single process in a scheduler's shell to a run.
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
        # jax sets the first on a TPU host, the second if it has no metadata server.
        or ("TPU_ML_PLATFORM" in names and "TPU_SKIP_MDS_QUERY" not in names)
    )
