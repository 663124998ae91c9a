"""What kind of weight file is it? Told by its content, never by its name."""

from pathlib import Path

# Kinds by their first bytes; more particular ones first.
_TORCH_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch before 1.6
_KINDS = (
    (_TORCH_MAGIC, "torch"),
    (b"PK\x03\x04", "torch"),
    (b"\x93NUMPY", "npy"),
    (b"\x80", "npy"),  # a pickle without the header
    (b"\x89HDF\r\n\x1a\n", "keras"),
    # A NetParameter begins with its name, an input or a layer.
    (b"\x0a", "caffemodel"),
    (b"\x12", "caffemodel"),
    (b"\x1a", "caffemodel"),
    (b"\xa2\x06", "caffemodel"),
)

# What people have in place of a weight file.
_STRANGERS = (
    (b"<", "looks like an HTML or XML page, perhaps a download that failed"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the file it stands for"),
    (b"name:", "looks like a .prototxt, a network's definition without its weights"),
    (b"", "is of no kind known here"),
)
_WAY_OUT = "pass a .caffemodel, .npy, .pth, .h5 or .safetensors file"


def sniff(path: str | Path) -> str:
    """Returns "caffemodel", "keras", "npy", "safetensors" or "torch".

    Raises:
        ValueError: if the file is of none of these kinds, telling what it is instead.
    """
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise ValueError(f"{path} is empty; {_WAY_OUT}")
    stranger = next(
        what for start, what in _STRANGERS if head.lstrip().startswith(start)
    )
    if stranger is _STRANGERS[-1][1]:
        if head[8:9] == b"{":  # behind the length of its header
            return "safetensors"
        for start, kind in _KINDS:
            if head.startswith(start):
                return kind
    raise ValueError(f"{path} {stranger}; {_WAY_OUT}")
