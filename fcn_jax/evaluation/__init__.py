"""Scores: the confusion matrix and what follows from it, over a whole split."""

from fcn_jax.evaluation import metrics as metrics
