"""Print the memory of a training step at 500x500, as the compiled step states it.

    python benchmarks/memory.py --out memory.json

Compiles FCN-8s at full width with SGD for each batch size: plain, with `remat`, and in
micro-batches of one image (`accumulate`). Nothing is run. The figures are those of the
default device: the state (parameters and momentum, whose memory the new state takes
over), and the rest. On a CPU, XLA undoes `remat` unless one of its passes is disabled,
as it is here.
"""

import argparse
from typing import Any

import harness
import jax
import jax.numpy as jnp

from fcn_jax import FCN
from fcn_jax.training.optim import make_optimizer
from fcn_jax.training.steps import init_state, make_train_step

GIB = 2**30
OPTIONS = {"cpu": {"xla_disable_hlo_passes": "cse_barrier_expander"}}


def main() -> None:
    parser = harness.make_parser(__doc__, side=500, width=1.0)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()

    machine = f"{harness.machine()}, {args.dtype}"
    print(f"GiB beside the state, {machine}, {args.side}x{args.side}")
    print(f"{'batch':>5}{'plain':>9}{'remat':>9}{'in parts of 1':>15}{'state':>9}")
    rows = []
    for batch_size in args.batch_sizes:
        row = {
            "plain": memory(args, batch_size),
            "remat": memory(args, batch_size, remat="blocks"),
            "parts": memory(args, batch_size, accumulate=batch_size),
        }
        rows.append({"batch": batch_size, **row})
        plain, remat, parts = (found["rest"] / GIB for found in row.values())
        state = row["plain"]["state"] / GIB
        print(
            f"{batch_size:>5}{plain:>9.2f}{remat:>9.2f}{parts:>15.2f}{state:>9.2f}",
            flush=True,
        )
    harness.write_figures(args, {"bytes": rows})


def memory(
    args: argparse.Namespace,
    batch_size: int,
    *,
    remat: str = "none",
    accumulate: int = 1,
) -> dict[str, int]:
    """Return the bytes of the state, and the most that a step holds beside it."""
    model = FCN("fcn8s", width=args.width, dtype=jnp.dtype(args.dtype), remat=remat)
    tx = make_optimizer("sgd", lambda step: 1e-3)
    step = jax.jit(make_train_step(model, tx, accumulate=accumulate), donate_argnums=0)
    lowered = step.lower(*shapes(model, tx, batch_size, args.side))
    compiled = lowered.compile(OPTIONS.get(jax.default_backend()))
    found = compiled.memory_analysis()
    state = found.alias_size_in_bytes  # What the new state takes over.
    total = (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - state
    )
    return {"state": state, "rest": total - state}


def shapes(model: FCN, tx: Any, batch_size: int, side: int) -> tuple[Any, ...]:
    """Return the shapes and dtypes of what a step takes: state, batch and key."""
    batch = {
        "image": jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch_size, side, side), jnp.int32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(model.init, key, jnp.zeros((1, 32, 32, 3)))["params"]
    return jax.eval_shape(lambda p: init_state(p, tx), params), batch, key


if __name__ == "__main__":
    main()
