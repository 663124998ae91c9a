"""Measure the time from a command to its first result, with its phases and its memory.

    python benchmarks/first_result.py --out first_result.json

The commands are `python -m fcn_jax predict`, of an FCN-8s with random weights on one
photograph, up to its end; and `python -m fcn_jax train`, of such a network on random
images, up to the end of the first step. Each figure is of a new process. It is "cold"
if no compiled program is there, and "warm" in the next process. The weights were just
written, so they are read from memory and not from the disk.

The process notes the time at the borders of the phases, and the parent notes the time
at its start and its end. "XLA" is the time that JAX reports for compiling, or for
fetching compiled programs. It is part of the phases: `predict` compiles in another
thread while the weights are read.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHASES = {
    "predict": ("imports", "weights", "labels", "write"),
    "train": ("imports", "first step"),
}
MARKS = "FIRST_RESULT_MARKS"  # The variable that names the file of the child's marks.


def main() -> None:
    args = arguments()
    import harness

    print(f"{harness.machine()}, {args.height}x{args.width_px}, width {args.width:g}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = {
            "predict": predict_command(args, folder),
            "train": train_command(args, folder),
        }
        found = {
            command: measure(command, words, folder, args.repeats)
            for command, words in commands.items()
        }
        size = (folder / "net.safetensors").stat().st_size
    for command, states in found.items():
        for state, row in states.items():
            seconds = ", ".join(f"{k} {v:.2f}" for k, v in row["seconds"].items())
            print(f"{command}, {state}: {seconds} s; peak {row['peak'] / 1e6:.0f} MB")
    harness.write_figures(args, {"commands": found, "bytes": size})


def arguments() -> argparse.Namespace:
    import harness

    parser = harness.make_parser(__doc__, width=1.0, repeats=5)
    parser.add_argument("--height", type=int, default=375, help="of the photo (375)")
    parser.add_argument("--width-px", type=int, default=500, help="its width (500)")
    parser.add_argument("--train-side", type=int, default=64, help="in training (64)")
    return parser.parse_args()


def predict_command(args: argparse.Namespace, folder: Path) -> list[Any]:
    """Write a network and a photograph; return the words of the command."""
    import harness
    import numpy as np
    from PIL import Image

    import fcn_jax

    net = harness.random_network(fcn_jax.FCN("fcn8s", width=args.width))
    fcn_jax.save(folder / "net.safetensors", net)
    shape = (args.height, args.width_px, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg")
    words = ["predict", "--weights", folder / "net.safetensors", folder / "photo.jpg"]
    return [*words, "--out", folder / "predictions"]


def train_command(args: argparse.Namespace, folder: Path) -> list[Any]:
    """Return the words of the command; it draws its own images."""
    side = args.train_side
    fields = {"model.width": args.width, "data.size": f"{side},{side}", "batch_size": 2}
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["train", "--config", "quickstart", *words, "--workdir", folder / "run"]


def measure(
    command: str, words: list[Any], folder: Path, repeats: int
) -> dict[str, dict[str, Any]]:
    """Return the medians of a command, cold and warm."""
    rows: dict[str, list[dict]] = {"cold": [], "warm": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            for found in rows.values():
                found.append(run_once(command, words, folder, cache))
    return {
        state: {
            "seconds": {
                phase: statistics.median(row["seconds"][phase] for row in found)
                for phase in found[0]["seconds"]
            },
            "all": [row["seconds"]["result"] for row in found],
            "peak": statistics.median(row["peak"] for row in found),
        }
        for state, found in rows.items()
    }


def run_once(
    command: str, words: list[Any], folder: Path, cache: str
) -> dict[str, Any]:
    """Run a command in a new process; return its seconds by phase and its memory."""
    marks, child = folder / "marks.json", [sys.executable, __file__, *map(str, words)]
    environment = os.environ | {
        MARKS: str(marks),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    shutil.rmtree(folder / "run", ignore_errors=True)
    start = time.time()
    process = subprocess.Popen(child, env=environment, stdout=subprocess.DEVNULL)
    failed, total = process.wait(), time.time() - start
    if failed:
        raise SystemExit(f"{command} failed")
    found = json.loads(marks.read_text(encoding="utf-8"))
    seconds, before = {}, start
    for phase in PHASES[command]:
        seconds[phase], before = found[phase] - before, found[phase]
    seconds |= {"result": before - start, "process": total, "XLA": found["XLA"]}
    return {"seconds": seconds, "peak": found["peak"]}


def child() -> None:
    """Run a command of fcn_jax in this process and write the marks of its phases."""
    from fcn_jax.__main__ import main as run
    from fcn_jax.files import keep_compiled_programs

    keep_compiled_programs()
    marks: dict[str, float] = {"XLA": 0.0}
    command = sys.argv[1]
    watch = {"predict": watch_prediction, "train": watch_training}[command]
    watch(marks)
    import jax

    def note(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            marks["XLA"] += seconds

    jax.monitoring.register_event_duration_secs_listener(note)
    marks["imports"] = time.time()
    status = run(sys.argv[1:])
    write_marks(marks)
    sys.exit(status)


def write_marks(marks: dict[str, float]) -> None:
    # The peak that the parent could ask for begins with the parent's own memory.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
    marks = marks | {"peak": peak}
    Path(os.environ[MARKS]).write_text(json.dumps(marks), encoding="utf-8")


def watch_prediction(marks: dict[str, float]) -> None:
    """Note when the weights are read, the labels are there, and all is written."""
    from fcn_jax.commands import predict
    from fcn_jax.inference import image_files

    def noting(function: Callable, *, before: str = "", after: str = "") -> Callable:
        def noted(*args: Any, **options: Any) -> Any:
            if before:
                marks[before] = time.time()
            result = function(*args, **options)
            if after:
                marks[after] = time.time()
            return result

        return noted

    image_files.save_labels = noting(image_files.save_labels, before="labels")
    predict.predict_files = noting(
        predict.predict_files, before="weights", after="write"
    )


def watch_training(marks: dict[str, float]) -> None:
    """Note when the first step is done, and end the process there."""
    import jax

    import fcn_jax.commands.train  # noqa: F401  for the time of its import
    from fcn_jax.parallel import Parallel

    make = Parallel.step

    def noting(self: Parallel, make_step: Callable) -> Callable:
        step = make(self, make_step)

        def noted(*args: Any) -> Any:
            jax.block_until_ready(step(*args))
            marks["first step"] = time.time()
            write_marks(marks)
            os._exit(0)

        return noted

    Parallel.step = noting


if __name__ == "__main__":
    child() if MARKS in os.environ else main()
