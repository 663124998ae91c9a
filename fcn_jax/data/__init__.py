"""Labelled images: where they come from, how they are varied and batched."""
