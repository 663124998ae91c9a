"""Scores of a segmentation, all from one confusion matrix summed over every pixel.

``confusion[true, predicted]`` counts pixels. Matrices of several images add up; scores
of several images do not average.
"""

import numpy as np


def confusion_matrix(
    label: np.ndarray,
    prediction: np.ndarray,
    *,
    num_classes: int,
    ignore_label: int = 255,
) -> np.ndarray:
    """Counts the pixels of each true and predicted class; void pixels do not count.

    Args:
        label: [...] integers in [0, num_classes), or ``ignore_label``.
        prediction: [...] integers in [0, num_classes); anything where the label is
            void.
        num_classes: C.
        ignore_label: label of void pixels.
    Returns:
        [C, C] int64, ``confusion[true, predicted]``.
    Raises:
        ValueError: if the shapes differ, or values are no integers or out of range.
    """
    label, prediction = np.asarray(label), np.asarray(prediction)
    if label.shape != prediction.shape:
        raise ValueError(
            f"label {label.shape} and prediction {prediction.shape} must have one shape"
        )
    valid = label != ignore_label
    true = _checked("label", label[valid], num_classes)
    predicted = _checked("prediction", prediction[valid], num_classes)
    counts = np.bincount(num_classes * true + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of the pixels that are right.

    Args:
        confusion: [C, C] int64, ``confusion[true, predicted]`` in pixels.
    Returns:
        Pixel accuracy in [0, 1]; nan if there are no pixels.
    Raises:
        ValueError: if ``confusion`` is not square.
    Reference: Long et al., arXiv:1411.4038, section 5.
    """
    right, true, _ = _totals(confusion)
    return float(_ratio(right.sum(), true.sum()))


def mean_accuracy(confusion: np.ndarray) -> float:
    """Mean over the classes that occur of the share of their pixels that are right.

    Args:
        confusion: [C, C] int64, ``confusion[true, predicted]`` in pixels.
    Returns:
        Mean accuracy in [0, 1]; classes absent from the labels are skipped.
    Raises:
        ValueError: if ``confusion`` is not square.
    Reference: Long et al., arXiv:1411.4038, section 5.
    """
    right, true, _ = _totals(confusion)
    return _mean(_ratio(right, true))


def iu_per_class(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class.

    Args:
        confusion: [C, C] int64, ``confusion[true, predicted]`` in pixels.
    Returns:
        [C] float64 in [0, 1]; nan for classes absent from labels and predictions.
    Raises:
        ValueError: if ``confusion`` is not square.
    Reference: Long et al., arXiv:1411.4038, section 5.
    """
    right, true, predicted = _totals(confusion)
    return _ratio(right, true + predicted - right)


def mean_iu(confusion: np.ndarray) -> float:
    """Mean intersection over union of the classes that occur.

    Args:
        confusion: [C, C] int64, ``confusion[true, predicted]`` in pixels.
    Returns:
        Mean IU in [0, 1]; classes absent from labels and predictions are skipped.
    Raises:
        ValueError: if ``confusion`` is not square.
    Reference: Long et al., arXiv:1411.4038, section 5.
    """
    return _mean(iu_per_class(confusion))


def frequency_weighted_iu(confusion: np.ndarray) -> float:
    """Mean intersection over union, each class weighted by its true pixels.

    Args:
        confusion: [C, C] int64, ``confusion[true, predicted]`` in pixels.
    Returns:
        Frequency-weighted IU in [0, 1]; nan if there are no pixels.
    Raises:
        ValueError: if ``confusion`` is not square.
    Reference: Long et al., arXiv:1411.4038, section 5.
    """
    _, true, _ = _totals(confusion)
    return float(_ratio(np.nansum(true * iu_per_class(confusion)), true.sum()))


def summarize(confusion: np.ndarray) -> dict[str, float]:
    """The four scores of the paper by name, as plain floats.

    Args:
        confusion: [C, C] int64, ``confusion[true, predicted]`` in pixels.
    Raises:
        ValueError: if ``confusion`` is not square.
    """
    scores = (pixel_accuracy, mean_accuracy, mean_iu, frequency_weighted_iu)
    return {score.__name__: score(confusion) for score in scores}


def _checked(what: str, values: np.ndarray, num_classes: int) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{what} must hold integers, got {values.dtype}")
    bad = values[(values < 0) | (values >= num_classes)]
    if bad.size:
        raise ValueError(
            f"{what} value {bad[0]} is not in [0, {num_classes}) at a pixel that is "
            "not void: check num_classes and ignore_label"
        )
    return values.astype(np.int64)


def _totals(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of each class that are right, true and predicted, each [C]."""
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"confusion must be square, got {confusion.shape}")
    return np.diag(confusion), confusion.sum(1), confusion.sum(0)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, nan where ``whole`` is 0."""
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    """Mean of the values that are not nan; nan if there are none, without a warning."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
