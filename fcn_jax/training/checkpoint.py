"""Checkpoints of the training state, whole or absent."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from fcn_jax.parallel import global_state
from fcn_jax.training.steps import TrainState


class Checkpoints:
    """The latest checkpoints of a run and its best by mean IU, through Orbax.

    All processes of a run make one and call the same methods at the same steps.

    Args:
        directory: where they lie; made at the first save.
        keep: how many of the latest are kept, the best besides.
    """

    def __init__(self, directory: Path, *, keep: int):
        policies = [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(
                get_metric_fn=lambda metrics: metrics["mean_iu"],
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies)
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts to save a state; it counts once all of it is written.

        Args:
            state: copied before this returns, so it may be donated afterwards.
            metrics: of its evaluation, with "mean_iu"; None if it had none.
        """
        step = int(state.step)
        if step not in self._manager.all_steps():
            args = ocp.args.StandardSave(global_state(state)._asdict())
            self._manager.save(step, args=args, metrics=metrics)

    def restore(self, state: TrainState) -> TrainState:
        """The latest checkpoint, as numpy arrays, whatever devices it was saved from.

        Args:
            state: tells structure, shapes and dtypes, as `jax.eval_shape` gives them.
        """
        arrays = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), state)
        args = ocp.args.StandardRestore(arrays._asdict())
        return TrainState(**self._manager.restore(self.latest_step(), args=args))

    def close(self) -> None:
        """Waits until all is written."""
        self._manager.close()
