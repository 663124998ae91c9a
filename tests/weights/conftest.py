"""Write PyTorch's files without PyTorch, to be read by the tests."""

import pickle
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

STORAGES = {
    "bfloat16": "BFloat16",
    "bool": "Bool",
    "float16": "Half",
    "float32": "Float",
    "float64": "Double",
    "int8": "Char",
    "int64": "Long",
}


class Global:
    """A function or type, known by its dotted name alone."""

    def __init__(self, dotted):
        self.dotted = dotted

    def __call__(self):
        """Only what can be called pickles as a function."""


class Storage:
    """Numbers that tensors share."""

    def __init__(self, numbers):
        self.numbers = numbers

    def name(self):
        return f"torch.{STORAGES[self.numbers.dtype.name]}Storage"


class Parameter:
    """Pickles an array as a parameter."""

    def __init__(self, array):
        self.array = array


class Tensor:
    """Pickles a view of numbers as a tensor, with an extra argument or more."""

    def __init__(self, numbers, offset, shape, strides, *rest):
        self.numbers = numbers
        self.args = offset, shape, strides, False, {}, *rest


class TorchPickler(pickle._Pickler):
    """Pickles arrays as tensors. Arrays that are views share the storage of their base.

    Attributes:
        storages: by the id of the base, with their keys.
        views: whether each tensor has a view of its storage, as in the oldest files.
    """

    def __init__(self, file, legacy, protocol=2, views=False):
        super().__init__(file, protocol)
        self.legacy, self.views, self.storages = legacy, views, {}

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        key = list(self.storages.values()).index(obj)
        count = obj.numbers.size
        view = ()
        if self.legacy:
            view = ((f"view of {key}", 1, count - 1),) if self.views else (None,)
        return "storage", Global(obj.name()), str(key), "cpu", count, *view

    def reducer_override(self, obj):
        if isinstance(obj, Global):
            return obj.dotted
        if isinstance(obj, Parameter):
            rebuild = Global("torch._utils._rebuild_parameter")
            return rebuild, (obj.array, True, {})
        if isinstance(obj, Tensor):
            storage = self.storages.setdefault(id(obj), Storage(obj.numbers))
            return Global("torch._utils._rebuild_tensor_v2"), (storage, *obj.args)
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        base = obj
        while isinstance(base.base, np.ndarray):
            base = base.base
        storage = Storage(base.ravel(order="K"))
        storage = self.storages.setdefault(id(base), storage)
        item = obj.itemsize
        offset = (obj.ctypes.data - base.ctypes.data) // item
        strides = tuple(stride // item for stride in obj.strides)
        args = storage, offset - self.views, obj.shape, strides, False, {}
        return Global("torch._utils._rebuild_tensor_v2"), args

    def save_global(self, obj, name=None):
        if not isinstance(obj, Global):
            return super().save_global(obj, name)
        module, name = obj.dotted.rsplit(".", 1)
        self.write(f"c{module}\n{name}\n".encode())
        self.memoize(obj)


class Python2Pickler(TorchPickler):
    """Pickles texts as the byte strings of Python 2."""

    def save_str(self, text):
        text_bytes = text.encode("latin1")
        self.write(b"U" + bytes([len(text_bytes)]) + text_bytes)
        self.memoize(text)

    dispatch = {**TorchPickler.dispatch, str: save_str}


def write_zip(path, content, *, big_endian=False, protocol=2):
    """Writes arrays and plain data as PyTorch does since version 1.6."""
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("archive/data.pkl", "w") as file:
            pickler = TorchPickler(file, legacy=False, protocol=protocol)
            pickler.dump(content)
        order = "big" if big_endian else "little"
        archive.writestr("archive/byteorder", order)
        for key, storage in enumerate(pickler.storages.values()):
            bits = storage.numbers.view(f"u{storage.numbers.itemsize}")
            bits = bits.astype(bits.dtype.newbyteorder(order))
            archive.writestr(f"archive/data/{key}", bits.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def write_legacy(path, content, *, pickler=TorchPickler, views=False):
    """Writes arrays and plain data as PyTorch did before version 1.6."""
    with open(path, "wb") as file:
        sizes = {"short": 2, "int": 4, "long": 4}
        for header in (
            0x1950A86A20F9469CFC6C,
            1001,
            {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes},
        ):
            pickle.dump(header, file, 2)
        pickler = pickler(file, legacy=True, views=views)
        pickler.dump(content)
        pickle.dump([str(key) for key in range(len(pickler.storages))], file, 2)
        for storage in pickler.storages.values():
            file.write(storage.numbers.size.to_bytes(8, "little"))
            file.write(storage.numbers.tobytes())
    return path


@pytest.fixture(scope="session")
def torch_files():
    """The writers above; modules of tests cannot import one another."""
    return SimpleNamespace(
        write_zip=write_zip,
        write_legacy=write_legacy,
        Parameter=Parameter,
        Tensor=Tensor,
        Python2Pickler=Python2Pickler,
    )
