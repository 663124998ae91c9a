"""VGG-16 and FCN from Caffe's ``.caffemodel``, without Caffe.

The file is a protocol buffer: fields of a number, a wire type and a value, some of
them messages of fields again. It is mapped, and its arrays are views of the map, so
half a gigabyte of weights costs no copy. Parsed by the protobuf library, it would be
in memory three times: as bytes, as a message and as arrays.

Reference: https://protobuf.dev/programming-guides/encoding, and caffe.proto of Caffe.
"""

import math
import mmap
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
    reversed_colors,
)

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}

# Of the layers in a NetParameter: the field, its name, and in it those of the name and
# of the blobs.
_LAYERS = {2: ("V1 layers", 4, 6), 100: ("layers", 1, 7)}
# In a BlobProto: num, channels, height and width of old, data, shape, double_data.
_LEGACY_SHAPE, _DATA, _SHAPE, _DOUBLE_DATA = (1, 2, 3, 4), 5, 7, 8

# Far above any network. Without limits, a small file of tiny fields could fill the
# memory with objects.
_MAX_FIELDS, _MAX_BLOBS, _MAX_DIMENSIONS = 10_000, 16, 32
_RUN = 65_536


def read(path: str | Path) -> WeightFile:
    """Reads a ``.caffemodel`` of V1 or of current layers, as VGG's own and the FCNs'.

    Args:
        path: the file.
    Returns:
        The layers with weights. The mean is VGG's, or the FCNs' where there are scores.
        Arrays are views of the file: do not change it while they are in use.
    Raises:
        ValueError: if the file is damaged, or a layer of a known name does not hold
            the arrays that it must.
    """
    layers, unused, kinds = {}, [], set()
    try:
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for kind, name, blobs in _layers(memoryview(content)):
            kinds.add(kind)
            if name in NAMES:
                layers[name] = _layer(name, blobs)
            else:
                unused.append(name)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no readable .caffemodel: {error}") from error
    return WeightFile(
        layers,
        FCN_MEAN_RGB if "score_fr" in layers else VGG_MEAN_RGB,
        f"Caffe .caffemodel ({' and '.join(sorted(kinds))}), BGR, O, I, H, W",
        tuple(unused),
    )


def _layers(net: memoryview) -> Iterator[tuple[str, str, list[np.ndarray]]]:
    """The kind, the name and the arrays of each layer that has any."""
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
    """A layer in this library's layout."""
    alone = name in SCALES or name in UPSAMPLINGS
    if len(blobs) != (1 if alone else 2):
        wanted = "one blob" if alone else "two blobs"
        raise ValueError(f"layer {name!r} has {len(blobs)} of them, want {wanted}")
    if name in SCALES:
        return {"scale": blobs[0].reshape(-1)}
    weight = blobs[0]
    if name.startswith("fc") and weight.ndim == 4 and weight.shape[:2] == (1, 1):
        weight = weight[0, 0]  # Dense, in the four sides of old.
    kernel = reversed_colors(name, from_chw(name, weight))
    return {"kernel": kernel} | ({} if alone else {"bias": blobs[1].reshape(-1)})


def _blob(message: memoryview) -> np.ndarray:
    """The array in a BlobProto, of float32 or float64."""
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
        raise ValueError(f"a blob of {array.size:,} numbers claims the shape {shape}")
    return array.reshape(shape)


def _dimensions(message: memoryview) -> tuple[int, ...]:
    """The sides in a BlobShape, packed or one by one."""
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
    """The number, the wire type and the value of each field.

    A value is an int (`_VARINT`) or bytes. Numbers that are not packed, each with its
    field's tag before it, come joined in long runs.
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
            value = _run(message, start, at - start + _WIDTHS[wire], at - start)
            at = start + len(value) // _WIDTHS[wire] * (at - start + _WIDTHS[wire])
        else:
            raise ValueError(f"a field has the wire type {wire}")
        if at > len(message):
            raise ValueError("it is cut off, or no .caffemodel at all")
        yield number, wire, value
    raise ValueError(f"a message has more than {_MAX_FIELDS:,} fields")


def _run(message: memoryview, start: int, record: int, tag: int) -> bytes:
    """The values of equal fields in a row, each a record of a tag and the value."""
    count = min((len(message) - start) // record, _RUN)
    if not count:
        raise ValueError("it is cut off, or no .caffemodel at all")
    records = np.frombuffer(message[start : start + count * record], np.uint8)
    records = records.reshape(count, record)
    same = (records[:, :tag] == records[0, :tag]).all(axis=1)
    stop = count if same.all() else same.argmin()
    return records[:stop, tag:].tobytes()


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """An integer in base 128, least digit first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("it is cut off, or no .caffemodel at all")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number has more than ten digits")
