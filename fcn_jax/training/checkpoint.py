"""Checkpoints of the training state."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fcn_jax.parallel import global_state
from fcn_jax.training.steps import TrainState


class Checkpoints:
    """Keep the latest checkpoints of a run and that of its best network, with Orbax.

    All processes of a run make one and call the same methods at the same steps.

    Args:
        directory: folder of the checkpoints, created at the first save.
        keep: number of latest checkpoints to keep.
        best_step: step of the best network so far, whose checkpoint is kept, too.
    """

    def __init__(self, directory: Path, *, keep: int, best_step: int | None = None):
        self._keep, self._best_step = keep, best_step
        # Orbax's own policy for the best forgets the scores when it is reopened.
        options = ocp.CheckpointManagerOptions(preservation_policy=self)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any = None
    ) -> Sequence[bool]:
        """Tell Orbax which checkpoints to keep, oldest first."""
        latest = [c.step for c in checkpoints[-self._keep :]]
        return [c.step in latest or c.step == self._best_step for c in checkpoints]

    def latest_step(self) -> int | None:
        """Return the step of the latest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, *, best: bool = False) -> None:
        """Start to save a state. An interrupted save leaves no checkpoint.

        Args:
            state: the state; it is copied first, so the caller may donate it then.
            best: whether its network is the best so far.
        """
        step = int(state.step)
        if best:
            self._best_step = step
        if step not in self._manager.all_steps():
            args = ocp.args.StandardSave(global_state(state)._asdict())
            self._manager.save(step, args=args)

    def restore(self, state: TrainState) -> TrainState:
        """Return the latest checkpoint as numpy arrays, for any number of devices.

        Args:
            state: structure, shapes and dtypes, as `jax.eval_shape` returns them.
        """
        arrays = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), state)
        args = ocp.args.StandardRestore(arrays._asdict())
        return TrainState(**self._manager.restore(self.latest_step(), args=args))

    def close(self) -> None:
        """Wait until all checkpoints are written."""
        self._manager.close()
