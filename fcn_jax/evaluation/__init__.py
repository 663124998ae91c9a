"""Scores: the confusion matrix and what follows from it, over a whole split."""
