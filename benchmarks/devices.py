"""Show how prediction and a training step are divided over devices of one process.

    python benchmarks/devices.py --out devices.json

Compiles both for one batch on 1, 2, 4 and 8 virtual devices of the CPU, as predict,
evaluate and train.py place it, and prints what each device computes of it: operations
and memory as the compiled programs state them, and the collectives. Virtual devices
share the cores, so nothing is timed.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import argparse
import functools
from typing import Any
from unittest import mock

import harness
import jax
import jax.numpy as jnp
from collectives import find_collectives

from fcn_jax import FCN, Network
from fcn_jax.inference.programs import labels_of
from fcn_jax.parallel import make_parallel, prediction_shardings
from fcn_jax.training.optim import make_optimizer
from fcn_jax.training.steps import init_state, make_train_step

DEVICES = 1, 2, 4, 8
MIB = 2**20
TX = make_optimizer("sgd", lambda step: 1e-3)


def main() -> None:
    parser = harness.make_parser(__doc__, side=128, batch_size=8, width=1 / 4)
    args = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    print(f"a batch of {args.batch_size} images of {args.side}x{args.side}, per device")
    print(f"{'':<12}{'devices':>8}{'images':>8}{'GFLOP':>8}{'share':>8}", end="")
    print(f"{'MiB of temporaries':>22}{'collectives':>13}")
    for name, compile_for in (("prediction", prediction), ("step", training)):
        rows = found[name] = []
        for count in DEVICES:
            with devices(count):
                row = figures(compile_for(args))
            rows.append({"devices": count, **row})
            print(
                f"{name:<12}{count:>8}{args.batch_size / count:>8g}"
                f"{row['flops'] / 1e9:>8.2f}{row['flops'] / rows[0]['flops']:>8.3f}"
                f"{row['rest'] / MIB:>22.1f}{row['collectives']:>13}",
                flush=True,
            )
    harness.write_figures(args, found)


def devices(count: int) -> Any:
    """Let fcn_jax see only the first devices."""
    chosen = jax.local_devices()[:count]
    return mock.patch.multiple(
        "fcn_jax.parallel",
        all_devices=lambda: chosen,
        prediction_devices=lambda: chosen,
    )


def prediction(args: argparse.Namespace) -> Any:
    model = FCN("fcn8s", width=args.width)
    whole, split = prediction_shardings(args.batch_size)
    net = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
        Network(harness.parameter_shapes(model), model),
    )
    image = args.batch_size, args.side, args.side, 3
    image = jax.ShapeDtypeStruct(image, jnp.uint8, sharding=split)
    return labels_of.lower(net, image).compile()


def training(args: argparse.Namespace) -> Any:
    model = FCN("fcn8s", width=args.width)
    parallel = make_parallel("sharded", batch_size=args.batch_size)
    sides = args.batch_size, args.side, args.side
    batch = {
        "image": jax.ShapeDtypeStruct((*sides, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct(sides, jnp.int32),
    }
    state = jax.eval_shape(
        lambda params: init_state(params, TX), harness.parameter_shapes(model)
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = parallel.step(functools.partial(make_train_step, model, TX))
    return step.lower(state, batch, key).compile()


def figures(program: Any) -> dict[str, float]:
    memory = program.memory_analysis()
    return {
        "flops": program.cost_analysis()["flops"],
        "rest": memory.temp_size_in_bytes,
        "collectives": len(find_collectives(program.as_text())),
    }


if __name__ == "__main__":
    main()
