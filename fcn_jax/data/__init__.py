"""Data: sources of labelled images, their augmentation, batches and surveys."""
