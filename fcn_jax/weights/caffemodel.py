"""Read VGG-16 and FCNs from Caffe's ``.caffemodel``, without Caffe.

The file is a protocol buffer: a list of fields, each with a number, a wire type and a
value. The value may be a list of fields again. The file is memory-mapped and the arrays
are views of it, so half a gigabyte of weights is not copied. The protobuf library would
hold three copies: bytes, a message and arrays.

Reference: https://protobuf.dev/programming-guides/encoding, and caffe.proto of Caffe.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fcn_jax.models.vgg import VGG_MEAN_RGB
from fcn_jax.weights.layers import (
    FCN_MEAN_RGB,
    NAMES,
    SCALES,
    UPSAMPLINGS,
    WeightFile,
    from_chw,
    mapped,
    reversed_colors,
)

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}

# Fields of a NetParameter that hold layers. By number: the kind of layer, and the
# numbers of the fields of a layer that hold its name and its blobs.
_LAYERS = {2: ("V1 layers", 4, 6), 100: ("layers", 1, 7)}
# Fields of a BlobProto: num, channels, height, width (in old files); data; shape;
# double_data.
_LEGACY_SHAPE, _DATA, _SHAPE, _DOUBLE_DATA = (1, 2, 3, 4), 5, 7, 8

# Limits far above any network, because a small file of tiny fields could fill the
# memory with objects.
_MAX_FIELDS, _MAX_BLOBS, _MAX_DIMENSIONS = 10_000, 16, 32
_MAX_JOINED = 65_536  # Unpacked numbers that are joined into one value.
_CUT_OFF = "it is cut off or damaged"


def read(path: str | Path) -> WeightFile:
    """Read a ``.caffemodel`` with V1 layers, like VGG's file, or with current layers.

    Args:
        path: the file.

    Returns:
        The layers with weights. The mean is that of the released FCNs if there are
        scores, else that of VGG-16. The arrays are views of the file: do not change it
        while they are in use.

    Raises:
        ValueError: if the file is damaged or a known layer has too few or too many
            arrays.
    """
    layers, unused, kinds = {}, [], set()
    try:
        with open(path, "rb") as file:
            content = mapped(file)
        for kind, name, blobs in _layers(content):
            kinds.add(kind)
            if name in NAMES:
                layers[name] = _layer(name, blobs)
            else:
                unused.append(name)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable .caffemodel: {error}") from error
    return WeightFile(
        layers,
        FCN_MEAN_RGB if "score_fr" in layers else VGG_MEAN_RGB,
        f"Caffe .caffemodel ({' and '.join(sorted(kinds))}), BGR, O, I, H, W",
        tuple(unused),
    )


def _layers(net: memoryview) -> Iterator[tuple[str, str, list[np.ndarray]]]:
    """Yield the kind, the name and the arrays of each layer that has arrays."""
    for field, _, layer in _fields(net):
        if field not in _LAYERS or not isinstance(layer, memoryview):
            continue
        kind, name_field, blob_field = _LAYERS[field]
        name, blobs = "", []
        for number, _, value in _fields(layer):
            if number == name_field and isinstance(value, memoryview):
                name = bytes(value[:1000]).decode(errors="replace")
            elif number == blob_field and isinstance(value, memoryview):
                blobs.append(value)
        if len(blobs) > _MAX_BLOBS:
            raise ValueError(f"layer {name!r} has more than {_MAX_BLOBS} blobs")
        if blobs:
            try:
                yield kind, name, [_blob(blob) for blob in blobs]
            except ValueError as error:
                raise ValueError(f"layer {name!r}: {error}") from error


def _layer(name: str, blobs: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Return a layer in the layout of this library."""
    wanted = 1 if name in SCALES or name in UPSAMPLINGS else 2
    if len(blobs) != wanted:
        raise ValueError(f"layer {name!r} has {len(blobs)} blob(s), want {wanted}")
    if name in SCALES:
        return {"scale": blobs[0].reshape(-1)}
    weight = blobs[0]
    if name.startswith("fc") and weight.ndim == 4 and weight.shape[:2] == (1, 1):
        weight = weight[0, 0]  # A dense layer; all arrays of old files are 4-D.
    layer = {"kernel": reversed_colors(name, from_chw(name, weight))}
    return layer if wanted == 1 else layer | {"bias": blobs[1].reshape(-1)}


def _blob(message: memoryview) -> np.ndarray:
    """Return the array in a BlobProto, float32 or float64."""
    legacy, shape = [0, 0, 0, 0], None
    numbers: dict[int, list[np.ndarray]] = {_DATA: [], _DOUBLE_DATA: []}
    for number, wire, value in _fields(message):
        if number in _LEGACY_SHAPE and wire == _VARINT:
            legacy[number - 1] = value
        elif number == _SHAPE and wire == _BYTES:
            shape = _dimensions(value)
        elif number in numbers and wire != _VARINT:
            dtype = np.dtype("<f4" if number == _DATA else "<f8")
            numbers[number].append(np.frombuffer(value, dtype))
    chunks = numbers[_DOUBLE_DATA] or numbers[_DATA] or [np.zeros(0, np.float32)]
    array = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    shape = tuple(legacy) if shape is None else shape
    if math.prod(shape) != array.size:
        raise ValueError(f"a blob has the shape {shape} but {array.size:,} numbers")
    return array.reshape(shape)


def _dimensions(message: memoryview) -> tuple[int, ...]:
    """Return the sides in a BlobShape, packed or not."""
    sides: list[int] = []
    for number, wire, value in _fields(message):
        if number == 1 and wire == _VARINT:
            sides.append(value)
        elif number == 1 and wire == _BYTES:
            at = 0
            while at < len(value) and len(sides) <= _MAX_DIMENSIONS:
                side, at = _varint(value, at)
                sides.append(side)
        if len(sides) > _MAX_DIMENSIONS:
            raise ValueError(f"a blob has more than {_MAX_DIMENSIONS} dimensions")
    return tuple(sides)


def _fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview | bytes]]:
    """Yield the number, the wire type and the value of each field.

    A value is an int (`_VARINT`) or bytes. Unpacked numbers have a tag each; adjacent
    ones are joined into one value of at most `_MAX_JOINED` numbers.
    """
    at = 0
    for _ in range(_MAX_FIELDS):
        if at == len(message):
            return
        start = at
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
        elif wire == _BYTES:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif wire in _WIDTHS:
            value = _joined(message, start, at - start + _WIDTHS[wire], at - start)
            at = start + len(value) // _WIDTHS[wire] * (at - start + _WIDTHS[wire])
        else:
            raise ValueError(f"a field has the unknown wire type {wire}")
        if at > len(message):
            raise ValueError(_CUT_OFF)
        yield number, wire, value
    raise ValueError(f"a message has more than {_MAX_FIELDS:,} fields")


def _joined(message: memoryview, start: int, record: int, tag: int) -> bytes:
    """Join the values of adjacent fields with equal tags, from ``start`` on.

    A field has ``record`` bytes, of which the first ``tag`` are its tag.
    """
    count = min((len(message) - start) // record, _MAX_JOINED)
    if not count:
        raise ValueError(_CUT_OFF)
    records = np.frombuffer(message[start : start + count * record], np.uint8)
    records = records.reshape(count, record)
    same = (records[:, :tag] == records[0, :tag]).all(axis=1)
    stop = count if same.all() else same.argmin()
    return records[:stop, tag:].tobytes()


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return an integer in base 128, lowest digit first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError(_CUT_OFF)
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number has more than ten digits")
