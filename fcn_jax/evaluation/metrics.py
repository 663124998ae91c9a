"""Scores of a segmentation, computed from one confusion matrix of all its pixels.

To score several images, add their matrices: a mean of their scores is something else.

Each score takes ``confusion``, [C, C] int64: ``confusion[true, predicted]`` counts
pixels. A score lies in [0, 1] and is nan if there are no pixels. It raises a ValueError
if the matrix is not square.

Reference: Long et al., arXiv:1411.4038, section 5.
"""

import numpy as np

from fcn_jax.data.labels import VOID, check_num_classes


def confusion_matrix(
    label: np.ndarray, prediction: np.ndarray, *, num_classes: int
) -> np.ndarray:
    """Count the pixels of each pair of a true and a predicted class.

    Args:
        label: [...] integers in [0, num_classes), or `VOID` (255) for pixels that do
            not count.
        prediction: [...] integers in [0, num_classes), and any integers where the label
            is void.
        num_classes: C, at most 255.

    Returns:
        [C, C] int64, ``confusion[true, predicted]``.

    Raises:
        ValueError: if ``num_classes`` is above 255, the shapes differ, or values are
            not integers or out of range.
    """
    check_num_classes(num_classes)
    label, prediction = np.asarray(label), np.asarray(prediction)
    if label.shape != prediction.shape:
        raise ValueError(
            f"label {label.shape} and prediction {prediction.shape} must have the same "
            "shape"
        )
    valid = label != VOID
    true = _checked("label", label[valid], num_classes)
    predicted = _checked("prediction", prediction[valid], num_classes)
    counts = np.bincount(num_classes * true + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Return the share of the pixels that are right; nan if there are no pixels."""
    right, true, _ = _totals(confusion)
    return float(_ratio(right.sum(), true.sum()))


def mean_accuracy(confusion: np.ndarray) -> float:
    """Return the mean share of right pixels over the classes among the labels."""
    right, true, _ = _totals(confusion)
    return _mean(_ratio(right, true))


def iu_per_class(confusion: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each class, [C] float64.

    It is nan for a class that occurs neither in the labels nor in the predictions.
    """
    right, true, predicted = _totals(confusion)
    return _ratio(right, true + predicted - right)


def mean_iu(confusion: np.ndarray) -> float:
    """Return the mean of `iu_per_class` over the classes that are not nan."""
    return _mean(iu_per_class(confusion))


def frequency_weighted_iu(confusion: np.ndarray) -> float:
    """Return the mean of `iu_per_class`, weighted by the true pixels of each class."""
    _, true, _ = _totals(confusion)
    return float(_ratio(np.nansum(true * iu_per_class(confusion)), true.sum()))


def summarize(confusion: np.ndarray) -> dict[str, float]:
    """Return the four scores of the paper by name, as plain floats."""
    scores = (pixel_accuracy, mean_accuracy, mean_iu, frequency_weighted_iu)
    return {score.__name__: score(confusion) for score in scores}


def _checked(name: str, values: np.ndarray, num_classes: int) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} must hold integers, got {values.dtype}")
    bad = values[(values < 0) | (values >= num_classes)]
    if bad.size:
        raise ValueError(
            f"{name} value {bad[0]} is not in [0, {num_classes}) at a pixel that is "
            f"not void ({VOID})"
        )
    return values.astype(np.int64)


def _totals(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the right, true and predicted pixels of each class, each [C]."""
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"confusion must be square, got {confusion.shape}")
    return np.diag(confusion), confusion.sum(1), confusion.sum(0)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide, with nan where ``whole`` is 0."""
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not nan, or nan if all are."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
