"""A readable report of a weight file."""

from pathlib import Path

import numpy as np

from fcn_jax.data.shorten import printable, shorten
from fcn_jax.models.fcn import FCN
from fcn_jax.weights.layers import WeightFile, network_of


def describe(path: str | Path, content: WeightFile) -> str:
    """Return lines about a file: its network, its mean and statistics of its layers.

    Args:
        path: the file.
        content: its content, as `fcn_jax.weights.load.read_file` returns it. Kernels
            are H, W, I, O for RGB, whatever the layout of the file.

    Raises:
        ValueError: if the layers do not form a network; names ``path``.
    """
    model = network_of(path, content)
    lines = [
        str(path),
        _network_line(content, model),
        f"from {content.source}; below as RGB, H, W, I, O",
        *_input_lines(content, model),
        "",
        f"{'layer':<14}{'array':<8}{'shape':<18}{'type':<9}"
        + "".join(f"{name:>11}" for name in ("min", "mean", "std", "max")),
    ]
    for name, arrays in content.layers.items():
        lines += [_row(name, part, array) for part, array in arrays.items()]
    arrays = [array for layer in content.layers.values() for array in layer.values()]
    lines += ["", f"{sum(array.size for array in arrays):,} numbers"]
    if content.unused:
        lines.append("not used: " + ", ".join(shorten(content.unused, 100)))
    return "\n".join(map(printable, lines))


def _network_line(content: WeightFile, model: FCN | None) -> str:
    layers = content.layers
    if model:
        scales = " and ".join(f"{scale:g}" for scale in model.pool_scales)
        return (
            f"{model.variant}, {model.num_classes} classes, geometry "
            f"{model.geometry}, width {model.width:g}, pool scales {scales}, "
            + ("learned" if model.learn_upsampling else "bilinear")
            + " upsampling"
        )
    if "bias" in layers.get("fc8", ()):
        return f"VGG-16 classifier, {layers['fc8']['bias'].size} classes"
    return "VGG-16" + ("" if "fc6" in layers else " without fully connected layers")


def _input_lines(content: WeightFile, model: FCN | None) -> list[str]:
    """Return lines about the input channels, their mean and their scale."""
    mean, scale = (model.mean, model.scale) if model else (content.mean_rgb, ())
    rgb = " RGB" if len(mean) == 3 else ""
    lines = [f"subtracts the mean{rgb} {_joined(mean)}"]
    if not rgb:
        names = ": " + ", ".join(content.channels) if content.channels else ""
        lines.insert(0, f"{len(mean)} input channels{names}")
    if scale:
        lines.append(f"multiplies by the scale {_joined(scale)}")
    return lines


def _joined(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _row(name: str, part: str, array: np.ndarray) -> str:
    """Return a line about an array, without statistics if the array is empty."""
    shape = "x".join(map(str, array.shape))
    numbers = ""
    if array.size:
        numbers = "".join(f"{value:11.4g}" for value in _statistics(array))
    return f"{name:<14}{part:<8}{shape:<18}{array.dtype.name:<9}{numbers}"


def _statistics(array: np.ndarray) -> tuple[float, float, float, float]:
    """Return the least, the mean, the standard deviation and the largest number."""
    with np.errstate(invalid="ignore", over="ignore"):  # They show as NaN and infinity.
        low, high, total = np.inf, -np.inf, 0.0
        for part in _parts(array):
            low, high = np.minimum(low, part.min()), np.maximum(high, part.max())
            total += part.sum(dtype=np.float64)
        mean = total / array.size
        squares = sum(np.square(part - mean).sum() for part in _parts(array))
        return low, mean, np.sqrt(squares / array.size), high


def _parts(array: np.ndarray) -> np.nditer:
    """Return an iterator over the numbers as float32, a few at a time."""
    flags = ["external_loop", "buffered"]
    return np.nditer(
        array, flags, op_dtypes=np.float32, casting="same_kind", buffersize=2**16
    )
