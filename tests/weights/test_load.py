import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fcn_jax.models.fcn import FCN
from fcn_jax.network import Network, VGG16Weights
from fcn_jax.weights import load, tensors
from fcn_jax.weights.layers import shapes_of

WIDTH = 1 / 32
MODEL = FCN(variant="fcn16s", num_classes=3, width=WIDTH, mean=(1.0, 2.0, 3.0))

# Layer, inputs and outputs of VGG-16 at this width, and where torchvision keeps it.
LAYERS = (
    ("conv1_1", 3, 2, "features.0"),
    ("conv1_2", 2, 2, "features.2"),
    ("conv2_1", 2, 4, "features.5"),
    ("conv2_2", 4, 4, "features.7"),
    ("conv3_1", 4, 8, "features.10"),
    ("conv3_2", 8, 8, "features.12"),
    ("conv3_3", 8, 8, "features.14"),
    ("conv4_1", 8, 16, "features.17"),
    ("conv4_2", 16, 16, "features.19"),
    ("conv4_3", 16, 16, "features.21"),
    ("conv5_1", 16, 16, "features.24"),
    ("conv5_2", 16, 16, "features.26"),
    ("conv5_3", 16, 16, "features.28"),
    ("fc6", 16, 128, "classifier.0"),
    ("fc7", 128, 128, "classifier.3"),
    ("fc8", 128, 10, "classifier.6"),
)


def random_body(*, without=()):
    rng = np.random.default_rng(0)
    body = {}
    for name, inputs, outputs, _ in LAYERS:
        side = {"conv": 3, "fc6": 7}.get(name.rstrip("12345_"), 1)
        kernel = rng.normal(size=(side, side, inputs, outputs)).astype(np.float32)
        bias = rng.normal(size=outputs).astype(np.float32)
        if not name.startswith(tuple(without)):
            body[name] = {"kernel": kernel, "bias": bias}
    return body


def write_npy(path, body):
    entries = {name: [layer["kernel"], layer["bias"]] for name, layer in body.items()}
    if "conv1_1" in entries:
        entries["conv1_1"][0] = entries["conv1_1"][0][:, :, ::-1]  # BGR
    with open(path, "wb") as file:
        np.save(file, entries, allow_pickle=True)
    return path


def write_torchvision(path, body, dtype=np.float32):
    tensors = {}
    for name, _, outputs, torch_name in LAYERS:
        weight = body[name]["kernel"].transpose(3, 2, 0, 1)  # OIHW
        if name == "conv1_1":
            weight = weight * 255 * np.array([0.229, 0.224, 0.225])[:, None, None]
        if name.startswith("fc"):
            weight = weight.reshape(outputs, -1)
        tensors[f"{torch_name}.weight"] = np.ascontiguousarray(weight, dtype)
        tensors[f"{torch_name}.bias"] = body[name]["bias"].astype(dtype)
    save_file(tensors, path)
    return path


def assert_same(params, expected, **tolerance):
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for ours, wanted in zip(
        jax.tree.leaves(params), jax.tree.leaves(expected), strict=True
    ):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, wanted, **(tolerance or {"rtol": 0}))


def random_params(model):
    """Parameters of the right shapes, without the time to compile an init."""
    rng = np.random.default_rng(0)
    image = jnp.zeros([1, 1, 1, 3])
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL)


@pytest.fixture
def saved(tmp_path, params):
    path = tmp_path / "fcn.safetensors"
    load.save(path, Network(params, MODEL, ("sky", "road", "car")))
    return path


def test_read_npy_gives_its_numbers(tmp_path):
    weights = load.read(write_npy(tmp_path / "vgg16.npy", random_body()))
    assert isinstance(weights, VGG16Weights)
    assert_same(weights.params, random_body())
    assert weights.mean_rgb == (123.68, 116.779, 103.939)


def test_read_torchvision_gives_its_numbers(tmp_path):
    path = write_torchvision(tmp_path / "vgg16.safetensors", random_body())
    weights = load.read(path)
    assert_same(weights.params, random_body(), rtol=1e-6)
    np.testing.assert_allclose(weights.mean_rgb, (123.675, 116.28, 103.53), rtol=1e-12)


def test_read_bfloat16_becomes_float32(tmp_path):
    path = tmp_path / "vgg16.safetensors"
    write_torchvision(path, random_body(), ml_dtypes.bfloat16)
    assert_same(load.read(path).params, random_body(), rtol=2**-8)


def test_read_knows_a_file_by_its_content(tmp_path):
    body = random_body()
    as_npy = write_npy(tmp_path / "a.safetensors", body)
    as_safetensors = write_torchvision(tmp_path / "b.npy", body)
    assert load.read(as_npy).source == "caffe-tensorflow .npy, BGR, H, W, I, O"
    assert load.read(as_safetensors).source.startswith("PyTorch")


@pytest.mark.parametrize(
    "fields",
    [{"in_channels": 4, "mean": (1.0, 2.0, 3.0, 4.0)}, {"scale": (1.0, 1.0, 0.5)}],
)
def test_load_vgg16_of_a_network_that_needs_more_is_refused(tmp_path, fields):
    model = MODEL.clone(**fields)
    shapes = shapes_of(model)
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    net = Network(unflatten_dict(arrays, sep="/"), model)
    load.save(tmp_path / "fcn", net)
    with pytest.raises(ValueError, match="a VGG-16 takes RGB without a scale: use"):
        load.load_vgg16(tmp_path / "fcn")


def test_load_vgg16_of_a_saved_network_gives_its_body(saved, params):
    weights = load.load_vgg16(saved)
    assert_same(weights.params, params["body"])
    assert weights.mean_rgb == (1.0, 2.0, 3.0)


def test_load_vgg16_gives_jax_arrays(tmp_path):
    weights = load.load_vgg16(write_npy(tmp_path / "vgg16.npy", random_body()))
    assert_same(weights.params, random_body())
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(weights))


def test_read_without_fc_says_that_they_start_at_random(tmp_path, caplog):
    path = write_npy(tmp_path / "vgg16.npy", random_body(without=["fc"]))
    with caplog.at_level(logging.WARNING, "fcn_jax"):
        weights = load.read(path)
    assert_same(weights.params, random_body(without=["fc"]))
    assert caplog.messages == [f"{path} has no fc6 and fc7: they start at random"]


def test_read_with_fc_is_silent(tmp_path, caplog):
    load.read(write_npy(tmp_path / "vgg16.npy", random_body(without=["fc8"])))
    assert not caplog.messages


def test_read_lists_every_mismatch_at_once(tmp_path):
    body = random_body(without=["fc6"])
    del body["conv2_2"]
    body["conv3_1"]["kernel"] = body["conv3_1"]["kernel"][:, :, :3]
    body["conv4_1"]["bias"][0] = np.nan
    body["conv4_2"]["kernel"] = body["conv4_2"]["kernel"].astype(np.float64) * 1e300
    body["fc8"]["bias"] = body["fc8"]["bias"][:9]
    path = write_npy(tmp_path / "vgg16.npy", body)
    with pytest.raises(ValueError) as caught:
        load.read(path)
    first, *problems = str(caught.value).splitlines()
    assert first == f"{path} does not fit the network:"
    assert sorted(problems) == [
        "conv2_2/bias is missing, want (4,)",
        "conv2_2/kernel is missing, want (3, 3, 4, 4)",
        "conv3_1/kernel has shape (3, 3, 3, 8), want (3, 3, 4, 8)",
        "conv4_1/bias holds NaN or infinity",
        "conv4_2/kernel holds NaN or infinity",
        "fc6/bias is missing, want (128,)",
        "fc6/kernel is missing, want (7, 7, 16, 128)",
        "fc8/kernel has shape (1, 1, 128, 10), want (1, 1, 128, 9)",
    ]


@pytest.mark.parametrize("kernel", [np.ones(5), np.ones([3, 3, 3, 0]), np.float32(1)])
def test_read_odd_first_layer_is_a_mismatch(tmp_path, kernel):
    tensors = {"features.0.weight": np.asarray(kernel), "features.0.bias": np.ones(2)}
    save_file(tensors, tmp_path / "odd")
    with pytest.raises(ValueError, match=r"conv1_1/kernel .*, want \(3, 3, 3, 2\)"):
        load.read(tmp_path / "odd")


def test_read_weights_stay_when_the_file_changes(tmp_path, reference, torch_files):
    body = random_body()
    pairs = {
        name: [layer["kernel"].transpose(3, 2, 0, 1), layer["bias"]]
        for name, layer in body.items()
    }
    state = {f"{name}.weight": kernel for name, (kernel, _) in pairs.items()}
    state |= {f"{name}.bias": bias for name, (_, bias) in pairs.items()}
    for path in (
        write_npy(tmp_path / "a.npy", body),
        reference.write_caffemodel(tmp_path / "a.caffemodel", pairs),
        torch_files.write_zip(tmp_path / "a.pth", state),
        torch_files.write_legacy(tmp_path / "b.pth", state),
    ):
        params = load.read(path).params
        before = jax.tree.map(np.copy, params)
        with open(path, "r+b") as file:
            file.write(bytes(path.stat().st_size))
        assert_same(params, before)


def test_read_of_a_width_that_no_network_has_names_the_file(tmp_path):
    tensors = {"features.0.weight": np.ones(3), "features.0.bias": np.ones(64_001)}
    save_file(tensors, tmp_path / "odd")
    with pytest.raises(ValueError, match="odd holds no VGG-16: width = 1000.015625"):
        load.read(tmp_path / "odd")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html><body>404", "looks like an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        (b'name: "VGG_ILSVRC_16_layers"', "looks like a .prototxt"),
        (b"\x0a\x03VGG\x12\x7f", "is not a readable .caffemodel"),
        (b"\x89HDF\r\n\x1a\n", "is not a readable Keras .h5"),
        (b"\x00\x01\x02\x03", "is of no kind known here"),
    ],
)
@pytest.mark.parametrize("read", [load.read, load.load])
def test_read_of_another_file_says_what_it_is(tmp_path, read, content, problem):
    path = tmp_path / "vgg16.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"vgg16.npy {problem}"):
        read(path)


def test_save_then_load_gives_the_same_network(saved, params):
    net = load.load(saved)
    assert net.model == MODEL and net.class_names == ("sky", "road", "car")
    assert net.palette == net.size == ()
    assert_same(net.params, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(net))


def test_save_of_every_field_loads_the_same_model(tmp_path):
    model = FCN(
        variant="fcn8s",
        num_classes=2,
        crop="corner",
        mean=(4.0, 5.0, 6.0),
        width=WIDTH,
        dropout=0.25,
        score_init="zero",
        pool_scales=(0.01, 0.0001),
        learn_upsampling=True,
    )
    params = random_params(model)
    path = tmp_path / "new" / "directory" / "fcn.safetensors"
    net = Network(params, model, ("a", "b"), ((1, 2, 3), (4, 5, 6)), (30, 40))
    load.save(path, net)
    loaded = load.load(path)
    assert loaded.replace(params=None) == net.replace(params=None)
    assert_same(loaded.params, params)
    load.save(path, Network(params, model))
    assert load.load(path).replace(params=None) == Network(None, model)


def test_save_of_bfloat16_compute_loads_float32_compute(tmp_path, params):
    path = tmp_path / "fcn.safetensors"
    load.save(path, Network(params, MODEL.clone(dtype=jnp.bfloat16)))
    assert load.load(path).model == MODEL


def test_save_of_params_of_another_model_is_refused(tmp_path, params):
    path = tmp_path / "fcn.safetensors"
    with pytest.raises(ValueError, match=r"head/score_fr/bias has shape \(3,\), want"):
        load.save(path, Network(params, MODEL.clone(num_classes=4)))
    assert not path.exists()


def test_save_of_bare_parameters_is_refused(tmp_path, params):
    with pytest.raises(ValueError, match="pass the Network"):
        load.save(tmp_path / "fcn", params)
    assert not (tmp_path / "fcn").exists()


def test_load_outline_gives_the_network_with_shapes_for_arrays(saved):
    outline, net = load.load_outline(saved), load.load(saved)
    assert outline == jax.eval_shape(lambda: net)


def test_load_outline_refuses_a_network_that_the_file_cannot_hold(saved):
    arrays, metadata = tensors.read(saved)
    fields = json.loads(metadata["model"])
    metadata["model"] = json.dumps(fields | {"width": 1000})
    tensors.write(saved, arrays, {k: v for k, v in metadata.items() if k != "sha256"})
    with pytest.raises(ValueError, match="does not fit the network"):
        load.load_outline(saved)


def test_load_outline_refuses_files_of_other_programs(tmp_path):
    save_file({"features.0.bias": np.ones(64, np.float32)}, tmp_path / "x")
    with pytest.raises(ValueError, match="x has damaged metadata"):
        load.load_outline(tmp_path / "x")


def test_load_of_a_file_that_does_not_fit_lists_every_array(saved):
    arrays, metadata = tensors.read(saved)
    del arrays["body/conv1_1/kernel"], metadata["sha256"]
    arrays["head/score_fr/bias"] = np.zeros(5, np.float32)
    tensors.write(saved, arrays, metadata)
    with pytest.raises(ValueError) as caught:
        load.load(saved)
    assert sorted(str(caught.value).splitlines()[1:]) == [
        "body/conv1_1/kernel is missing, want (3, 3, 3, 2)",
        "head/score_fr/bias has shape (5,), want (3,)",
    ]


@pytest.mark.parametrize("write", [write_npy, write_torchvision])
def test_load_of_vgg16_names_load_vgg16(tmp_path, write):
    path = write(tmp_path / "vgg16", random_body())
    with pytest.raises(ValueError, match="fcn_jax.load_vgg16"):
        load.load(path)


def test_load_of_a_directory_loads_the_run(tmp_path, params):
    load.save(tmp_path / load.RUN_FILE, Network(params, MODEL))
    net = load.load(tmp_path)
    assert net.model == MODEL
    assert_same(net.params, params)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store") / "file"


@settings(max_examples=100)
@given(content=st.binary(max_size=100))
def test_read_random_bytes_raises_value_error(scratch, content):
    scratch.write_bytes(content)
    for read in (load.load, load.read):
        with pytest.raises(ValueError, match=str(scratch)):
            read(scratch)
