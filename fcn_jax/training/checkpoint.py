"""Checkpoints of a run: one safetensors file for each, with its digest."""

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fcn_jax.files import reading, writing
from fcn_jax.training.steps import TrainState
from fcn_jax.weights import tensors

FOLDER = "checkpoints"  # In a run directory.
_FORMAT, _VERSION = "fcn_jax checkpoint", "1"

_log = logging.getLogger("fcn_jax")


class Checkpoint(NamedTuple):
    """What a run needs to go on as if it had never stopped.

    Attributes:
        arrays: the training state, by paths such as "params/body/fc6/kernel".
        config: the config of the run, as JSON has it.
        best: the figures of the best network so far, with its "step", or None.
        progress: what `Meter.progress` returns.
        log: the digest of ``log.jsonl`` up to here, by `digest_of`.
    """

    arrays: dict[str, np.ndarray]
    config: dict[str, Any]
    best: dict[str, Any] | None
    progress: dict[str, Any]
    log: str

    @property
    def step(self) -> int:
        """The number of steps that the run had taken."""
        return int(self.arrays["step"])

    def state(self, like: TrainState) -> TrainState:
        """Return the training state.

        Args:
            like: its structure, shapes and dtypes, as `jax.eval_shape` returns them.

        Raises:
            ValueError: if the arrays are others.
        """
        wanted = _named(like)
        kinds = {name: (leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
        if kinds != {name: (a.shape, a.dtype) for name, a in self.arrays.items()}:
            raise ValueError(
                f"the checkpoint of step {self.step} holds other arrays than the "
                "config of the run describes: another version of fcn_jax or optax "
                "wrote it; use that version"
            )
        leaves = [self.arrays[name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


class Checkpoints:
    """Keep the latest checkpoints of a run and that of its best network.

    Args:
        directory: folder of the checkpoints, created at the first save.
        keep: number of latest checkpoints to keep.
    """

    def __init__(self, directory: Path, *, keep: int):
        self._directory, self._keep = directory, keep

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, or None if there is none at all.

        The log names those that are damaged.

        Raises:
            ValueError: if all are damaged, or an older version wrote them.
            OSError: if one cannot be read.
        """
        problems = []
        for step in reversed(self.steps()):
            try:
                found = self.read(step)
            except ValueError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                _log.warning("%s; going on from step %d", problem, step)
            return found
        if problems:
            raise ValueError(
                "\n".join(problems) + "\nNo checkpoint is whole: restore one from a "
                "copy, or choose another workdir for a new run"
            )
        if any(name.isdecimal() for name in self._names()):
            raise ValueError(
                f"{self._directory} holds checkpoints of an older version of fcn_jax: "
                "finish the run with that version, or start a new one from its network "
                f"(config.init_from = {str(self._directory.parent)!r})"
            )
        return None

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints in order, without reading them."""
        matches = (re.fullmatch(r"(\d+)\.safetensors", n) for n in self._names())
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        """Return the file of a checkpoint."""
        return self._directory / f"{step}.safetensors"

    def read(self, step: int) -> Checkpoint:
        """Return the checkpoint of a step.

        Raises:
            ValueError: if it is damaged, or another version wrote it.
            OSError: if it cannot be read.
        """
        path = self.path(step)
        with reading(path):
            metadata = tensors.read_metadata(path)
            written = metadata.get("format"), metadata.get("version")
            if written != (_FORMAT, _VERSION):
                raise ValueError(f"{path} is damaged or of another version: {written}")
            arrays, metadata = tensors.read(path, checked=True)
        fields = Checkpoint._fields[1:]
        return Checkpoint(arrays, *(json.loads(metadata[name]) for name in fields))

    def save(self, state: TrainState, **fields: Any) -> None:
        """Write a checkpoint whole or not at all, then remove those not kept.

        Args:
            state: the state, on one device.
            fields: the other attributes of `Checkpoint`.

        Raises:
            WriteError: if it cannot be written. Earlier checkpoints are kept.
        """
        arrays = {name: np.asarray(leaf) for name, leaf in _named(state).items()}
        step = int(arrays["step"])
        metadata = {name: json.dumps(fields[name]) for name in Checkpoint._fields[1:]}
        metadata = {"format": _FORMAT, "version": _VERSION, **metadata}
        with writing(self._directory):
            # Not its parents: a run that was deleted must not come back in part.
            self._directory.mkdir(exist_ok=True)
        tensors.write(self.path(step), arrays, metadata)
        self.remove_old(step, fields["best"])

    def remove_old(self, step: int, best: Mapping[str, Any] | None) -> None:
        """Remove the checkpoints that are not kept once that of a step is the newest.

        Later ones are removed, too: the run went back to an older state than theirs.
        """
        steps = self.steps()
        keep = {*[s for s in steps if s <= step][-self._keep :], best and best["step"]}
        for old in set(steps) - keep:
            self.path(old).unlink(missing_ok=True)

    def _names(self) -> list[str]:
        # Path.glob would find nothing in a folder that may not be read.
        try:
            return os.listdir(self._directory)
        except FileNotFoundError:
            return []
        except NotADirectoryError as error:
            raise OSError(
                f"{self._directory} is not a folder: move it away, so that checkpoints "
                "can be written there"
            ) from error


def _named(state: TrainState) -> dict[str, Any]:
    """Return the leaves of a state by their paths."""
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}
