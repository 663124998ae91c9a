"""PyTorch's ``.pth``: state dicts, read by PyTorch where it is installed.

A ``.pth`` is a pickle and may ask for anything. PyTorch's own ``weights_only`` runs
nothing, but lets a small file fill the memory; what it asks for is checked before.
"""

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fcn_jax.weights.layers import WeightFile
from fcn_jax.weights.torch_names import from_state_dict

_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch before 1.6
_LEGACY_PICKLES = 5  # The magic, the protocol, the system, the tensors, the storages.
_STATES = ("model_state_dict", "state_dict")  # Where trainers keep the weights.

# An FCN-8s takes about 1,500, with the state of Adam 5,400. Each may ask for one
# more copy of a dictionary: without a limit a small file could fill the memory.
_MAX_OPCODES = 10_000
_SCALARS = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
_ENCODE = "_codecs.encode"  # Python 3 writes bytes so, for the Pythons before it.
# What a state dict asks for, and the numbers beside it in a trainer's file. PyTorch
# would grant more, such as a bytearray of any length.
_GRANTED = re.compile(
    r"collections\.(OrderedDict|Counter)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
    r"|torch\.(cuda\.)?[A-Za-z0-9]+Storage|"
    + "|".join(re.escape(name) for name in (*_SCALARS, _ENCODE))
)
_PUTS, _GETS = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")
_ENCODE_CALL = (("BINUNICODE",), ("BINUNICODE", *_GETS), ("TUPLE2",), ("REDUCE",))


def read(path: str | Path) -> WeightFile:
    """Reads a ``.pth`` of a state dict, or of a trainer with one inside.

    Nothing in the file is run: it may ask for tensors and plain data, or is refused.
    Memory stays a small multiple of its size.

    Args:
        path: the file, as PyTorch has written it since version 1.6 or before.
    Returns:
        The layers, as `from_state_dict` gives them.
    Raises:
        ValueError: if PyTorch is not installed; or if the file is damaged, compressed,
            asks for anything but tensors and plain data, or claims larger tensors than
            its bytes make.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{path} is a PyTorch file, and PyTorch is not installed: pip install "
            "'fcn-jax[torch]', or pass timm's VGG-16, the same as torchvision's, as "
            ".safetensors"
        ) from error
    with open(path, "rb") as file:
        size = Path(path).stat().st_size
        try:
            _check(file, size)
            tensors, unused = _tensors(_load(file), size)
            content = from_state_dict(tensors)
        except Exception as error:  # Garbled bytes end in errors of every kind.
            reason = _reason(error)
            raise ValueError(f"{path} is no readable .pth: {reason}") from error
    return content._replace(unused=(*content.unused, *unused))


class _Ignored:
    """Stands in for a number of numpy's, which nobody needs."""

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object):
        pass


def _load(file: BinaryIO) -> object:
    import torch

    file.seek(0)
    with torch.serialization.safe_globals([(_Ignored, name) for name in _SCALARS]):
        # The file, not its path: PyTorch takes a path's ending for the kind.
        return torch.load(file, weights_only=True, map_location="cpu")


def _tensors(root: object, size: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the float tensors of a state dict, and the names of what else there is.

    Args:
        root: what the file holds: a state dict, or a dict of one and more.
        size: of the file, in bytes.
    """
    import torch

    if not isinstance(root, Mapping):
        raise ValueError(f"it holds a {type(root).__name__}, no state dict")
    inner = [key for key in _STATES if isinstance(root.get(key), Mapping)][:1]
    state = root[inner[0]] if inner else root
    unused = [key for key in root if inner and key not in inner]
    tensors = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            tensors[name] = value
        else:
            unused.append(name)
    if sum(tensor.numel() * tensor.itemsize for tensor in tensors.values()) > size:
        raise ValueError("its tensors claim more bytes than it has")
    known = (torch.float32, torch.float64)
    arrays = {
        name: (tensor if tensor.dtype in known else tensor.float()).numpy(force=True)
        for name, tensor in tensors.items()
        if isinstance(name, str)
    }
    return arrays, [name for name in unused if isinstance(name, str)]


def _check(file: BinaryIO, size: int) -> None:
    """Raises ValueError unless a file is safe to be loaded, in memory for its size."""
    start = file.read(len(_LEGACY_MAGIC))
    file.seek(0)
    if start == _LEGACY_MAGIC:
        for _ in range(_LEGACY_PICKLES):
            _check_pickle(file)
    elif start.startswith(b"PK\x03\x04"):
        _check_zip(file, size)
    else:
        raise ValueError("it starts like none")


def _check_zip(file: BinaryIO, size: int) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its entries are compressed; PyTorch never does that")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError("its entries claim more bytes than it has")
        names = [entry.filename.lower() for entry in entries]
        # PyTorch disregards case, and would read a storage anew for each spelling.
        if any(re.match(r"[^/]+/data/(?!\d+$)", name) for name in names):
            raise ValueError("its storages are not numbered")
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} entries data.pkl, want one")
        entry = entries[names.index(pickles[0])]
        _check_pickle(io.BytesIO(archive.read(entry)))


def _check_pickle(file: BinaryIO) -> None:
    """Raises ValueError unless a pickle asks for tensors and plain data, in few words.

    Calls of `_ENCODE` must be of a literal string: one upon the other could fill the
    memory.
    """
    encode_memos, is_encode, awaited = set(), False, []
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count == _MAX_OPCODES:
            raise ValueError(
                f"its pickle has more than {_MAX_OPCODES:,} opcodes; save the "
                "network's state_dict() alone"
            )
        if opcode.name in _PUTS:
            if is_encode:
                encode_memos.add(argument)
            continue
        name = argument.replace(" ", ".") if opcode.name == "GLOBAL" else ""
        if name and not _GRANTED.fullmatch(name):
            raise ValueError(
                f"its pickle asks for {name!r}; only tensors and plain data are read, "
                "and nothing was run; save the network's state_dict() alone"
            )
        if awaited and opcode.name not in awaited.pop(0):
            raise ValueError(f"its pickle calls {_ENCODE!r} in a strange way")
        is_encode = name == _ENCODE
        if opcode.name in _GETS and argument in encode_memos:
            is_encode = True
        if is_encode:
            awaited = list(_ENCODE_CALL)


def _reason(error: Exception) -> str:
    """The first line of an error; not PyTorch's advice to let pickles run."""
    if isinstance(error, pickle.UnpicklingError):
        return "its pickle is damaged"
    return str(error).partition("\n")[0][:300] or type(error).__name__
