"""Shared by the benchmarks: options, random networks, timing in turns, figures."""

import argparse
import datetime
import importlib.util
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from fcn_jax import FCN, Network
from fcn_jax.files import write_json
from fcn_jax.weights.layers import shapes_of

ON_CPU = jax.default_backend() == "cpu"
TORCH_INSTALLED = importlib.util.find_spec("torch") is not None
HELP = {
    "width": "multiplier of the network's filters",
    "side": "height and width of the images",
    "batch_size": "images per batch",
    "repeats": "timed turns of each alternative",
    "sample": "repeat short calls for this many seconds in each turn",
}

Name = TypeVar("Name", bound=Hashable)


def make_parser(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser of ``--out`` and of the options in `HELP` that get a default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        flag, text = "--" + name.replace("_", "-"), f"{HELP[name]} ({default})"
        parser.add_argument(flag, type=type(default), default=default, help=text)
    parser.add_argument("--out", help="JSON file for the figures")
    return parser


def random_network(model: FCN) -> Network:
    """Return a network with random parameters that keep the scale of activations."""
    rng, params = np.random.default_rng(0), {}
    for path, shape in shapes_of(model).items():
        scale = np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0.1
        array = rng.standard_normal(shape, np.float32) * np.float32(scale)
        params[path] = jnp.asarray(array)
    return Network(unflatten_dict(params, sep="/"), model)


def parameter_shapes(model: FCN) -> Any:
    """Return the parameters of a model as `jax.ShapeDtypeStruct`."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    image = jnp.zeros((1, 32, 32, model.in_channels))
    return jax.eval_shape(model.init, key, image)["params"]


def time_in_turns(
    runs: dict[Name, Callable[[], Any]],
    *,
    repeats: int,
    sample: float = 0.5,
    calls: int = 0,
    untimed: int = 1,
    once_above: float = math.inf,
    wait: Callable[[Any], Any] = jax.block_until_ready,
) -> dict[Name, list[float]]:
    """Time alternatives in turns, so that all meet the same state of the machine.

    The first call of each compiles and is not counted. Calls are dispatched one after
    the other and waited for together.

    Args:
        runs: the alternatives by name; each call does the work once.
        repeats: timed turns of each alternative.
        sample: seconds that the calls of a turn fill.
        calls: timed calls in a turn; 0 for as many as fill ``sample``.
        untimed: calls before the timed ones of each turn. Memory that one library
            returned is slow at first for another.
        once_above: an alternative that takes more seconds than this is timed once.
        wait: waits for the result of a call.

    Returns:
        For each alternative the seconds of one call, in each turn.
    """

    def seconds(run: Callable[[], Any], count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            result = run()
        wait(result)
        return (time.perf_counter() - start) / count

    times, counts = {}, {}
    for name, run in runs.items():
        seconds(run, 1)  # Compiles.
        times[name] = [seconds(run, 1)]
        counts[name] = calls or math.ceil(sample / times[name][0])
    short = [name for name, (first,) in times.items() if first <= once_above]
    times |= {name: [] for name in short}
    for _ in range(repeats):
        for name in short:
            seconds(runs[name], untimed)
            times[name].append(seconds(runs[name], counts[name]))
    return times


def medians(times: dict[Name, list[float]]) -> dict[Name, float]:
    """Return the median seconds of each alternative."""
    return {name: statistics.median(values) for name, values in times.items()}


def ratio(times: dict[Name, list[float]], name: Name, other: Name) -> float:
    """Return the median of one alternative divided by that of another."""
    return statistics.median(times[name]) / statistics.median(times[other])


def machine() -> str:
    """Return the name of the accelerator, or the number and name of the cores."""
    if not ON_CPU:
        return jax.devices()[0].device_kind
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1] for line in lines if line.startswith("model name")]
    # Those that this process may use, where the system tells.
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return f"{len(affinity(0))} cores of {[*names, name][0].strip()}"


def write_figures(args: argparse.Namespace, figures: dict[str, Any]) -> dict[str, Any]:
    """Write the figures of a run to ``args.out``, if it is given.

    Returns:
        What is written: "device", "jax" (its version), "date", "arguments", and the
        figures.
    """
    record = {
        "device": machine(),
        "jax": jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "arguments": vars(args),
        **figures,
    }
    if args.out:
        write_json(args.out, record)
    return record
