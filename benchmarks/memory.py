"""Print the memory of a training step at 500x500, as the compiled step states it.

    python benchmarks/memory.py --out memory.json

Compiles FCN-8s at full width with SGD for each batch size: plain, with `remat`, and in
micro-batches of one image (`accumulate`). The figures are those of the default device:
the state (parameters and momentum, whose memory the new state takes over), and the
rest. On a CPU, XLA undoes `remat` unless one of its passes is disabled, as it is here.

A second table has the steps of the first batch size with frozen layers. These steps are
run in turns, and their times are given as ratios to that of the step that trains all.
"""

import argparse
from collections.abc import Callable
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax import FCN
from fcn_jax.training.optim import make_optimizer
from fcn_jax.training.steps import init_state, make_train_step

GIB = 2**30
OPTIONS = {"cpu": {"xla_disable_hlo_passes": "cse_barrier_expander"}}
FREEZE = {"none": (), "conv1, conv2": ("conv1", "conv2"), "conv": ("conv",)}
TX = make_optimizer("sgd", lambda step: 1e-3)


def main() -> None:
    parser = harness.make_parser(__doc__, side=500, width=1.0, repeats=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()

    machine = f"{harness.machine()}, {args.dtype}"
    print(f"GiB beside the state, {machine}, {args.side}x{args.side}")
    print(f"{'batch':>5}{'plain':>9}{'remat':>9}{'in parts of 1':>15}{'state':>9}")
    rows, steps = [], [compile_step(args, n) for n in args.batch_sizes]
    for batch_size, plain_step in zip(args.batch_sizes, steps, strict=True):
        row = {
            "plain": memory(plain_step),
            "remat": memory(compile_step(args, batch_size, remat="blocks")),
            "parts": memory(
                compile_step(args, batch_size, accumulate=batch_size)
                if batch_size > 1
                else plain_step
            ),
        }
        rows.append({"batch": batch_size, **row})
        plain, remat, parts = (found["rest"] / GIB for found in row.values())
        state = row["plain"]["state"] / GIB
        print(
            f"{batch_size:>5}{plain:>9.2f}{remat:>9.2f}{parts:>15.2f}{state:>9.2f}",
            flush=True,
        )
    harness.write_figures(
        args, {"bytes": rows, "frozen": measure_freezing(args, steps[0])}
    )


def measure_freezing(
    args: argparse.Namespace, plain_step: Any
) -> dict[str, dict[str, float]]:
    """Print and return the memory and the time of steps with frozen layers."""
    batch_size, found, runs = args.batch_sizes[0], {}, {}
    for name, freeze in FREEZE.items():
        step = plain_step
        if freeze:
            step = compile_step(args, batch_size, freeze=freeze)
        found[name] = memory(step)
        runs[name] = repeated(step, args, batch_size, freeze)
    times = harness.time_in_turns(runs, repeats=args.repeats, calls=1)
    print(f"\nGiB and time with frozen layers, batch {batch_size}")
    print(f"{'frozen':<14}{'rest':>9}{'state':>9}{'seconds':>9}{'ratio':>9}")
    for name, row in found.items():
        row["seconds"] = harness.medians(times)[name]
        row["ratio"] = harness.ratio(times, name, "none")
        rest, state = row["rest"] / GIB, row["state"] / GIB
        figures = f"{rest:>9.2f}{state:>9.2f}{row['seconds']:>9.3g}{row['ratio']:>9.2f}"
        print(f"{name:<14}{figures}")
    return found


def compile_step(
    args: argparse.Namespace,
    batch_size: int,
    *,
    remat: str = "none",
    accumulate: int = 1,
    freeze: tuple[str, ...] = (),
) -> Any:
    """Return a compiled training step."""
    model = make_model(args, remat)
    step = make_train_step(model, TX, accumulate=accumulate, freeze=freeze)
    lowered = jax.jit(step, donate_argnums=0).lower(
        *shapes(model, batch_size, args.side, freeze)
    )
    return lowered.compile(OPTIONS.get(jax.default_backend()))


def make_model(args: argparse.Namespace, remat: str = "none") -> FCN:
    return FCN("fcn8s", width=args.width, dtype=jnp.dtype(args.dtype), remat=remat)


def memory(step: Any) -> dict[str, int]:
    """Return the bytes of the state, and the most that a step holds beside it."""
    found = step.memory_analysis()
    state = found.alias_size_in_bytes  # What the new state takes over.
    total = (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - state
    )
    return {"state": state, "rest": total - state}


def shapes(
    model: FCN, batch_size: int, side: int, freeze: tuple[str, ...]
) -> tuple[Any, ...]:
    """Return the shapes and dtypes of what a step takes: state, batch and key."""
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch_size, side, side), jnp.int32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = harness.parameter_shapes(model)
    state = jax.eval_shape(lambda p: init_state(p, TX, freeze=freeze), params)
    return state, batch, key


def repeated(
    step: Any, args: argparse.Namespace, batch_size: int, freeze: tuple[str, ...]
) -> Callable[[], Any]:
    """Return a function that takes the next step of a training."""
    rng, shape = np.random.default_rng(0), (batch_size, args.side, args.side)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    label = rng.integers(0, 21, shape, np.int32)
    batch, key = jax.device_put({"image": image, "label": label}), jax.random.key(0)
    params = harness.random_network(make_model(args)).params
    state = init_state(params, TX, freeze=freeze)

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, batch, key)
        return state, metrics

    return run


if __name__ == "__main__":
    main()
