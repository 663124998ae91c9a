"""Compile the train step and the prediction for TPUs, without a TPU.

    pip install -e '.[tpu]'
    python benchmarks/topologies.py --out topologies.json

FCN-8s with AdamW in bfloat16, as train.py and predict run it, for each topology. libtpu
compiles for the chips on any machine, in about two minutes a program at full width on
two cores. `--cases plain` compiles less, and so does a `--width` below 1.

Each row states what the compiled program tells of one chip:
- GiB: arguments, temporaries and outputs, less the outputs in the place of arguments.
- most images: the largest batch a chip that fits. This is an estimate: a straight line
  through two batch sizes, drawn once for each case and kind of chip.
- TFLOP and GB: the operations and the bytes accessed of a step, as XLA counts them. It
  counts bytes that stay on the chip too, and the body of a loop once. So both are left
  out for micro-batches, and with sizes the crops of all images but one are missing.
- collectives: their number in a step, and the MB of their operands.
- ms: the time of a step on a roofline of the published peak figures. It is a model,
  not a measurement: nothing here has run on a TPU.

It checks these properties, and exits with an error if one does not hold:
- A step sums each gradient over the chips once, outside of loops. It sums all of them
  in one to three all-reduces: XLA may leave fc6 and fc7, most of the values, to
  themselves. In mode "zero1" each large kernel has its own.
- Nothing is gathered. In mode "zero1" each chip updates a part of the parameters, so
  the new parameters are gathered, once.
- The memory a chip of the plain step is the same on any number of chips above one.
- A prediction needs no collectives.
- The convolutions are those for accelerators, not the matrix products for a CPU.
"""

import os

# For jax and libtpu, which otherwise look for a TPU and ask a server what it is.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import argparse
import functools
import importlib.metadata
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np
from collectives import Collective, find_collectives
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fcn_jax import FCN, Network
from fcn_jax.inference.programs import labels_of
from fcn_jax.parallel import AXIS, Parallel
from fcn_jax.training.optim import make_optimizer
from fcn_jax.training.steps import init_state, make_train_step

GIB = 2**30
TX = make_optimizer("adamw", lambda step: 5e-5)
TOPOLOGIES = [f"{kind}:{n}x{n}" for kind in ("v5e", "v6e") for n in (1, 2, 4, 16)]
# The all-reduces of the loss, of counts and of random bits have a few values, far less
# than this share of the parameters.
GRADIENT_SHARE = 0.01
MOST_SUMS = 3  # All-reduces of gradients in a step.
MEMORY_SPREAD = 1.05  # Highest by lowest memory a chip, over numbers of chips.


class Chip(NamedTuple):
    """Peak figures of a chip.

    Attributes:
        flops: bfloat16 operations a second.
        bandwidth: bytes a second from and to the HBM.
        link_bandwidth: bytes a second that all links of a chip send.
        memory: bytes of HBM that libtpu gives to a program.
    """

    flops: float
    bandwidth: float
    link_bandwidth: float
    memory: float


# https://docs.cloud.google.com/tpu/docs/v5e and .../v6e, read in November 2026. The
# links' figures there, 400 and 800 GB/s, are for both directions together. Of the 16
# and 32 GB, libtpu leaves these GiB: its error for a larger program states them.
CHIPS = {
    "v5e": Chip(197e12, 819e9, 200e9, 15.75 * GIB),
    "v6e": Chip(918e12, 1638e9, 400e9, 31.25 * GIB),
}


class Case(NamedTuple):
    """Describe a program: a train step, or a prediction.

    Attributes:
        mode: mode of `Parallel`; "" for a prediction.
        size: whether the batch has the true sizes of its images.
        remat: as for `FCN`.
        accumulate: as for `make_train_step`.
    """

    mode: str = "sharded"
    size: bool = False
    remat: str = "none"
    accumulate: int = 1


CASES = {
    "plain": Case(),
    "size": Case(size=True),
    "remat": Case(remat="blocks"),
    "accumulate": Case(accumulate=2),
    "zero1": Case(mode="zero1"),
    "predict": Case(mode="", size=True),
}


def main() -> None:
    args = parse_args()
    libtpu = importlib.metadata.version("libtpu")
    print(
        f"Compiled by libtpu {libtpu}, bfloat16, {args.per_chip[0]} images of "
        f"{args.side}x{args.side} a chip; figures of one chip. ms is a model."
    )
    print(
        f"{'topology':<11}{'case':<11}{'GiB':>6}{'most images':>13}{'TFLOP':>10}"
        f"{'GB':>8}{'collectives':>13}{'MB':>7}{'ms':>8}{'compiled in':>13}",
        flush=True,
    )
    rows, slopes, failures = [], {}, []
    for topology in args.topologies:
        mesh = make_mesh(topology)
        for name in args.cases:
            chip = chip_of(topology)
            row = {"topology": topology, "case": name, "chip": chip, "chips": mesh.size}
            row |= compile_case(args, name, mesh, topology)
            rows.append(row)
            if (chip, name) not in slopes and "memory" in row:
                slopes[chip, name] = memory_slope(args, name, mesh, row["memory"])
            row["most images"] = most_images(args, row, slopes.get((chip, name)))
            print_row(row)
            for failure in row["failures"]:
                print(f"FAILED: {failure}", flush=True)
            failures += row["failures"]
            # Of a long run, what is known remains if it is cut short.
            harness.write_figures(args, {"libtpu": libtpu, "programs": rows})
    failures += check_memory(rows)
    if failures:
        raise SystemExit("\n".join(["These checks failed:", *failures]))
    print("All checks passed.")


def parse_args() -> argparse.Namespace:
    parser = harness.make_parser(__doc__, side=512, width=1.0)
    add = functools.partial(parser.add_argument, nargs="+")
    add("--topologies", default=TOPOLOGIES, help="such as v5e:2x2 (all known)")
    add("--cases", default=list(CASES), choices=CASES, help="programs to compile (all)")
    add(
        "--per-chip",
        type=int,
        default=[4, 2],
        help="images a chip; with a second number, the largest batch is estimated",
    )
    parser.add_argument("--hlo", help="folder for the optimised HLO texts")
    args = parser.parse_args()
    for topology in args.topologies:
        if chip_of(topology) not in CHIPS:
            parser.error(f"{topology} is not a topology of {', '.join(CHIPS)}")
    parts = max(CASES[name].accumulate for name in args.cases)
    if len(set(args.per_chip)) > 2 or any(n % parts for n in args.per_chip):
        parser.error(f"--per-chip takes one or two multiples of {parts}")
    return args


def chip_of(topology: str) -> str:
    """Return the kind of the chips of a topology: "v5e" of "v5e:2x2"."""
    return topology.partition(":")[0]


def make_mesh(topology: str) -> Mesh:
    """Return a mesh of all chips of a topology, such as "v5e:2x2"."""
    sides = map(int, topology.partition(":")[2].split("x"))
    bounds = *(min(side, 2) for side in sides), 1  # Chips of a host, at most 2x2.
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, chips_per_host_bounds=bounds
    ).devices
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def compile_case(
    args: argparse.Namespace, name: str, mesh: Mesh, topology: str
) -> dict[str, Any]:
    """Compile a program; return its figures and the checks that fail."""
    case, chip = CASES[name], CHIPS[chip_of(topology)]
    model = make_model(args, case)
    lowered = lower(args, case, model, mesh, args.per_chip[0])
    start = time.perf_counter()
    compiled = compile_or_none(lowered)
    row = {"compile seconds": time.perf_counter() - start}
    if compiled is None:
        return row | {"failures": [f"{topology} {name}: does not fit into the HBM"]}
    hlo = compiled.as_text()
    if args.hlo:
        file = Path(args.hlo) / f"{topology.replace(':', '_')}_{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(hlo, "utf-8")
    found = find_collectives(hlo)
    params = harness.parameter_shapes(model)
    failures = check_branch(lowered.as_text(), case, params)
    failures += check_collectives(found, case, params, mesh.size)
    row |= {
        "memory": memory(compiled),
        "collectives": [each._asdict() for each in found],
        "failures": [f"{topology} {name}: {failure}" for failure in failures],
    }
    if case.accumulate == 1:
        costs = compiled.cost_analysis()
        row |= {"flops": costs["flops"], "bytes accessed": costs["bytes accessed"]}
        row["model seconds"] = roofline(row, found, chip, mesh.size)
    return row


def compile_or_none(lowered: Any) -> Any:
    """Return a compiled program, or None if it does not fit into the HBM."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def make_model(args: argparse.Namespace, case: Case) -> FCN:
    options = {"dtype": jnp.bfloat16, "remat": case.remat}
    return FCN("fcn8s", width=args.width, pool_scales=(0.01, 0.001), **options)


def lower(
    args: argparse.Namespace, case: Case, model: FCN, mesh: Mesh, per_chip: int
) -> Any:
    """Return the program of a case, lowered for the chips of a mesh."""
    batch_size = per_chip * mesh.size
    whole, split = (NamedSharding(mesh, spec) for spec in (P(), P(AXIS)))

    def inputs(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=split)

    def placed(x: jax.ShapeDtypeStruct, held: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=held)

    batch = {"image": inputs(args.side, args.side, 3, dtype=jnp.uint8)}
    if case.size:
        batch["size"] = inputs(2)
    params = harness.parameter_shapes(model)
    if not case.mode:
        params = jax.tree.map(lambda x: placed(x, whole), params)
        traced = labels_of.trace(Network(params, model), *batch.values())
    else:
        batch["label"] = inputs(args.side, args.side)
        parallel = Parallel(case.mode, batch_size, mesh)
        step = parallel.step(
            functools.partial(make_train_step, model, TX, accumulate=case.accumulate)
        )
        state = jax.eval_shape(lambda params: init_state(params, TX), params)
        state = jax.tree.map(placed, state, parallel.shardings(state))
        key = jax.eval_shape(lambda: jax.random.key(0))
        traced = step.trace(state, batch, key)
    return traced.lower(lowering_platforms=("tpu",))


def memory(compiled: Any) -> int:
    """Return the bytes of HBM that a program takes on each chip."""
    found = compiled.memory_analysis()
    return (
        found.argument_size_in_bytes
        + found.temp_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
    )


def memory_slope(
    args: argparse.Namespace, name: str, mesh: Mesh, first: int
) -> float | None:
    """Return the bytes for each further image, or None if that cannot be told."""
    images, *other = args.per_chip
    if not other or other == [images]:
        return None
    case = CASES[name]
    compiled = compile_or_none(
        lower(args, case, make_model(args, case), mesh, other[0])
    )
    if compiled is None:
        return None
    slope = (first - memory(compiled)) / (images - other[0])
    return slope if slope > 0 else None


def most_images(
    args: argparse.Namespace, row: dict[str, Any], slope: float | None
) -> int | None:
    """Return the estimate of the largest batch a chip that fits into the HBM."""
    if slope is None or "memory" not in row:
        return None
    parts = CASES[row["case"]].accumulate
    images = args.per_chip[0] + (CHIPS[row["chip"]].memory - row["memory"]) / slope
    return max(0, int(images // parts) * parts)


def roofline(
    row: dict[str, Any], found: list[Collective], chip: Chip, chips: int
) -> dict[str, float]:
    """Return the seconds of a step by a model of its peaks.

    The operations and the traffic to the HBM overlap fully. The collectives do not
    overlap with them: the all-reduce needs all gradients, and the optimiser needs it.
    """
    sent = sum(bytes_sent(each, chips) for each in found)
    seconds = {
        "operations": row["flops"] / chip.flops,
        "memory": row["bytes accessed"] / chip.bandwidth,
        "links": sent / chip.link_bandwidth,
    }
    longest = max(seconds["operations"], seconds["memory"])
    return seconds | {"step": longest + seconds["links"]}


def bytes_sent(collective: Collective, chips: int) -> float:
    """Return the bytes that each chip sends in a ring, the fewest possible."""
    share = (chips - 1) / chips
    rounds = {"all-reduce": 2 * share, "all-gather": chips - 1, "collective-permute": 1}
    return rounds.get(collective.kind, share) * collective.bytes


def check_branch(stablehlo: str, case: Case, params: Any) -> list[str]:
    """Return what is wrong with the convolutions of a lowered program.

    Each layer convolves once in a prediction. A step adds the gradient of each kernel,
    and that of each input but the image. For a CPU some of these are matrix products.
    """
    layers = sum(x.ndim == 4 for x in jax.tree.leaves(params))
    least = 3 * layers - 1 if case.mode else layers
    found = stablehlo.count("stablehlo.convolution")
    if found >= least:
        return []
    return [f"{found} convolutions instead of {least}: the program is that for a CPU"]


def check_collectives(
    found: list[Collective], case: Case, params: Any, chips: int
) -> list[str]:
    """Return what is wrong with the collectives of a program."""
    total = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    if not case.mode or chips == 1:
        return [f"{len(found)} collectives instead of none"] if found else []
    failures = []
    sums = [x for x in found if x.kind in ("all-reduce", "reduce-scatter")]
    gradients = [x for x in sums if x.values > GRADIENT_SHARE * total]
    if case.mode != "zero1" and not 1 <= len(gradients) <= MOST_SUMS:
        failures.append(
            f"{len(gradients)} all-reduces of gradients instead of 1 to {MOST_SUMS}"
        )
    values = sum(x.values for x in sums)
    if not total <= values <= (1 + GRADIENT_SHARE) * total:
        failures.append(f"{values} values are summed instead of {total} gradients")
    if any(x.in_loop for x in gradients):
        failures.append("the gradients are summed over chips in a loop")
    gathered = sum(x.values * chips for x in found if x.kind == "all-gather")
    most = total if case.mode == "zero1" else 0
    if gathered > most:
        failures.append(f"{gathered} values are gathered instead of at most {most}")
    return failures


def check_memory(rows: list[dict[str, Any]]) -> list[str]:
    """Return the kinds of chips whose plain step needs more memory on more chips."""
    failures = []
    for kind in CHIPS:
        found = [
            row["memory"]
            for row in rows
            if row["chip"] == kind and row["case"] == "plain"
            # On one chip nothing is summed, and no memory is needed for that.
            if row["chips"] > 1 and "memory" in row
        ]
        if found and max(found) > MEMORY_SPREAD * min(found):
            gib = ", ".join(f"{n / GIB:.2f}" for n in found)
            failures.append(f"{kind}: the plain step takes {gib} GiB a chip")
    return failures


def print_row(row: dict[str, Any]) -> None:
    """Print a row of the table; "-" stands for what is not known."""

    def shown(value: float | None, form: str, unit: float = 1) -> str:
        return "-" if value is None else format(value / unit, form)

    found = row.get("collectives", [])
    step = row.get("model seconds", {}).get("step")
    print(
        f"{row['topology']:<11}{row['case']:<11}"
        f"{shown(row.get('memory'), '.2f', GIB):>6}"
        f"{shown(row['most images'], ',.0f'):>13}"
        f"{shown(row.get('flops'), '.3g', 1e12):>10}"
        f"{shown(row.get('bytes accessed'), '.3g', 1e9):>8}"
        f"{len(found):>13}{sum(x['bytes'] for x in found) / 1e6:>7.3g}"
        f"{shown(step, '.3g', 1e-3):>8}{row['compile seconds']:>11.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
