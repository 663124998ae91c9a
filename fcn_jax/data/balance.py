"""Weights of classes for the loss, so that rare ones count as well."""

import numpy as np

from fcn_jax.data.survey import Survey


def median_frequency(survey: Survey) -> np.ndarray:
    """Median frequency balancing.

    The frequency of a class is its share in the pixels of the images in which it
    occurs; its weight is the median of all frequencies over its own.

    Args:
        survey: of the training split.
    Returns:
        [C] float; 0 for classes that never occur.
    Raises:
        ValueError: if no class occurs.
    Reference: Eigen and Fergus, arXiv:1411.4734; SegNet, Badrinarayanan et al.,
        arXiv:1511.00561, uses it as well.
    """
    _require_classes(survey)
    occurs = survey.class_pixels > 0
    frequency = survey.class_pixels[occurs] / survey.class_image_pixels[occurs]
    weights = np.zeros(len(occurs))
    weights[occurs] = np.median(frequency) / frequency
    return weights


def inverse_log(survey: Survey) -> np.ndarray:
    """ENet's weights, 1 / ln(1.02 + share), bounded in [1.4, 50.5].

    Args:
        survey: of the training split.
    Returns:
        [C] float. The share is that of the pixels that are not void.
    Raises:
        ValueError: if no class occurs.
    Reference: Paszke et al., arXiv:1606.02147.
    """
    _require_classes(survey)
    return 1 / np.log(1.02 + survey.shares)


def _require_classes(survey: Survey) -> None:
    if not survey.class_pixels.any():
        raise ValueError("no class occurs in the split: there is nothing to balance")


# By their names in a config.
BALANCES = {"median_frequency": median_frequency, "inverse_log": inverse_log}
