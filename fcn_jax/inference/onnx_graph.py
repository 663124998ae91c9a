"""The network as an ONNX graph, for runtimes other than JAX.

The graph takes images of any batch, height and width. What depends on them is computed
in the graph, from the output of `Shape`: a crop begins at half the difference of two
sides, and a resize is a product with a matrix that is made from two sides. Everything
else is a fixed number, and comes from `fcn_jax.models`.

Images and results are channels last, as in every exported file. The maps between them
are [B, C, H, W], as ONNX wants it.
"""

from typing import Any, NamedTuple

import numpy as np

from fcn_jax.models.fcn import FCN, SKIPS
from fcn_jax.models.geometry import CAFFE_PAD, caffe_offsets
from fcn_jax.models.upsampling import bilinear_weights, kernel_side
from fcn_jax.models.vgg import BLOCKS
from fcn_jax.network import Network

# Opset 17 has all operations of the graph, and current releases of onnxruntime,
# OpenVINO and TensorRT read it, as do those of several years ago. Opset 18 adds a
# Resize with antialiasing, which not all of them compute. IR version 8 came with 17.
_OPSET, _IR_VERSION = 17, 8

# A file of protobuf holds 2 GiB at most. What is no weight needs far less than 1 MiB.
_MOST_BYTES = 2**31 - 2**20


class _Node(NamedTuple):
    """An operation and its inputs; its output has the name of the node."""

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: dict[str, Any]


class _Graph:
    """Nodes and constants in the order of their use.

    Attributes:
        arrays: the parameters of the network by paths such as "body/fc6/kernel".
        nodes: the nodes.
        constants: arrays by their name in the graph.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.nodes: list[_Node] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, value: Any, name: str = "") -> str:
        """Add an array or a number, and return its name."""
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def kernel(self, layer: str, *axes: int) -> str:
        """Add the kernel of a layer with its axes in another order."""
        path = f"{layer}/kernel"
        return self.constant(self.arrays[path].transpose(axes), path)

    def bias(self, layer: str) -> str:
        """Add the bias of a layer."""
        path = f"{layer}/bias"
        return self.constant(self.arrays[path], path)

    def add(self, op: str, *inputs: Any, name: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output.

        Args:
            op: the operation.
            inputs: names of outputs and constants; other values become constants.
            name: of the node; "" to number it.
            attributes: of the operation.
        """
        names = (x if isinstance(x, str) else self.constant(x) for x in inputs)
        name = name or f"{op}_{len(self.nodes)}"
        self.nodes.append(_Node(name, op, tuple(names), attributes))
        return name


def onnx_model(
    net: Network,
    arrays: dict[str, np.ndarray],
    output: str,
    dtype: type,
    metadata: dict[str, str],
) -> Any:
    """Return the ONNX model of a network.

    Args:
        net: the network; its parameters are taken from ``arrays``.
        arrays: [...] float32 by paths such as "body/conv1_1/kernel".
        output: "labels" or "logits".
        dtype: of the images.
        metadata: texts by the names that the model keeps them under.

    Returns:
        `onnx.ModelProto`, from "image" [batch, height, width, N] to "labels" [batch,
        height, width] int32 or "logits" [batch, height, width, C] float32.

    Raises:
        ValueError: if the package onnx is missing, or the weights are too large for a
            file.
    """
    graph = _Graph(arrays)
    scores = _resized_scores(graph, net)
    if output == "labels":
        best = graph.add("ArgMax", scores, axis=1, keepdims=0)
        graph.add("Cast", best, name=output, to=np.int32)
    else:
        graph.add("Transpose", scores, name=output, perm=[0, 2, 3, 1])
    return _proto(graph, net.model, output, dtype, metadata)


def _proto(
    graph: _Graph, model: FCN, output: str, dtype: type, metadata: dict[str, str]
) -> Any:
    """Return a graph as an `onnx.ModelProto`."""
    try:
        from onnx import NodeProto, helper, numpy_helper
    except ImportError as error:
        raise ValueError(
            f"an .onnx file needs the package onnx ({error}): pip install "
            "'fcn-jax[onnx]', or pip install -e '.[onnx]' in a checkout"
        ) from error
    size = sum(array.nbytes for array in graph.constants.values())
    if size > _MOST_BYTES:
        raise ValueError(
            f"the weights take {size:,} bytes, and an .onnx file holds at most "
            f"{_MOST_BYTES:,}: export to .npz"
        )

    def element(dtype: type) -> int:
        return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def node(name: str, op: str, inputs: tuple, attributes: dict) -> NodeProto:
        if "to" in attributes:  # Of a Cast.
            attributes = {"to": element(attributes["to"])}
        return helper.make_node(op, inputs, [name], name, **attributes)

    sides = ["batch", "height", "width"]
    labels = output == "labels"
    shape = sides if labels else [*sides, model.num_classes]
    result = np.int32 if labels else np.float32
    info = helper.make_tensor_value_info
    proto = helper.make_graph(
        [node(*each) for each in graph.nodes],
        model.variant,
        [info("image", element(dtype), [*sides, model.in_channels])],
        [info(output, element(result), shape)],
        [numpy_helper.from_array(a, name) for name, a in graph.constants.items()],
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    made = helper.make_model(
        proto, producer_name="fcn_jax", opset_imports=opsets, ir_version=_IR_VERSION
    )
    helper.set_model_props(made, metadata)
    return made


def _resized_scores(graph: _Graph, net: Network) -> str:
    """Add what `resized_scores` of programs.py computes: scores [B, C, H, W]."""
    x = graph.add("Cast", "image", to=np.float32)
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    sides = _sides(graph, x)
    if not net.size:
        return _scores(graph, net.model, x, sides)
    size = graph.constant(net.size)
    scores = _scores(graph, net.model, _resize(graph, x, size), size)
    return _resize(graph, scores, sides)


def _scores(graph: _Graph, model: FCN, x: str, sides: str) -> str:
    """Add what `FCN` computes from an image of these sides."""
    x = graph.add("Sub", x, _by_channel(model.mean))
    if model.scale:
        x = graph.add("Mul", x, _by_channel(model.scale))
    return _head(graph, model, _body(graph, model, x), sides)


def _body(graph: _Graph, model: FCN, x: str) -> dict[str, str]:
    """Add `VGG16` and return the maps "pool1" .. "pool5" and "fc7"."""
    caffe, maps = model.geometry == "caffe", {}

    def layer(name: str, x: str, pad: int) -> str:
        return graph.add("Relu", _conv(graph, f"body/{name}", x, pad))

    for block, (convolutions, _) in enumerate(BLOCKS, start=1):
        for i in range(1, convolutions + 1):
            name = f"conv{block}_{i}"
            x = layer(name, x, CAFFE_PAD if caffe and name == "conv1_1" else 1)
        x = maps[f"pool{block}"] = _max_pool(graph, x)
    x = layer("fc6", x, 0 if caffe else 3)
    maps["fc7"] = layer("fc7", x, 0)
    return maps


def _head(graph: _Graph, model: FCN, maps: dict[str, str], sides: str) -> str:
    """Add `Head`, with the same names and steps as in fcn.py."""
    caffe, skips = model.geometry == "caffe", SKIPS[model.variant]
    *offsets, last_offset = caffe_offsets(skips)
    x = _conv(graph, "head/score_fr", maps["fc7"])
    stride = 32
    names = ("upscore2", "upscore_pool4")
    steps = zip(skips, model.pool_scales, names, offsets, strict=False)
    for pool, scale, name, offset in steps:
        skip = graph.add("Mul", maps[pool], np.float32(scale))
        skip = _conv(graph, f"head/score_{pool}", skip)
        x = _upsample(graph, model, x, 2, name)
        if caffe:
            skip = _window(graph, skip, [offset] * 2, _sides(graph, x))
        else:
            x = _crop_to(graph, x, _sides(graph, skip), model.crop)
        x = graph.add("Add", x, skip)
        stride //= 2
    name = "upscore" if stride == 32 else f"upscore{stride}"
    x = _upsample(graph, model, x, stride, name)
    if caffe:
        return _window(graph, x, [last_offset] * 2, sides)
    return _crop_to(graph, x, sides, model.crop)


def _conv(graph: _Graph, layer: str, x: str, pad: int = 0) -> str:
    """Add a convolution and its bias."""
    kernel, bias = graph.kernel(layer, 3, 2, 0, 1), graph.bias(layer)
    return graph.add("Conv", x, kernel, bias, name=layer, pads=[pad] * 4)


def _max_pool(graph: _Graph, x: str) -> str:
    """Add a pool from side s to (s + 1) // 2.

    The row and the column of padding at the end never hold the maximum. They round odd
    sides up, which `ceil_mode` does not do alike in all runtimes.
    """
    two, pads = [2, 2], [0, 0, 1, 1]
    return graph.add("MaxPool", x, kernel_shape=two, strides=two, pads=pads)


def _upsample(graph: _Graph, model: FCN, x: str, factor: int, name: str) -> str:
    """Add a transposed convolution; "caffe" keeps all of it, "same" factor * side."""
    side = kernel_side(factor)
    cut = 0 if model.geometry == "caffe" else (side - factor) // 2
    if model.learn_upsampling:
        kernel, groups = graph.kernel(f"head/{name}", 2, 3, 0, 1), 1
    else:  # The same [k, k] for each class by itself.
        weights, groups = bilinear_weights(factor), model.num_classes
        kernel = np.tile(np.outer(weights, weights), (groups, 1, 1, 1))
    options = {"strides": [factor] * 2, "pads": [cut] * 4, "group": groups}
    return graph.add("ConvTranspose", x, kernel, name=f"head/{name}", **options)


def _sides(graph: _Graph, x: str) -> str:
    """Add the height and width of a map, [2] int64."""
    # There are parsers that ignore the attributes start and end of Shape.
    return graph.add("Slice", graph.add("Shape", x), [2], [4])


def _crop_to(graph: _Graph, x: str, sides: str, crop: str) -> str:
    """Add `crop_to` of geometry.py."""
    if crop == "corner":
        return _window(graph, x, [0, 0], sides)
    surplus = graph.add("Sub", _sides(graph, x), sides)
    return _window(graph, x, graph.add("Div", surplus, 2), sides)


def _window(graph: _Graph, x: str, first: str | list[int], sides: str) -> str:
    """Add a crop to these sides, from the first row and column to keep."""
    end = graph.add("Add", sides, first)
    return graph.add("Slice", x, first, end, [2, 3])


def _resize(graph: _Graph, x: str, sides: str) -> str:
    """Add `resize` of resize.py: a matrix times the rows, and one for the columns."""
    old = _sides(graph, x)
    rows, cols = (_resize_weights(graph, old, sides, axis) for axis in (0, 1))
    x = graph.add("MatMul", rows, x)
    return graph.add("MatMul", x, graph.add("Transpose", cols, perm=[1, 0]))


def _resize_weights(graph: _Graph, olds: str, news: str, axis: int) -> str:
    """Add `resize_weights` of resize.py: [new, old] of the sides of one axis."""
    old, new = (graph.add("Gather", sides, axis) for sides in (olds, news))
    i = graph.add("Unsqueeze", _odd_numbers(graph, new), [1])
    j = _odd_numbers(graph, old)
    distance = graph.add("Sub", graph.add("Mul", i, old), graph.add("Mul", j, new))
    distance = graph.add("Cast", graph.add("Abs", distance), to=np.float32)
    reach = graph.add("Mul", graph.add("Max", old, new), 2)
    share = graph.add("Div", distance, graph.add("Cast", reach, to=np.float32))
    weights = graph.add("Relu", graph.add("Sub", np.float32(1), share))
    return graph.add("Div", weights, graph.add("ReduceSum", weights, [1]))


def _odd_numbers(graph: _Graph, count: str) -> str:
    """Add 1, 3, 5, ...: where the pixels of a side have their centres, times 2."""
    return graph.add("Range", 1, graph.add("Mul", count, 2), 2)


def _by_channel(values: tuple[float, ...]) -> np.ndarray:
    """Return [C, 1, 1] float32, for maps [B, C, H, W]."""
    return np.float32(values)[:, None, None]
