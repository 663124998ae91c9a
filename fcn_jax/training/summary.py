"""What a run takes, logged before its first step: operations, devices, disk."""

import logging
import math
import shutil
from pathlib import Path
from typing import Any

import jax

from fcn_jax.models.flops import flop_per_image
from fcn_jax.progress import size
from fcn_jax.training.checkpoint import FOLDER
from fcn_jax.training.config import Config, make_model
from fcn_jax.training.steps import TrainState
from fcn_jax.weights.load import RUN_FILE

_log = logging.getLogger("fcn_jax")


def describe_run(
    config: Config, state: TrainState, source: Any, devices: list[jax.Device]
) -> None:
    """Log the network, the data and the devices of a run.

    Args:
        config: the config, with its steps.
        state: the first state.
        source: the training images. The first one is read if all keep their sizes.
        devices: those of a step.
    """
    data = config.data
    sides = tuple(data.crop or data.size or source[0]["image"].shape[:2])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    flop = flop_per_image(make_model(config), sides) / 1e9
    epochs = config.steps * config.batch_size / len(source)
    kinds = sorted({device.device_kind for device in devices})
    for line in (
        f"{config.model.variant}: {parameters:,} parameters; {flop:.3g} GFLOP for an "
        f"image of {sides[0]}x{sides[1]}, about 3 times that to train on it",
        f"{config.steps} steps of {config.batch_size} images; passes over the "
        f"{len(source)} images: {epochs:.3g}; an evaluation every {config.eval_every} "
        "steps",
        f"{len(devices)} device{'s' * (len(devices) > 1)}: {', '.join(kinds)}",
    ):
        _log.info("%s", line)


def room_needed(config: Config, state: TrainState) -> tuple[int, int]:
    """Return the bytes that a run must have on the disk, and the most it may take.

    The first is one checkpoint and the network. The most is all checkpoints that are
    kept, and another copy of one and of the network while these are replaced.
    """
    one, network = _bytes(state), _bytes(state.params)
    evaluations = math.ceil(config.steps / config.eval_every)
    kept = min(config.keep_checkpoints + 2, evaluations)
    return one + network, kept * one + 2 * network


def check_room(config: Config, state: TrainState, workdir: Path) -> None:
    """Log the room that the checkpoints take, as a warning if it may not suffice.

    Raises:
        OSError: if not even one checkpoint fits on the disk.
    """
    least, most = room_needed(config, state)
    files = [workdir / RUN_FILE, *(workdir / FOLDER).glob("*")]
    there = sum(path.stat().st_size for path in files if path.is_file())
    free = shutil.disk_usage(workdir).free
    way_out = "free some, lower config.keep_checkpoints or choose another workdir"
    if free + there < least:
        raise OSError(
            f"a checkpoint and the network take {size(least)}, but {workdir} has only "
            f"{size(free)} free: {way_out}"
        )
    line = (
        f"checkpoints of {size(_bytes(state))} each; with the network the run takes up "
        f"to {size(most)} of the disk, which has {size(free)} free"
    )
    if free + there < most:
        _log.warning("%s. The disk may become full: %s", line, way_out)
    else:
        _log.info("%s", line)


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
