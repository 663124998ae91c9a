import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.weights.keras_h5 import read

h5py = pytest.importorskip("h5py", reason="h5py is not installed")

SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Name in Keras, name here and shape, of the first and the last layers.
LAYERS = (
    ("block1_conv1", "conv1_1", (3, 3, 3, 2)),
    ("block1_conv2", "conv1_2", (3, 3, 2, 2)),
    ("block5_conv3", "conv5_3", (3, 3, 2, 2)),
    ("fc1", "fc6", (7 * 7 * 2, 5)),
    ("fc2", "fc7", (5, 4)),
    ("predictions", "fc8", (4, 3)),
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vgg16.h5"


def weights(layers=LAYERS):
    """Kernel and bias by Keras's names, as Keras has them."""
    rng = np.random.default_rng(0)
    return {
        name: (
            rng.normal(size=shape).astype(np.float32),
            rng.normal(size=shape[-1]).astype(np.float32),
        )
        for name, _, shape in layers
    }


def write_applications(path, layers):
    """As the files of Keras applications."""
    with h5py.File(path, "w") as file:
        file.create_group("block1_pool")
        for name, (kernel, bias) in layers.items():
            file[f"{name}/{name}_W_1:0"], file[f"{name}/{name}_b_1:0"] = kernel, bias
            file[name].attrs["weight_names"] = [f"{name}_W_1:0", f"{name}_b_1:0"]


def write_weights(path, layers, root=""):
    """As save_weights of Keras 2."""
    with h5py.File(path, "a") as file:
        for name, (kernel, bias) in layers.items():
            file[f"{root}{name}/{name}/kernel:0"] = kernel
            file[f"{root}{name}/{name}/bias:0"] = bias


def write_model(path, layers):
    """As a whole model of Keras 2 with its optimiser, which has the same names."""
    write_weights(path, layers, "model_weights/")
    write_weights(path, layers, "optimizer_weights/")


def write_model_of_keras_3(path, layers):
    """As a whole model of Keras 3, VGG-16 one of its layers."""
    with h5py.File(path, "w") as file:
        file.create_group("model_weights/top_level_model_weights")
        for name, (kernel, bias) in layers.items():
            file[f"model_weights/vgg16/{name}/kernel"] = kernel
            file[f"model_weights/vgg16/{name}/bias"] = bias


@pytest.mark.parametrize(
    "write", [write_applications, write_weights, write_model, write_model_of_keras_3]
)
def test_read_of_every_layout_gives_its_numbers(path, write):
    written = weights()
    write(path, written)
    content = read(path)
    assert list(content.layers) == [name for _, name, _ in LAYERS]
    for keras_name, name, _ in LAYERS:
        kernel, bias = written[keras_name]
        layer = content.layers[name]
        assert layer["kernel"].ndim == 4
        np.testing.assert_array_equal(layer["bias"], bias)
        if name != "conv1_1":
            np.testing.assert_array_equal(layer["kernel"].reshape(kernel.shape), kernel)
    assert content.mean_rgb == (123.68, 116.779, 103.939)
    assert content.source == "Keras .h5, BGR, H, W, I, O"
    assert not content.unused


def test_read_of_counted_layers_finds_them_in_order(path):
    """Keras 3's .weights.h5 has conv2d, conv2d_1, ... in place of names."""
    convolutions = [2, 2, 3, 3, 3]
    names = [
        f"conv{block}_{i}"
        for block, number in enumerate(convolutions, 1)
        for i in range(1, number + 1)
    ]
    with h5py.File(path, "w") as file:
        for i in range(13):
            group = f"layers/conv2d_{i}" if i else "layers/conv2d"
            file[f"{group}/vars/0"] = np.full([3, 3, 3, 1], i, np.float32)
            file[f"{group}/vars/1"] = np.full([1], -i, np.float32)
        for i, group in enumerate(("dense", "dense_1", "dense_2")):
            file[f"layers/{group}/vars/0"] = np.full([49, 1], 100 + i, np.float32)
            file[f"layers/{group}/vars/1"] = np.full([1], -100 - i, np.float32)
        file["optimizer/vars/0"] = np.ones(3, np.float32)
    content = read(path)
    numbers = [*range(13), 100, 101, 102]
    for name, number in zip([*names, "fc6", "fc7", "fc8"], numbers, strict=True):
        assert (content.layers[name]["kernel"] == number).all()
        assert (content.layers[name]["bias"] == -number).all()
    assert len(content.layers) == 16
    assert content.unused == ("optimizer/vars/0",)


def test_read_conv1_1_on_rgb_equals_keras_on_bgr(path):
    write_applications(path, weights())
    kernel = weights()["block1_conv1"][0]
    patch = np.random.default_rng(1).uniform(0, 255, (3, 3, 3))
    content = read(path)
    wanted = np.einsum(
        "hwc,hwco->o", patch[..., ::-1] - (103.939, 116.779, 123.68), kernel
    )
    ours = np.einsum(
        "hwc,hwco->o", patch - content.mean_rgb, content.layers["conv1_1"]["kernel"]
    )
    np.testing.assert_allclose(ours, wanted, rtol=1e-9)


def test_read_fc6_convolution_equals_dense_on_hwc(path):
    write_applications(path, weights())
    features = np.random.default_rng(1).normal(size=(7, 7, 2))
    dense = features.reshape(-1) @ weights()["fc1"][0]
    convolution = np.einsum("hwc,hwco->o", features, read(path).layers["fc6"]["kernel"])
    np.testing.assert_allclose(convolution, dense, rtol=1e-9)


def test_read_of_notop_has_no_dense_layers(path):
    write_applications(path, weights(LAYERS[:3]))
    assert list(read(path).layers) == ["conv1_1", "conv1_2", "conv5_3"]


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
def test_read_of_other_floats_gives_their_numbers(path, dtype):
    kernel, bias = (array.astype(dtype) for array in weights()["fc2"])
    write_weights(path, {"fc2": (kernel, bias)})
    layer = read(path).layers["fc7"]
    np.testing.assert_array_equal(layer["kernel"], kernel[None, None])
    np.testing.assert_array_equal(layer["bias"], bias)


def test_read_leaves_incomplete_layers_unused(path):
    write_weights(path, weights())
    with h5py.File(path, "a") as file:
        del file["fc1/fc1/bias:0"]
        file["fc2/kernel:0"] = np.ones([5, 4], np.float32)
        file["block1_conv2/block1_conv2/gamma:0"] = np.ones(2, np.float32)
        file["dense/dense/kernel:0"] = np.ones([5, 4], np.float32)
        del file["predictions/predictions/bias:0"]
        file["predictions/predictions/bias:0"] = np.ones(3, np.int32)
    content = read(path)
    assert list(content.layers) == ["conv1_1", "conv1_2", "conv5_3"]
    assert content.unused == (
        "block1_conv2/block1_conv2/gamma:0",
        "dense/dense/kernel:0",
        "fc1/fc1/kernel:0",
        "fc2/fc2/bias:0",
        "fc2/fc2/kernel:0",
        "fc2/kernel:0",
        "predictions/predictions/bias:0",
        "predictions/predictions/kernel:0",
    )


def test_read_skips_objects(path):
    write_weights(path, weights(LAYERS[:1]))
    with h5py.File(path, "a") as file:
        file["fc1/kernel:0"] = np.array([b"a", b"bc"], h5py.string_dtype())
        file["fc1/bias:0"] = np.array([file.ref], h5py.ref_dtype)
    content = read(path)
    assert list(content.layers) == ["conv1_1"]
    assert content.unused == ("fc1/bias:0", "fc1/kernel:0")


def test_read_of_other_shapes_passes_them_unchanged(path):
    kernel = np.ones([50, 5], np.float32)  # no 7x7
    write_weights(path, {"fc1": (kernel, np.ones(5)), "fc2": (np.ones([]), np.ones(5))})
    layers = read(path).layers
    assert layers["fc6"]["kernel"].shape == (50, 5)
    assert layers["fc7"]["kernel"].shape == ()


@pytest.mark.parametrize(
    ("name", "kernel", "problem"),
    [
        ("block1_conv1", np.ones([64, 3, 3, 3]), r"\(64, 3, 3, 3\).*th kernels"),
        ("fc1", h5py.Empty("f4"), "fc1/fc1/kernel:0 is empty"),
    ],
)
def test_read_of_another_network_is_refused(path, name, kernel, problem):
    write_weights(path, {name: (kernel, np.ones(64))})
    with pytest.raises(
        ValueError, match=f"vgg16.h5 is not a readable Keras .h5: .*{problem}"
    ):
        read(path)


def test_read_follows_no_links_to_elsewhere(path, tmp_path):
    write_weights(path, weights(LAYERS[:1]))
    write_weights(tmp_path / "other.h5", weights())
    with h5py.File(path, "a") as file:
        file["fc1"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "fc1")
        file["fc2"] = h5py.SoftLink("/fc1")
        file["model_weights"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
    content = read(path)
    assert not content.layers
    assert content.unused == ("model_weights",)
    with h5py.File(path, "a") as file:
        del file["model_weights"]
    content = read(path)
    assert list(content.layers) == ["conv1_1"]
    assert content.unused == ("fc1", "fc2")


def test_read_of_a_name_with_a_slash_stays_in_the_file(path, tmp_path):
    kernel, bias = weights()["fc2"]
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["kernel:0"] = kernel
    with h5py.File(path, "w") as file:
        file["fc2/bias:0"] = bias
        file["fc2/ext"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
        file["fc2/ext_kernel:0"] = kernel
    content = path.read_bytes()
    assert content.count(b"ext_kernel:0") == 1
    path.write_bytes(content.replace(b"ext_kernel:0", b"ext/kernel:0"))
    assert "the name 'ext/kernel:0' has a slash" in refused(path)


def refused(path):
    with pytest.raises(
        ValueError, match="vgg16.h5 is not a readable Keras .h5"
    ) as caught:
        read(path)
    return str(caught.value)


def test_read_of_numbers_in_other_files_is_refused(path, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(400))
    with h5py.File(path, "w") as file:
        file["fc2/bias:0"] = np.ones(4, np.float32)
        external = [(str(tmp_path / "secret"), 0, 80)]
        file.create_dataset("fc2/kernel:0", (5, 4), "f4", external=external)
    assert "the numbers of fc2/kernel:0 lie in other files" in refused(path)


def test_read_of_virtual_numbers_is_refused(path, tmp_path):
    write_weights(tmp_path / "other.h5", weights())
    layout = h5py.VirtualLayout((5, 4), "f4")
    layout[:] = h5py.VirtualSource(
        str(tmp_path / "other.h5"), "fc2/fc2/kernel:0", (5, 4)
    )
    with h5py.File(path, "w") as file:
        file["fc2/bias:0"] = np.ones(4, np.float32)
        file.create_virtual_dataset("fc2/kernel:0", layout)
    assert "the numbers of fc2/kernel:0 lie in other files" in refused(path)


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"compression": "lzf"}])
def test_read_of_compressed_numbers_is_refused(path, options):
    with h5py.File(path, "w") as file:
        file["fc2/bias:0"] = np.ones(4, np.float32)
        file.create_dataset("fc2/kernel:0", data=np.ones([5, 4], "f4"), **options)
    assert "fc2/kernel:0 is compressed; run h5repack -f NONE" in refused(path)


def test_read_of_chunks_gives_their_numbers(path):
    kernel, bias = weights()["fc2"]
    with h5py.File(path, "w") as file:
        file["fc2/bias:0"] = bias
        file.create_dataset("fc2/kernel:0", data=kernel, chunks=(2, 3))
    np.testing.assert_array_equal(read(path).layers["fc7"]["kernel"][0, 0], kernel)


@pytest.mark.parametrize("chunks", [None, (1000, 1000)])
def test_read_of_numbers_never_written_is_refused(path, chunks):
    with h5py.File(path, "w") as file:
        file["fc2/bias:0"] = np.ones(4, np.float32)
        file.create_dataset("fc2/kernel:0", (10**6, 10**6), "f4", chunks=chunks)
    assert "its arrays claim more bytes than it has" in refused(path)


def test_read_of_one_dataset_under_many_names_is_refused(path):
    with h5py.File(path, "w") as file:
        file["data"] = np.ones([50, 50], np.float32)
        for name, *_ in LAYERS:
            file[f"{name}/kernel:0"] = file[f"{name}/bias:0"] = file["data"]
    assert "its arrays claim more bytes than it has" in refused(path)


def test_read_of_groups_in_a_circle_comes_to_an_end(path):
    write_weights(path, weights())
    with h5py.File(path, "a") as file:
        file["fc1/circle"] = file["/"]
        file["fc1/fc1/circle"] = file["fc1"]
    assert len(read(path).layers) == len(LAYERS)


def test_read_of_very_many_links_is_refused(path):
    with h5py.File(path, "w") as file:
        for i in range(2_001):
            file[f"{i % 100}/{i}"] = h5py.SoftLink("x")
    assert "more than 2,000 links" in refused(path)


def test_read_of_a_very_long_path_is_refused(path):
    with h5py.File(path, "w") as file:
        file["n" * 995 + "/kernel:0"] = np.float32(1)
    assert "a path has more than 1,000 characters" in refused(path)


def test_read_of_many_links_that_may_share_one_long_name_is_refused(path):
    with h5py.File(path, "w", libver="earliest") as file:
        for i in range(500):
            file[f"one/{i}"] = h5py.SoftLink("x")
        file["one/" + "n" * 40_000] = h5py.SoftLink("x")
    assert "its groups have too many long names" in refused(path)


def test_read_of_a_model_with_its_optimizer_is_no_bomb(path):
    write_weights(path, weights())
    with h5py.File(path, "a") as file:
        for i in range(300):
            file[f"optimizer/training/Adam/{i:030}_m:0"] = np.float32(i)
    assert len(read(path).layers) == len(LAYERS)


def test_read_of_very_deep_groups_is_refused(path):
    with h5py.File(path, "w") as file:
        file.create_group("a/" * 20)
    assert "groups deeper than 10" in refused(path)


def test_read_without_h5py_says_how_to_do(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"vgg16.h5 .*pip install 'fcn-jax\[keras\]'"):
        read(path)


def test_read_without_a_file_raises_file_not_found_error(path):
    with pytest.raises(FileNotFoundError):
        read(path)


def test_read_truncated_anywhere_raises_value_error(path):
    write_weights(path, weights())
    content = path.read_bytes()
    assert len(content) > 10_000
    for length in range(0, len(content), 251):
        path.write_bytes(content[:length])
        refused(path)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("keras") / "file"


@given(content=st.binary(max_size=200))
@pytest.mark.parametrize("version", [b"", b"\0\0\0\0\0\x08\x08\0", b"\x02\x08\x08\0"])
def test_read_random_bytes_raises_value_error(scratch, version, content):
    scratch.write_bytes(SIGNATURE + version + content)
    with pytest.raises(ValueError, match=str(scratch)):
        read(scratch)


@given(st.data())
@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_read_with_bytes_changed_gives_layers_or_value_error(scratch, version, data):
    with h5py.File(scratch, "w", libver=version) as file:
        kernel, bias = weights()["fc2"]
        file["fc2/fc2/kernel:0"], file["fc2/fc2/bias:0"] = kernel, bias
    content = bytearray(scratch.read_bytes())
    used = [i for i, byte in enumerate(content) if byte]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.sampled_from(used))] = data.draw(st.integers(0, 255))
    scratch.write_bytes(content)
    try:
        read(scratch)
    except ValueError as error:
        assert str(scratch) in str(error)
