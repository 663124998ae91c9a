"""Trained networks at work on images of any size."""
