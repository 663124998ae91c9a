import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fcn_jax.weights import caffemodel
from fcn_jax.weights.layers import network_of

RNG = np.random.default_rng(0)
CONV = [RNG.normal(size=(4, 3, 3, 3)), RNG.normal(size=4)]
FC6 = [RNG.normal(size=(5, 2 * 7 * 7)), RNG.normal(size=5)]
FC7 = [RNG.normal(size=(6, 5)), RNG.normal(size=6)]
SCORE = [RNG.normal(size=(2, 6, 1, 1)), RNG.normal(size=2)]
UPSCORE = [RNG.normal(size=(2, 3, 4, 4))]
SCALE = [np.full(7, 0.01)]
LAYERS = {
    "data": [],
    "conv1_1": CONV,
    "relu1_1": [],
    "bn1": [np.ones(4), np.ones(4), np.ones(1)],
    "fc6": FC6,
    "fc7": FC7,
    "score_fr": SCORE,
    "upscore2": UPSCORE,
    "scale_pool4": SCALE,
}
FORMS = [
    dict(zip(("v1", "packed", "double"), flags, strict=True))
    for flags in itertools.product((False, True), repeat=3)
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_read_gives_each_layer_in_our_layout(tmp_path, reference, form):
    path = reference.write_caffemodel(tmp_path / "a", LAYERS, **form)
    content = caffemodel.read(path)
    layers, dtype = content.layers, np.float64 if form["double"] else np.float32
    assert list(layers) == [name for name in LAYERS if LAYERS[name] and name != "bn1"]
    assert content.unused == ("bn1",)
    assert all(
        array.dtype == dtype for layer in layers.values() for array in layer.values()
    )

    def same(array, expected):
        np.testing.assert_array_equal(array, expected.astype(dtype))

    for name, blobs in (("conv1_1", CONV), ("score_fr", SCORE)):
        same(layers[name]["bias"], blobs[1])
    for y, x, i in np.ndindex(3, 3, 3):  # Blue is the file's first channel, our last.
        same(layers["conv1_1"]["kernel"][y, x, i], CONV[0][:, 2 - i, y, x])
    for y, x, i in np.ndindex(7, 7, 2):
        same(layers["fc6"]["kernel"][y, x, i], FC6[0][:, 49 * i + 7 * y + x])
    same(layers["fc7"]["kernel"][0, 0], FC7[0].T)
    same(layers["score_fr"]["kernel"][0, 0], SCORE[0][:, :, 0, 0].T)
    for y, x in np.ndindex(4, 4):
        same(layers["upscore2"]["kernel"][y, x], UPSCORE[0][:, :, y, x])
    same(layers["scale_pool4"]["scale"], SCALE[0])


@pytest.mark.parametrize("packed", [True, False])
def test_read_of_legacy_shapes_equals_read_of_shapes(tmp_path, reference, packed):
    legacy, current = (
        caffemodel.read(
            reference.write_caffemodel(
                tmp_path / f"{legacy}", LAYERS, legacy=legacy, packed=packed
            )
        ).layers
        for legacy in (True, False)
    )
    for name, layer in current.items():
        for part, array in layer.items():
            assert legacy[name][part].shape == array.shape
            np.testing.assert_array_equal(legacy[name][part], array)


def test_read_of_more_unpacked_numbers_than_a_run_gives_all(tmp_path, reference):
    kernel = np.arange(2 * 3 * 3 * 4000.0).reshape(4000, 2, 3, 3)
    layers = {"conv1_2": [kernel, np.zeros(4000)]}
    path = reference.write_caffemodel(tmp_path / "a", layers, packed=False)
    assert kernel.size > 65_536
    read = caffemodel.read(path).layers["conv1_2"]["kernel"]
    np.testing.assert_array_equal(read.transpose(3, 2, 0, 1), kernel)


def test_read_mean_is_that_of_the_network_in_the_file(tmp_path, reference):
    vgg = reference.write_caffemodel(tmp_path / "a", {"conv1_1": CONV})
    fcn = reference.write_caffemodel(tmp_path / "b", {"score_fr": SCORE})
    assert caffemodel.read(vgg).mean_rgb == (123.68, 116.779, 103.939)
    assert caffemodel.read(fcn).mean_rgb == (122.67891434, 116.66876762, 104.00698793)


def test_read_source_tells_the_kind_of_layers(tmp_path, reference):
    for v1, kind in ((True, "V1 layers"), (False, "layers")):
        path = reference.write_caffemodel(tmp_path / "a", LAYERS, v1=v1)
        source = f"Caffe .caffemodel ({kind}), BGR, O, I, H, W"
        assert caffemodel.read(path).source == source


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        ({"conv1_1": CONV[:1]}, r"'conv1_1' has 1 blob\(s\), want 2"),
        ({"upscore2": UPSCORE * 2}, r"'upscore2' has 2 blob\(s\), want 1"),
        ({"bn": [np.zeros(1)] * 17}, "'bn' has more than 16 blobs"),
    ],
)
def test_read_of_wrong_blobs_names_the_layer(tmp_path, reference, layers, problem):
    path = reference.write_caffemodel(tmp_path / "a", layers)
    said = f"a is not a readable .caffemodel: .*{problem}"
    with pytest.raises(ValueError, match=said):
        caffemodel.read(path)


def field(number, payload):
    """A field of bytes shorter than 128, of a number below 16."""
    return bytes([number << 3 | 2, len(payload)]) + payload


@pytest.mark.parametrize(
    ("blob", "problem"),
    [
        (
            field(7, b"\x08\x02\x08\x02") + field(5, bytes(12)),
            "the shape .2, 2. but 3 numbers",
        ),
        (b"\x08\x05" + field(5, bytes(8)), "the shape .5, 0, 0, 0. but 2 numbers"),
        (field(7, b"\x0a\x21" + b"\x01" * 33), "more than 32 dimensions"),
        (field(5, bytes(7)), "multiple of element size"),
        (b"\x08" + b"\xff" * 10, "more than ten digits"),
        (b"\x0b", "wire type 3"),
        (b"\x2d\x00", "cut off"),
    ],
)
def test_read_of_a_damaged_blob_names_the_layer(tmp_path, blob, problem):
    layer = field(1, b"conv1_2") + field(7, blob)
    path = tmp_path / "a.caffemodel"
    path.write_bytes(b"\xa2\x06" + bytes([len(layer)]) + layer)
    with pytest.raises(
        ValueError, match=f"a.caffemodel is not .*'conv1_2': .*{problem}"
    ):
        caffemodel.read(path)


@pytest.mark.parametrize("packed", [True, False])
def test_read_truncated_anywhere_raises_or_gives_fewer_layers(
    tmp_path, reference, packed
):
    content = reference.write_caffemodel(
        tmp_path / "a", LAYERS, packed=packed
    ).read_bytes()
    path = tmp_path / "cut"
    for length in (*range(1, 300), *range(300, len(content), 61)):
        path.write_bytes(content[:length])
        try:
            assert len(caffemodel.read(path).layers) < len(LAYERS) - 3
        except ValueError as error:
            assert str(error).startswith(f"{path} is not a readable .caffemodel: ")


@pytest.mark.parametrize(
    "tiny", [b"\x08\x00", b"\x12\x00", b"\xa2\x06\x00", b"\xa2\x06\x02\x3a\x00"]
)
def test_read_of_a_million_tiny_fields_takes_little_memory(tmp_path, tiny):
    path = tmp_path / "a"
    path.write_bytes(tiny * 1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 10,000 fields"):
            caffemodel.read(path)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_read_of_a_dense_bilinear_kernel_makes_no_other(tmp_path, reference):
    kernel = np.zeros((100, 100, 16, 16))
    kernel[range(100), range(100)] = reference.bilinear(8)
    layers = {"score_fr": [np.zeros((100, 1, 1, 1)), np.zeros(100)]}
    path = reference.write_caffemodel(tmp_path / "fcn", layers | {"upscore8": [kernel]})
    content = caffemodel.read(path)
    tracemalloc.start()
    try:
        assert not network_of(path, content).learn_upsampling
        assert tracemalloc.get_traced_memory()[1] < kernel.size  # in bytes: a quarter
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("caffemodel") / "file"


@settings(max_examples=500)
@example(content=b"\x0a")
@given(content=st.binary(min_size=1, max_size=200))
@pytest.mark.parametrize(
    "start", [b"", b"\xa2\x06", b"\x12\x7f", b"\xa2\x06\x20\x3a\x10"]
)
def test_read_random_bytes_raises_only_value_error(scratch, start, content):
    scratch.write_bytes(start + content)
    try:
        caffemodel.read(scratch)
    except ValueError as error:
        assert str(scratch) in str(error)
