"""The memory of a training step at 500x500, as the compiled step itself tells it.

    python benchmarks/memory.py --out memory.json

Compiles FCN-8s at full width with SGD for each batch size, with and without `remat` and
in parts (`accumulate`), and runs nothing. The figures are those of the default device:
parameters and momentum (the state, whose memory the new one takes over), and the rest.
On a CPU, XLA undoes `remat` unless a pass of its own is left out, as it is here.
"""

import argparse
import json
from typing import Any

import jax
import jax.numpy as jnp

from fcn_jax.models.fcn import FCN
from fcn_jax.training.optim import make_optimizer
from fcn_jax.training.steps import init_state, make_train_step

GIB = 2**30
OPTIONS = {"cpu": {"xla_disable_hlo_passes": "cse_barrier_expander"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=500)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--width", type=float, default=1.0, help="of the network")
    parser.add_argument("--out", help="JSON file of the figures")
    args = parser.parse_args()

    device = jax.devices()[0].device_kind
    print(f"GiB beside the state, {device}, {args.dtype}, {args.side}x{args.side}")
    print(f"{'batch':>5}{'plain':>9}{'remat':>9}{'in parts of 1':>15}{'state':>9}")
    rows = []
    for batch_size in args.batch_sizes:
        row = {
            "batch": batch_size,
            "plain": memory(args, batch_size),
            "remat": memory(args, batch_size, remat="blocks"),
            "parts": memory(args, batch_size, accumulate=batch_size),
        }
        rows.append(row)
        rest = [row[name]["rest"] / GIB for name in ("plain", "remat", "parts")]
        state = row["plain"]["state"] / GIB
        print(
            f"{batch_size:>5}{rest[0]:>9.2f}{rest[1]:>9.2f}{rest[2]:>15.2f}{state:>9.2f}",
            flush=True,
        )
    if args.out:
        figures = {"device": device, "arguments": vars(args), "bytes": rows}
        with open(args.out, "w") as file:
            json.dump(figures, file, indent=2)


def memory(
    args: argparse.Namespace,
    batch_size: int,
    *,
    remat: str = "none",
    accumulate: int = 1,
) -> dict[str, int]:
    """Bytes of the state, and of the most that a step holds besides."""
    model = FCN("fcn8s", width=args.width, dtype=jnp.dtype(args.dtype), remat=remat)
    tx = make_optimizer("sgd", lambda step: 1e-3)
    step = jax.jit(make_train_step(model, tx, accumulate=accumulate), donate_argnums=0)
    compiled = step.lower(*shapes(model, tx, batch_size, args.side)).compile(
        OPTIONS.get(jax.default_backend())
    )
    found = compiled.memory_analysis()
    state = found.alias_size_in_bytes  # What the new state takes over.
    total = (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - found.alias_size_in_bytes
    )
    return {"state": state, "rest": total - state}


def shapes(model: FCN, tx: Any, batch_size: int, side: int) -> tuple[Any, ...]:
    """What a step takes: state, batch and key, without a number in them."""
    image = jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.uint8)
    label = jax.ShapeDtypeStruct((batch_size, side, side), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(model.init, key, jnp.zeros((1, 32, 32, 3)))["params"]
    state = jax.eval_shape(lambda params: init_state(params, tx), params)
    return state, {"image": image, "label": label}, key


if __name__ == "__main__":
    main()
