"""Damages to files, each from a random generator."""

import functools
import os
from pathlib import Path

import numpy as np


def flip_bits(path: Path, rng: np.random.Generator):
    data = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def truncate(path: Path, rng: np.random.Generator):
    os.truncate(path, rng.integers(path.stat().st_size))


def overwrite(path: Path, rng: np.random.Generator, zeros: bool = False):
    data = bytearray(path.read_bytes())
    start, end = sorted(rng.integers(len(data) + 1, size=2))
    data[start:end] = bytes(end - start) if zeros else rng.bytes(end - start)
    path.write_bytes(data)


def make_folder(path: Path, _):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "with flipped bits": flip_bits,
    "truncated": truncate,
    "zeroed in part": functools.partial(overwrite, zeros=True),
    "overwritten in part": overwrite,
    "of other bytes": lambda path, rng: path.write_bytes(rng.bytes(1000)),
    "empty": lambda path, _: path.write_bytes(b""),
    "missing": lambda path, _: path.unlink(),
    "a folder": make_folder,
}
