import collections
import io
import os
import pickle
import pickletools
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax.weights import npy

PROTOCOLS = (2, 3, 4, 5)


def random_layers(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {"conv1_1": (3, 3, 3, 4), "fc6": (7 * 7 * 2, 5), "fc7": (5, 5)}
    return {
        name: (
            rng.normal(size=shape).astype(dtype),
            rng.normal(size=shape[-1]).astype(dtype),
        )
        for name, shape in shapes.items()
    }


def old_layout(layers):
    return {name: [kernel, bias] for name, (kernel, bias) in layers.items()}


def new_layout(layers):
    return {
        name: {"weights": kernel, "biases": bias}
        for name, (kernel, bias) in layers.items()
    }


def npy_bytes(entries):
    file = io.BytesIO()
    np.save(file, entries, allow_pickle=True)
    return file.getvalue()


def python2_bytes(layers):
    """The old layout as Python 2 wrote it: protocol 2, every str a byte string."""

    def string(text):
        if len(text) < 256:
            return b"U" + bytes([len(text)]) + text
        return b"T" + struct.pack("<i", len(text)) + text

    def number(n):
        return b"J" + struct.pack("<i", n)

    def array(a):
        return (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
            + (number(0) + b"\x85" + string(b"b") + b"\x87R(" + number(1) + b"(")
            + b"".join(number(side) for side in a.shape)
            + (b"tcnumpy\ndtype\n" + string(a.dtype.str[1:].encode()))
            + (number(0) + number(1) + b"\x87R(" + number(3) + string(b"<") + b"NNN")
            + (number(-1) + number(-1) + number(0) + b"tb\x89")
            + (string(a.tobytes()) + b"tb")
        )

    items = b"".join(
        string(name.encode()) + b"](" + array(kernel) + array(bias) + b"e"
        for name, (kernel, bias) in layers.items()
    )
    return b"\x80\x02}q\x00(" + items + b"u."


@pytest.fixture(scope="module")
def read_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("npy") / "weights.npy"

    def read(content):
        path.write_bytes(content)
        return npy.read(path)

    return read


def assert_holds(layers, expected):
    """The layers of `random_layers`, laid out by hand as RGB convolutions."""
    kernels = {
        "conv1_1": np.stack([expected["conv1_1"][0][:, :, i] for i in (2, 1, 0)], 2),
        "fc6": expected["fc6"][0].reshape(7, 7, 2, 5),
        "fc7": expected["fc7"][0].reshape(1, 1, 5, 5),
    }
    assert layers.keys() == kernels.keys()
    for name, layer in layers.items():
        np.testing.assert_array_equal(layer["kernel"], kernels[name])
        np.testing.assert_array_equal(layer["bias"], expected[name][1])


@pytest.mark.parametrize("layout", [old_layout, new_layout])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f2", "f8"])
def test_read_npy_gives_rgb_convolutions(read_bytes, layout, dtype):
    expected = random_layers(dtype)
    content = read_bytes(npy_bytes(layout(expected)))
    assert_holds(content.layers, expected)
    assert content.mean_rgb == (123.68, 116.779, 103.939)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_read_bare_pickle_gives_the_same(read_bytes, protocol, kind):
    expected = random_layers()
    content = pickle.dumps(kind(new_layout(expected)), protocol=protocol)
    assert_holds(read_bytes(content).layers, expected)


def test_read_python2_pickle_gives_the_same(read_bytes):
    expected = random_layers()
    content = python2_bytes(expected)
    reference = pickle.loads(content, encoding="latin1")
    np.testing.assert_array_equal(reference["fc6"][0], expected["fc6"][0])
    assert_holds(read_bytes(content).layers, expected)


def test_read_bytes_as_names_gives_the_same(read_bytes):
    expected = random_layers()
    entries = {
        name.encode(): {b"weights": kernel, b"biases": bias}
        for name, (kernel, bias) in expected.items()
    }
    assert_holds(read_bytes(npy_bytes(entries)).layers, expected)


def test_read_object_arrays_as_pairs_gives_the_same(read_bytes):
    expected = random_layers()
    entries = {}
    for name, pair in expected.items():
        entries[name] = np.empty(2, object)
        entries[name][:] = pair
    assert_holds(read_bytes(npy_bytes(entries)).layers, expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_read_fortran_order_gives_the_same(read_bytes, protocol):
    expected = random_layers()
    entries = {
        name: [np.asfortranarray(kernel), bias]
        for name, (kernel, bias) in expected.items()
    }
    assert_holds(read_bytes(pickle.dumps(entries, protocol=protocol)).layers, expected)


def test_read_header_version_2_gives_the_same(read_bytes):
    expected = random_layers()
    array = np.array(old_layout(expected), dtype=object)
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(2, 0))
    assert_holds(read_bytes(file.getvalue()).layers, expected)


def test_read_fc1_fc2_names_them_fc6_fc7(read_bytes):
    expected = random_layers()
    renamed = {"fc6": "fc1", "fc7": "fc2"}
    entries = {
        renamed.get(name, name): pair for name, pair in old_layout(expected).items()
    }
    assert_holds(read_bytes(npy_bytes(entries)).layers, expected)


def test_read_convolutional_fc_and_row_biases_gives_the_same(read_bytes):
    expected = random_layers()
    entries = {name: [k, b[None]] for name, (k, b) in expected.items()}
    entries["fc6"][0] = entries["fc6"][0].reshape(7, 7, 2, 5)
    entries["fc7"][0] = entries["fc7"][0].reshape(1, 1, 5, 5)
    assert_holds(read_bytes(npy_bytes(entries)).layers, expected)


def test_read_entries_that_are_no_layers_leaves_them_out(read_bytes):
    expected = random_layers()
    entries = {
        **old_layout(expected),
        "data": [],
        "epoch": np.int64(3),
        "name": "VGG",
        "scale": [np.ones(3)],
    }
    content = read_bytes(npy_bytes(entries))
    assert_holds(content.layers, expected)
    assert content.unused == ("data", "epoch", "name", "scale")


def test_read_conv1_1_on_rgb_equals_file_on_bgr(read_bytes):
    expected = random_layers()
    layers = read_bytes(npy_bytes(old_layout(expected))).layers
    patch = np.random.default_rng(1).uniform(0, 255, (3, 3, 3))  # RGB
    on_bgr = np.einsum("hwi,hwio->o", patch[..., ::-1], expected["conv1_1"][0])
    on_rgb = np.einsum("hwi,hwio->o", patch, layers["conv1_1"]["kernel"])
    np.testing.assert_allclose(on_rgb, on_bgr, rtol=1e-6)


def test_read_fc6_convolution_equals_dense(read_bytes):
    expected = random_layers()
    layers = read_bytes(npy_bytes(old_layout(expected))).layers
    features = np.random.default_rng(1).normal(size=(7, 7, 2))
    dense = features.reshape(-1) @ expected["fc6"][0]
    convolution = np.einsum("hwi,hwio->o", features, layers["fc6"]["kernel"])
    np.testing.assert_allclose(convolution, dense, rtol=1e-6)


class Hostile:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_read_hostile_pickle_is_refused_and_nothing_runs(read_bytes, tmp_path):
    sentinel = tmp_path / "ran"
    content = npy_bytes({"conv1_1": Hostile(os.mkdir, str(sentinel))})
    with pytest.raises(ValueError, match="asks for .*mkdir'; only .*nothing was run"):
        read_bytes(content)
    assert not sentinel.exists()


def test_read_hostile_state_of_an_array_is_refused(read_bytes, tmp_path):
    sentinel = tmp_path / "ran"
    layers = old_layout(random_layers())
    layers["fc6"][0] = np.array([Hostile(os.mkdir, str(sentinel))], object)
    with pytest.raises(ValueError, match="nothing was run"):
        read_bytes(npy_bytes(layers))
    assert not sentinel.exists()


def lying(shape, data=bytes(16), code=b"f4", order=b"<"):
    """The pickle of a layer whose kernel claims ``shape`` over ``data``."""
    sides = b"".join(b"\x8a\x09" + side.to_bytes(9, "little") for side in shape)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01(" + sides + b"tcnumpy\ndtype\n"
        + (b"U" + bytes([len(code)]) + code + b"\x85R(K\x03U\x01" + order + b"tb\x89")
        + (b"B" + struct.pack("<I", len(data)) + data + b"tb")
    )  # fmt: skip
    return b"\x80\x03}U\x07conv1_2](" + array + array + b"es."


def test_read_honest_shape_is_taken(read_bytes):
    layers = read_bytes(lying((2, 2))).layers
    assert layers["conv1_2"]["kernel"].shape == (1, 1, 2, 2)


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        (lying((2**40,)), "conv1_2: an array of 16 bytes claims another shape"),
        (lying((2**62, 4)), "conv1_2: an array of 16 bytes claims another shape"),
        (lying((3,)), "conv1_2: an array of 16 bytes claims another shape"),
        (lying((4,), code=b"O8"), "conv1_2: an array's type is not float16"),
        (lying((4,), code=b"V4"), "conv1_2: an array's type is not float16"),
        (lying((4,), order=b"|"), "conv1_2: an array's type is not float16"),
    ],
)
def test_read_lying_array_is_refused(read_bytes, kernel, problem):
    with pytest.raises(ValueError, match=problem):
        read_bytes(kernel)


SHARED = np.zeros(10_000, np.float32)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lying((2**40,)), id="shape"),
        pytest.param(lying((0, 2**60), data=b""), id="empty-shape"),
        pytest.param(b"\x80\x04" + b"}" * 400_000, id="many-objects"),
        pytest.param(
            npy_bytes({f"conv{i}_{j}": [SHARED] * 2 for i in (1, 2) for j in (1, 2)}),
            id="one-array-many-times",
        ),
    ],
)
def test_read_bomb_is_refused_in_bounded_memory(read_bytes, content):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="not a readable .npy"):
            read_bytes(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6  # the opcodes' limit times what the smallest of them makes


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>Not found</html>", "unknown"),
        (npy_bytes(np.ones((2, 3))), r"a plain array.*'shape': \(2, 3\)"),
        (npy_bytes("VGG"), "a plain array"),
        (pickle.dumps(np.ones(3)), "no dict"),
        (npy_bytes({3: np.ones(3)}), "it holds no dict of layers"),
        (npy_bytes({"conv1_1": [1, 2]}), "conv1_1: a int stands in place of an array"),
    ],
)
def test_read_other_content_says_what_it_is(read_bytes, content, problem):
    with pytest.raises(ValueError, match=f"weights.npy is not a readable.*{problem}"):
        read_bytes(content)


VALID = (
    npy_bytes(old_layout(random_layers("f2"))),
    python2_bytes(random_layers("f2")),
    pickle.dumps(new_layout(random_layers("f2")), protocol=2),
    pickle.dumps(new_layout(random_layers("f2")), protocol=5),
)


@pytest.mark.parametrize("content", VALID, ids=["npy", "python2", "pickle2", "pickle5"])
def test_read_truncated_anywhere_raises_value_error(read_bytes, content):
    for length in range(0, len(content), 7):
        with pytest.raises(ValueError, match="not a readable .npy"):
            read_bytes(content[:length])


@settings(max_examples=100)
@given(content=st.binary(max_size=200))
@pytest.mark.parametrize("start", [b"", b"\x80\x04", VALID[0][:128]])
def test_read_random_bytes_raises_value_error(read_bytes, start, content):
    with pytest.raises(ValueError, match="not a readable .npy"):
        read_bytes(start + content)


@settings(max_examples=150)
@given(
    content=st.sampled_from(VALID),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=5),
)
def test_read_altered_bytes_raises_value_error_or_reads(read_bytes, content, changes):
    altered = bytearray(content)
    for where, byte in changes:
        altered[int(where * (len(altered) - 1))] = byte
    try:
        read_bytes(bytes(altered))
    except ValueError as error:
        assert "not a readable .npy" in str(error)


OPCODES = (
    b"N \x88 ) ] } K\x00 U\x01< U\x02f4 G01234567 "
    b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x7f "
    b"( t e u s a b R h\x00 h\x01 h\x05 \x85 \x86 \x87"
).split(b" ")


@settings(max_examples=150)
@given(data=st.data())
@pytest.mark.parametrize("content", VALID[1:], ids=["python2", "pickle2", "pickle5"])
def test_read_altered_opcodes_raises_value_error_or_reads(read_bytes, content, data):
    starts = [position for _, _, position in pickletools.genops(content)]
    at = data.draw(st.integers(1, len(starts) - 1))
    kept = data.draw(st.integers(at, min(at + 2, len(starts) - 1)))
    inserted = data.draw(st.lists(st.sampled_from(OPCODES), max_size=3))
    altered = content[: starts[at]] + b"".join(inserted) + content[starts[kept] :]
    try:
        read_bytes(altered)
    except ValueError as error:
        assert "not a readable .npy" in str(error)
