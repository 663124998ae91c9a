"""Its school: configuration, losses, optimisers, the step, checkpoints, the loop."""
