"""The processes of a run: how they join, agree, and share the work."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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
    split = NamedSharding(Mesh(np.array(all_devices()), ("all",)), PartitionSpec("all"))
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


def all_devices() -> list[jax.Device]:
    """All devices, those of a process side by side, as its rows of a batch are."""
    processes = range(jax.process_count())
    return [d for p in processes for d in jax.local_devices(process_index=p)]


def _gather(values: np.ndarray) -> np.ndarray:
    """[processes, ...] of the values that each process gives."""
    return np.asarray(multihost_utils.process_allgather(values))


def refuse_difference(values: Any, message: str) -> None:
    """Raises ValueError in every process where they give different values."""
    gathered = _gather(np.array(values, np.uint32))
    if (gathered != gathered[0]).any():
        raise ValueError(message)


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
