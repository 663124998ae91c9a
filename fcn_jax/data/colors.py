"""Masks of colours: from the colour of a pixel to its class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fcn_jax.data.labels import VOID, check_num_classes
from fcn_jax.data.shorten import shorten

Color = tuple[int, int, int]

_CHUNK = 2**16  # Colours whose distances are computed at once.


class ClassColors:
    """Turn masks of colours into classes.

    Args:
        palette: the RGB colour of each class, in [0, 255].
        void_colors: RGB colours of void pixels.
        nearest_color: whether another colour counts as the nearest of these (least
            squared distance in RGB, the first of equals). If not, it is an error.

    Raises:
        ValueError: if ``palette`` is empty, two of the colours are equal, or one is not
            (red, green, blue).

    Example::

        colors = ClassColors([(0, 0, 0), (255, 0, 0)], void_colors=[(255, 255, 255)])
        label = colors(image, "mask.png")
    """

    def __init__(
        self,
        palette: Sequence[Color],
        void_colors: Sequence[Color] = (),
        *,
        nearest_color: bool = False,
    ):
        check_num_classes(len(palette))
        if not len(palette):
            raise ValueError("palette is empty: give the colour of each class")
        colors = [*map(tuple, palette), *map(tuple, void_colors)]
        for color in colors:
            if len(color) != 3 or not all(0 <= int(c) == c <= 255 for c in color):
                raise ValueError(
                    f"palette and void_colors have {color}, want (red, green, blue) "
                    "from 0 to 255"
                )
        twice = sorted({color for color in colors if colors.count(color) > 1})
        if twice:
            raise ValueError(
                f"palette and void_colors have {', '.join(shorten(twice))} more than "
                "once: the masks are read by colour, so each class needs its own"
            )
        self._colors, self._nearest_color = np.array(colors, np.int32), nearest_color
        classes = np.full(len(colors), VOID, np.int32)
        classes[: len(palette)] = np.arange(len(palette))
        self._classes = classes
        packed = _packed(self._colors)
        order = np.argsort(packed)
        self._sorted, self._sorted_classes = packed[order], classes[order]

    def __call__(self, image: np.ndarray, where: str | Path) -> np.ndarray:
        """Return the classes of a mask.

        Args:
            image: [H, W, 3] uint8, RGB.
            where: the file, for errors.

        Returns:
            [H, W] int32 in [0, C), or 255 for void.

        Raises:
            ValueError: if a colour is unknown and ``nearest_color`` is False. The error
                lists the most frequent ones.
        """
        packed = _packed(image)
        at, unknown = self._look_up(packed)
        label = self._sorted_classes[at]
        if unknown.any():
            found, inverse, counts = np.unique(
                packed[unknown], return_inverse=True, return_counts=True
            )
            if not self._nearest_color:
                _refuse(found, counts, where)
            label[unknown] = self._nearest(found)[inverse]
        return label

    def know(self, image: np.ndarray) -> bool:
        """Return whether each colour of [H, W, 3] uint8 is one of these."""
        return not self._look_up(_packed(image))[1].any()

    def _look_up(self, packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the place of each colour among the sorted ones, and where it fails."""
        at = np.searchsorted(self._sorted, packed)
        at = np.minimum(at, len(self._sorted) - 1, out=at)
        return at, self._sorted[at] != packed

    def _nearest(self, packed: np.ndarray) -> np.ndarray:
        classes = np.empty(len(packed), np.int32)
        for start in range(0, len(packed), _CHUNK):
            part = packed[start : start + _CHUNK]
            distances = np.zeros((len(part), len(self._colors)), np.int32)
            for channel, values in enumerate(_unpacked(part)):
                distances += (values[:, None] - self._colors[:, channel]) ** 2
            classes[start : start + _CHUNK] = self._classes[distances.argmin(axis=1)]
        return classes


def _packed(image: np.ndarray) -> np.ndarray:
    """Return each colour [..., 3] as one integer [...] int32."""
    red, green, blue = (image[..., i].astype(np.int32) for i in range(3))
    return red << 16 | green << 8 | blue


def _unpacked(packed: np.ndarray) -> tuple[np.ndarray, ...]:
    return packed >> 16, packed >> 8 & 255, packed & 255


def _refuse(packed: np.ndarray, counts: np.ndarray, where: str | Path) -> None:
    order = np.argsort(-counts, kind="stable")
    colors = np.stack(_unpacked(packed[order]), axis=1).tolist()
    lines = [
        f"({', '.join(map(str, color))}) in {n} pixel{'s' * (n > 1)}"
        for color, n in zip(colors, counts[order].tolist(), strict=True)
    ]
    raise ValueError(
        f"{where}: colours {'; '.join(shorten(lines))} are not in palette; add them to "
        "palette if they are classes or to void_colors if they are void, or set "
        "nearest_color=True if they are blurred colours, as in a JPEG mask"
    )
