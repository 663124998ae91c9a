"""Settings of all tests, and what they compare with.

The references are written from the definitions, in numpy, ONNX and protobuf.
"""

import contextlib
import io
import os
import shutil
import struct
import zlib
from types import SimpleNamespace

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import settings
from PIL import Image
from selenium import webdriver

from fcn_jax import progress
from fcn_jax.models.fcn import FCN
from fcn_jax.network import Network

# Compiling takes most of the time of these tests, and their networks are small: with
# these settings it takes a fifth. The processes that tests start have them, too.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

# The same examples on every machine, and no deadline: these machines may be slow.
settings.register_profile("fcn_jax", derandomize=True, deadline=None)
settings.load_profile("fcn_jax")


@pytest.fixture(scope="session")
def keeping_programs():
    """A context manager that keeps all compiled programs in a folder.

    It takes other options of jax, too, and sets all back at its end.
    """

    @contextlib.contextmanager
    def keep(folder, **options):
        options |= {
            "jax_compilation_cache_dir": str(folder),
            "jax_persistent_cache_min_compile_time_secs": 0.0,
        }
        before = {name: jax.config.values[name] for name in options}
        try:
            for name, value in options.items():
                jax.config.update(name, value)
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)

    return keep


@pytest.fixture
def terminal(capsys, monkeypatch):
    """`capsys`, whose standard error counts as a terminal."""
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    return capsys


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium, which downloads into tmp_path / "downloads"."""
    if not (program := shutil.which("chromedriver")):
        pytest.skip("needs Chromium and its chromedriver")
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    downloads = {"download.default_directory": str(tmp_path / "downloads")}
    options.add_experimental_option("prefs", downloads)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(program))
    yield driver
    driver.quit()


# name: (side of the kernel, channels in, channels out) at width 1, in order.
BODY = {
    "conv1_1": (3, 3, 64),
    "conv1_2": (3, 64, 64),
    "conv2_1": (3, 64, 128),
    "conv2_2": (3, 128, 128),
    "conv3_1": (3, 128, 256),
    "conv3_2": (3, 256, 256),
    "conv3_3": (3, 256, 256),
    "conv4_1": (3, 256, 512),
    "conv4_2": (3, 512, 512),
    "conv4_3": (3, 512, 512),
    "conv5_1": (3, 512, 512),
    "conv5_2": (3, 512, 512),
    "conv5_3": (3, 512, 512),
    "fc6": (7, 512, 4096),
    "fc7": (1, 4096, 4096),
}
# Score layers (name: channels in) and upsamplings (name: factor) of each variant.
SCORES = {"score_fr": 4096, "score_pool4": 512, "score_pool3": 256}
UPSAMPLINGS = {
    "fcn32s": {"upscore": 32},
    "fcn16s": {"upscore2": 2, "upscore16": 16},
    "fcn8s": {"upscore2": 2, "upscore_pool4": 2, "upscore8": 8},
}


def bilinear(factor: int) -> np.ndarray:
    """The bilinear kernel, entry by entry."""
    k = 2 * factor - factor % 2
    center = factor - 1 if k % 2 else factor - 0.5
    kernel = np.zeros((k, k))
    for i in range(k):
        for j in range(k):
            vertical = 1 - abs(i - center) / factor
            kernel[i, j] = vertical * (1 - abs(j - center) / factor)
    return kernel


def scatter(x: np.ndarray, kernel: np.ndarray, factor: int) -> np.ndarray:
    """Transposed convolution of [B, H, W, C] by [k, k, C, D], cut to factor * side.

    Each pixel adds its footprint; then k - factor is cut away, half on each side.
    """
    b, h, w, _ = x.shape
    k, classes = kernel.shape[0], kernel.shape[-1]
    y = np.zeros((b, (h - 1) * factor + k, (w - 1) * factor + k, classes))
    for i in range(h):
        for j in range(w):
            footprint = np.einsum("nc,abcd->nabd", x[:, i, j], kernel)
            top, left = factor * i, factor * j
            y[:, top : top + k, left : left + k] += footprint
    cut = (k - factor) // 2
    return y[:, cut : cut + factor * h, cut : cut + factor * w]


def random_weights(rng, *, width: float, num_classes: int) -> dict:
    """Random kernels (OIHW) and biases of every layer a network may have.

    Biases are of the size of the features, so that none may be forgotten, and
    upsampling kernels ([in, out, k, k]) have no symmetry.
    """

    def conv(side, fan_in, filters):
        scale = np.sqrt(2 / (side * side * fan_in))
        kernel = scale * rng.normal(size=(filters, fan_in, side, side))
        return kernel.astype(np.float32), rng.normal(0, 30, filters).astype(np.float32)

    def thin(filters):
        return filters if filters == 3 else int(filters * width)

    weights = {n: conv(s, thin(i), thin(o)) for n, (s, i, o) in BODY.items()}
    weights["fc8"] = conv(1, thin(4096), num_classes)
    for name, channels in SCORES.items():
        weights[name] = conv(1, thin(channels), num_classes)
    for factors in UPSAMPLINGS.values():
        for name, factor in factors.items():
            k = 2 * factor
            kernel = rng.uniform(-1, 1, (num_classes, num_classes, k, k)) / factor
            weights[name] = kernel.astype(np.float32)
    return weights


def body_params(weights: dict) -> dict:
    """The body's parameters as the library lays them out: kernels HWIO."""
    return {name: conv_params(*weights[name]) for name in BODY}


def head_params(weights: dict, variant: str, learned: bool = False) -> dict:
    """The head's parameters of a variant, with upsampling kernels if learned."""
    scores = list(SCORES)[: len(UPSAMPLINGS[variant])]
    params = {name: conv_params(*weights[name]) for name in scores}
    if learned:
        for name in UPSAMPLINGS[variant]:
            params[name] = {"kernel": weights[name].transpose(2, 3, 0, 1)}
    return params


def network(variant: str, **fields) -> Network:
    """A thin network of 4 classes with random weights."""
    model = FCN(variant=variant, num_classes=4, width=1 / 32, dropout=0.0, **fields)
    weights = random_weights(
        np.random.default_rng(4), width=model.width, num_classes=model.num_classes
    )
    head = head_params(weights, variant, model.learn_upsampling)
    return Network({"body": body_params(weights), "head": head}, model)


class Graph:
    """An ONNX graph, built node by node; maps are [B, C, H, W]."""

    def __init__(self):
        self.nodes, self.tensors = [], []

    def constant(self, value):
        name = f"constant{len(self.tensors)}"
        self.tensors.append(
            onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        )
        return name

    def add(self, op, *inputs, **attributes):
        name = f"{op}{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, inputs, [name], **attributes))
        return name

    def conv(self, x, kernel, bias, pad=None):
        pads = [kernel.shape[-1] // 2 if pad is None else pad] * 4
        return self.add(
            "Conv", x, self.constant(kernel), self.constant(bias), pads=pads
        )

    def crop(self, x, top, left, height, width):
        ends = [top + height, left + width]
        limits = (np.array(v, np.int64) for v in ([top, left], ends, [2, 3]))
        return self.add("Slice", x, *map(self.constant, limits))

    def run(self, feed, outputs):
        floats = onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            self.nodes,
            "network",
            [onnx.helper.make_tensor_value_info("image", floats, feed.shape)],
            [onnx.helper.make_tensor_value_info(o, floats, None) for o in outputs],
            self.tensors,
        )
        opsets = [onnx.helper.make_opsetid("", 17)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return [y.transpose(0, 2, 3, 1) for y in session.run(outputs, {"image": feed})]


def conv_params(kernel: np.ndarray, bias: np.ndarray) -> dict:
    return {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}


# The fields of caffe.proto that weights take, and some that a reader must pass over:
# (number, name, type), "*" for repeated.
CAFFE_PROTO = {
    "BlobShape": [(1, "dim", "int64*")],
    "BlobProto": [
        (1, "num", "int32"),
        (2, "channels", "int32"),
        (3, "height", "int32"),
        (4, "width", "int32"),
        (5, "data", "float*"),
        (7, "shape", "BlobShape"),
        (8, "double_data", "double*"),
    ],
    "V1LayerParameter": [
        (2, "bottom", "string*"),
        (4, "name", "string"),
        (5, "type", "int32"),
        (6, "blobs", "BlobProto*"),
        (7, "blobs_lr", "float*"),
    ],
    "LayerParameter": [
        (1, "name", "string"),
        (2, "type", "string"),
        (5, "loss_weight", "float*"),
        (7, "blobs", "BlobProto*"),
    ],
    "NetParameter": [
        (1, "name", "string"),
        (2, "layers", "V1LayerParameter*"),
        (4, "input_dim", "int32*"),
        (5, "force_backward", "bool"),
        (100, "layer", "LayerParameter*"),
    ],
}


def net_parameter(packed: bool):
    """Caffe's NetParameter, with numbers packed or one by one."""
    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
    for name, fields in CAFFE_PROTO.items():
        message = file.message_type.add(name=name)
        for number, field, type_name in fields:
            base = type_name.removesuffix("*")
            label = "LABEL_OPTIONAL" if base == type_name else "LABEL_REPEATED"
            added = message.field.add(
                name=field, number=number, label=getattr(kind, label)
            )
            if base in CAFFE_PROTO:
                added.type, added.type_name = kind.TYPE_MESSAGE, f".caffe.{base}"
            else:
                added.type = getattr(kind, f"TYPE_{base.upper()}")
            if field in ("data", "double_data", "dim"):
                added.options.packed = packed
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("caffe.NetParameter")
    )


def write_caffemodel(
    path, layers, *, v1=False, packed=True, double=False, legacy=False
):
    """Writes {name: arrays} as a .caffemodel.

    Args:
        v1: whether in layers of version 1.
        packed: whether numbers stand behind one tag together.
        double: whether as double_data.
        legacy: whether shapes are the four sides of old.
    """
    net = net_parameter(packed)(name="a net", input_dim=[1, 3, 8, 8])
    for name, blobs in layers.items():
        if v1:
            layer = net.layers.add(name=name, type=4, bottom=["x"], blobs_lr=[1, 2])
        else:
            layer = net.layer.add(name=name, type="Convolution", loss_weight=[0.5])
        for blob in blobs:
            added = layer.blobs.add()
            (added.double_data if double else added.data).extend(blob.ravel())
            if legacy:
                sides = (1,) * (4 - blob.ndim) + blob.shape
                added.num, added.channels, added.height, added.width = sides
            else:
                added.shape.dim.extend(blob.shape)
    path.write_bytes(net.SerializeToString())
    return path


@pytest.fixture(scope="session")
def reference():
    """The definitions above; modules of tests cannot import one another."""
    return SimpleNamespace(
        Graph=Graph,
        conv_params=conv_params,
        BODY=BODY,
        SCORES=SCORES,
        UPSAMPLINGS=UPSAMPLINGS,
        bilinear=bilinear,
        scatter=scatter,
        random_weights=random_weights,
        body_params=body_params,
        head_params=head_params,
        network=network,
        write_caffemodel=write_caffemodel,
    )


# Names of files, and the (height, width) of their image or a part of the error.
ODD_IMAGES = {
    "16 bits.png": (20, 33),
    "new\nline.png": (20, 33),
    "émile 図.png": (20, 33),
    os.fsdecode(b"\xff\xfe.png"): (20, 33),
    "cmyk.jpg": (20, 33),
    "alpha.webp": (20, 33),
    "turned.jpg": (33, 20),
    "animated.gif": (20, 33),
    "animated.png": (20, 33),
    "animated.webp": (20, 33),
    "one.bmp": (1, 1),
    "wide.png": (1, 9000),
    "tall.png": (9000, 1),
    "pipe.png": "not a regular file",
    "pipe link.png": "not a regular file",
    "zero.png": "not a regular file",
    "loop.png": "Too many levels of symbolic links",
    "gone.png": "No such file",
    "empty.png": "cannot identify",
    "text.jpg": "cannot identify",
    "cut.jpg": "truncated",
    "bomb.png": "400000000 pixels.* exceeds limit",
    "long.png": "a side of 1x2000000 pixels is above 1048576",
    "huge.qoi": "more than 1 GiB to decode",
    "program.png": "EPS is a program",
    "float.tif": "no agreed range",
}


def empty_png(height: int, width: int) -> bytes:
    """A PNG of a grey bit for each pixel, without the pixels."""
    header = struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, part in ((b"IHDR", header), (b"IDAT", b"")):
        check = struct.pack(">I", zlib.crc32(kind + part))
        content += struct.pack(">I", len(part)) + kind + part + check
    return content


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def odd_images(tmp_path):
    """A folder of `ODD_IMAGES`. First frames of animations are red."""
    folder = tmp_path / "odd"
    folder.mkdir()
    red, blue = (Image.new("RGB", (33, 20), color) for color in ("red", "blue"))
    frames = {"save_all": True, "append_images": [blue]}
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in list(ODD_IMAGES)[1:4]:
        red.save(os.fsencode(folder / name), "PNG")
    Image.new("I;16", red.size, 0x8000).save(folder / "16 bits.png")
    red.convert("CMYK").save(folder / "cmyk.jpg")
    red.convert("RGBA").save(folder / "alpha.webp")
    red.save(folder / "turned.jpg", exif=exif)
    red.save(folder / "animated.gif", **frames)
    red.save(folder / "animated.png", **frames)
    red.save(folder / "animated.webp", lossless=True, **frames)
    for name, size in (("one.bmp", (1, 1)), ("wide.png", (9000, 1))):
        Image.new("RGB", size).save(folder / name)
    Image.new("RGB", (1, 9000)).save(folder / "tall.png")
    os.mkfifo(folder / "pipe.png")
    links = {"pipe link": "pipe.png", "zero": "/dev/zero", "loop": "loop.png"}
    for name, target in (links | {"gone": "nowhere.png"}).items():
        (folder / f"{name}.png").symlink_to(target)
    (folder / "folder loop").symlink_to(folder)
    jpeg = encoded(Image.effect_noise((64, 64), 50), "JPEG")
    contents = {
        "empty.png": b"",
        "text.jpg": b"<html>not found</html>",
        "cut.jpg": jpeg[:-500],
        "bomb.png": empty_png(20_000, 20_000),
        "long.png": empty_png(1, 2_000_000),
        "huge.qoi": b"qoif" + struct.pack(">2I2B", 16_000, 10_000, 3, 1),
        "program.png": encoded(red, "EPS"),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    Image.new("F", red.size).save(folder / "float.tif")
    return folder, ODD_IMAGES
