"""A network and its weights as one file, which runs without the code that made it.

The file for JAX is a NumPy ``.npz``, also under the ending ``.jax``: "program", what
`jax.export` serialises, its batch, height and width left open; the parameters it takes,
float32, under their paths such as "body/conv1_1/kernel"; and "metadata", JSON. As
constants of the program, the weights of a full network would be copied into what JAX
compiles for each new size of image.

An ``.onnx`` file holds the graph of `fcn_jax.inference.onnx_graph`, for other runtimes.
"""

import contextlib
import dataclasses
import json
import logging
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import export as jax_export

from fcn_jax.files import replacing
from fcn_jax.inference.inputs import AnyImage, as_batch
from fcn_jax.inference.onnx_graph import onnx_model
from fcn_jax.inference.predict import apply
from fcn_jax.inference.programs import resized_scores
from fcn_jax.models.fcn import FCN
from fcn_jax.models.geometry import body_extents
from fcn_jax.models.vgg import PIXEL_SIZE
from fcn_jax.network import Network, Palette, check_dtype
from fcn_jax.visualize import colormap
from fcn_jax.weights.load import arrays_of

SUFFIXES = (".npz", ".jax", ".onnx")
OUTPUTS = ("labels", "logits")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

_log = logging.getLogger("fcn_jax")
_FORMAT = "fcn_jax export"
_VERSION = 1
# Batch, height and width of the images that a file is checked with. JAX compiles each
# of them twice to check its own file, so that is checked with the first three.
_CHECKS = ((1, 1, 1), (1, 37, 50), (2, 64, 64), (1, 129, 31), (1, 96, 97))
_JAX_CHECKS = 3
# Of the largest logit: platforms and runtimes add in different orders.
_TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}


@dataclasses.dataclass(frozen=True)
class ExportedNetwork:
    """A network read from its exported file, to call on images.

    Compiled once for each image size.

    Attributes:
        output: "labels" or "logits".
        class_names: one for each class, or ().
        palette: one RGB colour for each class, or ().
        in_channels: N, the channels of an image.
        channels: their names, or ().
    """

    output: str
    class_names: tuple[str, ...]
    palette: Palette
    in_channels: int
    channels: tuple[str, ...]
    _call: Callable[[Any], jax.Array]

    def __call__(self, image: AnyImage) -> np.ndarray:
        """Run the network.

        Args:
            image: [H, W, 3] or [B, H, W, 3] uint8, RGB; a PIL image; or the path of an
                image file. For N > 3 channels, [H, W, N] or [B, H, W, N] uint8, uint16
                or float; or the path of a file with N channels.

        Returns:
            labels [H, W] or [B, H, W] int32; or logits [H, W, C] or [B, H, W, C]
            float32.

        Raises:
            ValueError: if ``image`` is anything else, or if there is no device of the
                platforms that the network was exported for.
        """
        dtype = getattr(image, "dtype", np.uint8)
        if self.in_channels == 3 and dtype != np.uint8:
            raise ValueError(f"image must be uint8, RGB in [0, 255], got {dtype}")
        batch, single = as_batch(image, self.in_channels)
        batch = batch.astype(_dtype(self.in_channels), copy=False)
        result = np.asarray(self._call(batch))
        return result[0] if single else result


def check_export_path(path: str | Path) -> None:
    """Raise ValueError unless the ending of a path tells a format of `export`."""
    if Path(path).suffix not in SUFFIXES:  # Such as the network of the run.
        raise ValueError(
            f"{path}: name what is written .npz or .jax, for JAX, or .onnx, for "
            "onnxruntime and others"
        )


def export(
    path: str | Path,
    net: Network,
    *,
    output: str = "labels",
    platforms: Sequence[str] = ("cpu", "cuda"),
    dtype: str = "float32",
) -> int:
    """Write a network as a file that runs without this package.

    The ending of the path tells the format: ``.npz`` or ``.jax`` for JAX, ``.onnx`` for
    onnxruntime, OpenVINO and others, which needs the extra ``onnx`` of this package.
    The file takes images of any batch, height and width: uint8 RGB, or float32 for a
    network of more channels. It does all that `fcn_jax.predict` does, resizing to
    ``net.size`` and back included. Before it appears under its name, it is run and
    compared with the network: by JAX at three sizes of image; by onnxruntime, if that
    is installed, at five. Missing parent directories are made.

    Args:
        path: the file to write.
        net: the network. Arrays that it does not use are left out.
        output: "labels", the class of every pixel, or "logits".
        platforms: that a file for JAX is to run on: "cpu", "cuda", "rocm", "tpu". The
            comparison runs on the first that this machine has.
        dtype: what a file for JAX computes in, "float32" or "bfloat16", whatever
            ``net`` computes in. Its parameters are float32 in any case.

    Returns:
        At how many sizes of image the file was compared with the network.

    Raises:
        ValueError: if ``path`` has another ending, if ``net`` is not a `Network` or its
            parameters do not fit its model, if ``output``, ``platforms`` or ``dtype``
            are unknown, if an .onnx file is to compute in bfloat16, if this machine has
            none of ``platforms``, if onnx is not installed, or if the file does not
            compute what the network does.
    """
    check_export_path(path)
    if output not in OUTPUTS:
        raise ValueError(f"output = {output!r} is not one of {', '.join(OUTPUTS)}")
    if not set(platforms) <= set(PLATFORMS):
        raise ValueError(
            f"platforms = {tuple(platforms)} are not all of {', '.join(PLATFORMS)}"
        )
    check_dtype(dtype)
    if Path(path).suffix == ".onnx" and dtype != "float32":
        raise ValueError(
            f"{path}: an .onnx file is written in float32; a runtime such as OpenVINO "
            "computes it in bfloat16 by an option of its own"
        )
    arrays = arrays_of(net)
    net = net.replace(
        params=unflatten_dict(arrays, sep="/"),
        model=net.model.clone(dtype=jnp.dtype(dtype)),
    )
    metadata = {
        "output": output,
        "class_names": net.class_names,
        "palette": net.palette,
        "in_channels": net.model.in_channels,
        "channels": net.channels,
    }
    if Path(path).suffix == ".onnx":
        return _export_onnx(path, net, arrays, metadata)
    return _export_jax(path, net, arrays, metadata, platforms)


def load_exported(path: str | Path) -> ExportedNetwork:
    """Read a file for JAX that `export` wrote.

    The file holds a program: load only what you trust. A pickle is never run.

    Args:
        path: the file.

    Returns:
        A function of images, on the default device.

    Raises:
        ValueError: if `export` did not write the file, or it is damaged or of another
            version.
        OSError: if there is no such file.

    Example::

        labels = fcn_jax.load_exported("fcn.npz")("cat.jpg")
    """
    if Path(path).suffix == ".onnx":
        raise ValueError(
            f"{path} is not for JAX: run it in onnxruntime, or export .npz"
        )
    with open(path, "rb") as file:
        try:
            metadata, program, arrays = _read(file)
            output, names = metadata["output"], tuple(metadata["class_names"])
            # Older files lack these.
            palette = tuple(map(tuple, metadata.get("palette", ())))
            in_channels = metadata.get("in_channels", 3)
            channels = tuple(metadata.get("channels", ()))
            _check_image(program, in_channels)
        except Exception as error:  # Garbled bytes end in errors of every kind.
            raise ValueError(
                f"{path} cannot be read as a file of fcn_jax.export (this is JAX "
                f"{jax.__version__}): {error}"
            ) from error
    weights, call = jax.device_put(arrays), jax.jit(program.call)
    described = output, names, palette, in_channels, channels
    return ExportedNetwork(*described, lambda batch: call(weights, batch))


def _export_jax(
    path: str | Path,
    net: Network,
    arrays: dict[str, np.ndarray],
    metadata: dict[str, Any],
    platforms: Sequence[str],
) -> int:
    """Write the file for JAX; return at how many sizes it was compared."""
    device, output = _device(platforms), metadata["output"]
    about = {"format": _FORMAT, "version": _VERSION, **metadata, "jax": jax.__version__}
    content = {
        "metadata": np.array(json.dumps(about)),
        "program": np.frombuffer(_program(net, arrays, output, platforms), np.uint8),
    }
    with replacing(path) as unfinished:
        with open(unfinished, "wb") as file:  # np.savez would add an ending to a name
            np.savez(file, **content, **arrays)
        with jax.default_device(device):
            run = load_exported(unfinished)
            return _compare(run, net, output, _CHECKS[:_JAX_CHECKS])


def _export_onnx(
    path: str | Path,
    net: Network,
    arrays: dict[str, np.ndarray],
    metadata: dict[str, Any],
) -> int:
    """Write the file for other runtimes; return at how many sizes it was compared."""
    output, dtype = metadata["output"], _dtype(net.model.in_channels)
    # Programs that draw labels need colours, and do not know those of PASCAL VOC.
    palette = net.palette or colormap(net.model.num_classes).tolist()
    texts = {k: json.dumps(v) for k, v in (metadata | {"palette": palette}).items()}
    content = onnx_model(net, arrays, output, dtype, texts).SerializeToString()
    compared = _compare_onnx(content, net, output)
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
    return compared


def _compare_onnx(content: bytes, net: Network, output: str) -> int:
    """Compare a model with the network as `_compare` does, if there is onnxruntime."""
    try:
        import onnxruntime
    except ImportError as error:
        _log.warning(
            "the .onnx file is not compared with the network: %s; pip install "
            "onnxruntime",
            error,
        )
        return 0
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(image: np.ndarray) -> np.ndarray:
        return session.run(None, {"image": image})[0]

    # By default, the products of an accelerator are less exact than those of a CPU.
    with jax.default_matmul_precision("highest"):
        return _compare(run, net, output, _CHECKS)


def _device(platforms: Sequence[str]) -> jax.Device:
    """A device of the first platform that this machine has."""
    for platform in platforms:
        with contextlib.suppress(RuntimeError):
            return jax.devices(platform)[0]
    raise ValueError(
        f"platforms = {tuple(platforms)}: this machine has none of them to check the "
        f"file on, only {jax.default_backend()}; add that"
    )


def _program(
    net: Network, arrays: dict[str, np.ndarray], output: str, platforms: Sequence[str]
) -> bytearray:
    """Trace and serialise ``(arrays, image) -> labels or logits``."""

    def run(arrays: dict[str, jax.Array], image: jax.Array) -> jax.Array:
        params = unflatten_dict(arrays, sep="/")
        logits = resized_scores(net.replace(params=params), image)
        if output == "logits":
            return logits
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    image = jax.ShapeDtypeStruct(_any_image(net), _dtype(net.model.in_channels))
    exported = jax_export.export(jax.jit(run), platforms=platforms)
    return exported(jax.eval_shape(lambda: arrays), image).serialize()


def _any_image(net: Network) -> tuple:
    """Return the shape of images with symbols for batch, height and width."""
    b, h, w = jax_export.symbolic_shape("b, h, w")
    if net.size:
        return b, h, w, net.model.in_channels
    caffe = net.model.geometry == "caffe"
    rows, cols = (body_extents(side, caffe=caffe)["fc7"] for side in (h, w))
    # JAX cannot tell by itself that the map of an unpadded fc6 is not empty.
    known = f"{b * rows * cols} >= 1"
    shape = f"b, h, w, {net.model.in_channels}"
    return jax_export.symbolic_shape(shape, constraints=[known])


def _dtype(in_channels: int) -> type:
    """Return the dtype of the images that an exported program takes."""
    return np.uint8 if in_channels == 3 else np.float32


def _check_image(program: jax_export.Exported, in_channels: int) -> None:
    """Raise ValueError if the program takes other images than the metadata say."""
    image = program.in_avals[-1]
    if image.shape[-1] != in_channels or image.dtype != _dtype(in_channels):
        raise ValueError(
            f"its program takes images {image}, and its metadata tell of {in_channels} "
            "channels"
        )


def _random_image(model: FCN, shape: tuple, rng: np.random.Generator) -> np.ndarray:
    """Return images [*shape, N] with values of the size that a network expects."""
    if model.in_channels == 3:
        return rng.integers(0, 256, (*shape, 3), np.uint8)
    noise = rng.normal(0, PIXEL_SIZE, (*shape, model.in_channels))
    return np.float32(noise / (model.scale or 1.0) + model.mean)


def _compare(
    run: Callable[[np.ndarray], np.ndarray],
    net: Network,
    output: str,
    shapes: Sequence[tuple[int, int, int]],
) -> int:
    """Compare what runs an exported network with the network; return at how many sizes.

    Labels may differ where two logits are equal to rounding.
    """
    rng = np.random.default_rng(0)
    for shape in shapes:
        image = _random_image(net.model, shape, rng)
        logits, found = np.asarray(apply(net, image)), run(image)
        if output == "logits":
            error = np.abs(found - logits)
        else:
            chosen = np.take_along_axis(logits, found[..., None], axis=-1)
            error = logits.max(axis=-1, keepdims=True) - chosen
        tolerance = _TOLERANCES[jnp.dtype(net.model.dtype).name]
        error, most = error.max(), tolerance * np.abs(logits).max()
        if not error <= most:
            raise ValueError(
                f"exported, the network computes something else: its logits differ by "
                f"{error:.3g} at images {list(shape)}, where {most:.3g} is rounding"
            )
    return len(shapes)


def _read(file: BinaryIO) -> tuple[dict, jax_export.Exported, dict[str, np.ndarray]]:
    """Metadata, program and parameters of a file."""
    if not zipfile.is_zipfile(file):
        raise ValueError("it is not a whole .npz")
    file.seek(0)
    with np.load(file, allow_pickle=False) as content:
        arrays = {name: content[name] for name in content.files}
    metadata = json.loads(arrays.pop("metadata", np.array("{}")).item())
    if metadata.get("format") != _FORMAT:
        raise ValueError("it is another kind of .npz")
    if metadata["version"] != _VERSION:
        raise ValueError(
            f"it has format version {metadata['version']}, this fcn_jax reads version "
            f"{_VERSION}: install the version that wrote it"
        )
    program = jax_export.deserialize(bytearray(arrays.pop("program")))
    if program.in_tree != jax.tree.structure(((arrays, 0), {})):
        raise ValueError("its program takes other parameters than it holds")
    return metadata, program, arrays
