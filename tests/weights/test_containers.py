"""The same weights in every kind of file give the same parameters.

Each file is written here from kernels O, I, H, W, as its own programs write it.
"""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from fcn_jax.weights import load

WIDTH, CLASSES = 1 / 32, 3
FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
STD = np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def reference(reference, torch_files):
    return SimpleNamespace(**vars(reference), **vars(torch_files))


@pytest.fixture(scope="module")
def weights(reference):
    """{name: (kernel OIHW for RGB, bias)} of a VGG-16 and of an FCN's head."""
    rng = np.random.default_rng(5)
    return reference.random_weights(rng, width=WIDTH, num_classes=CLASSES)


@pytest.fixture(scope="module")
def body(weights):
    """The VGG-16: {name: (kernel, bias)}."""
    return {name: weights[name] for name in weights if name[:2] in ("co", "fc")}


def bgr(name, kernel):
    return kernel[:, ::-1] if name == "conv1_1" else kernel


def dense(kernel):
    """[O, I*H*W]: columns in C, H, W order."""
    return kernel.reshape(len(kernel), -1)


def write_caffe_vgg(path, body, reference):
    """As VGG's own file: V1 layers, old shapes, dense layers as 1x1xOxI."""
    layers = {
        name: [dense(kernel) if name[:2] == "fc" else bgr(name, kernel), bias]
        for name, (kernel, bias) in body.items()
    }
    reference.write_caffemodel(path, layers, v1=True, legacy=True)


def write_caffe_current(path, body, reference):
    layers = {name: [bgr(name, kernel), bias] for name, (kernel, bias) in body.items()}
    reference.write_caffemodel(path, layers)


def write_npy_old(path, body, reference):
    write_npy(path, {name: list(pair) for name, pair in hwc(body).items()})


def write_npy_new(path, body, reference):
    names = {"fc6": "fc1", "fc7": "fc2", "fc8": "fc3"}
    entries = {
        names.get(name, name): {"weights": kernel, "biases": bias}
        for name, (kernel, bias) in hwc(body).items()
    }
    write_npy(path, entries)


def hwc(body):
    """Kernels H, W, I, O from BGR; dense rows in H, W, C order."""
    layers = {}
    for name, (kernel, bias) in body.items():
        kernel = bgr(name, kernel).transpose(2, 3, 1, 0)
        if name[:2] == "fc":
            kernel = kernel.reshape(-1, kernel.shape[-1])
        layers[name] = np.ascontiguousarray(kernel), bias
    return layers


def write_npy(path, entries):
    with open(path, "wb") as file:
        np.save(file, entries, allow_pickle=True)


def write_keras(path, body, reference):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    names = {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}
    with h5py.File(path, "w") as file:
        for name, (kernel, bias) in hwc(body).items():
            keras_name = names.get(name, f"block{name[4:5]}_conv{name[6:]}")
            group = file.create_group(f"{keras_name}/{keras_name}")
            group["kernel:0"], group["bias:0"] = kernel, bias


def torchvision(body):
    """The state dict of torchvision: RGB in [0, 1], normalised."""
    tensors = {}
    names = [f"features.{i}" for i in FEATURES]
    names += [f"classifier.{i}" for i in (0, 3, 6)]
    for torch_name, (name, (kernel, bias)) in zip(names, body.items(), strict=True):
        kernel = np.float64(kernel)
        if name == "conv1_1":
            kernel = kernel * 255 * STD[:, None, None]
        if name[:2] == "fc":
            kernel = dense(kernel)
        tensors[f"{torch_name}.weight"] = np.float32(kernel)
        tensors[f"{torch_name}.bias"] = bias
    return tensors


def write_torchvision_safetensors(path, body, reference):
    save_file(torchvision(body), path)


def write_torchvision_pth(path, body, reference):
    reference.write_zip(path, torchvision(body))


def write_torchvision_old_pth(path, body, reference):
    reference.write_legacy(path, torchvision(body))


def assert_same(params, expected, **tolerance):
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), params, expected
    )


@pytest.mark.parametrize(
    ("write", "rtol"),
    [
        (write_caffe_vgg, 0),
        (write_caffe_current, 0),
        (write_npy_old, 0),
        (write_npy_new, 0),
        (write_keras, 0),
        (write_torchvision_safetensors, 1e-6),
        (write_torchvision_pth, 1e-6),
        (write_torchvision_old_pth, 1e-6),
    ],
)
def test_vgg16_from_any_file_is_the_same(tmp_path, reference, body, write, rtol):
    path = tmp_path / "weights.of-some-kind"
    write(path, body, reference)
    expected = {name: reference.conv_params(*pair) for name, pair in body.items()}
    assert_same(load.load_vgg16(path).params, expected, rtol=rtol)


@pytest.mark.parametrize("write", [write_caffe_vgg, write_npy_old, write_keras])
def test_convert_loses_nothing(tmp_path, reference, body, write):
    write(tmp_path / "file", body, reference)
    weights = load.read(tmp_path / "file")
    for _ in range(2):  # what is converted converts again
        load.save(tmp_path / "file", weights)
        converted = load.read(tmp_path / "file")
        assert_same(converted.params, weights.params, rtol=0)
        assert converted.mean_rgb == weights.mean_rgb
        assert converted.source == f"fcn_jax, from {weights.source}"


def fcn_layers(weights, reference, variant):
    """The blobs of a released network with kernels of its own for the upsamplings."""
    layers = {name: list(weights[name]) for name in reference.BODY}
    layers["conv1_1"][0] = bgr("conv1_1", layers["conv1_1"][0])
    for name in list(reference.SCORES)[: len(reference.UPSAMPLINGS[variant])]:
        layers[name] = list(weights[name])
    for name in reference.UPSAMPLINGS[variant]:
        layers[name] = [weights[name]]
    return layers


@pytest.mark.parametrize("variant", ["fcn32s", "fcn16s", "fcn8s"])
def test_fcn_from_any_file_is_the_same(tmp_path, reference, weights, variant):
    layers = fcn_layers(weights, reference, variant)
    reference.write_caffemodel(tmp_path / "a.caffemodel", layers)
    net = load.load(tmp_path / "a.caffemodel")
    assert_same(
        net.params,
        {
            "body": reference.body_params(weights),
            "head": reference.head_params(weights, variant, learned=True),
        },
        rtol=0,
    )
    load.save(tmp_path / "a.safetensors", net)
    assert load.load(tmp_path / "a.safetensors").model == net.model
    assert_same(load.load(tmp_path / "a.safetensors").params, net.params, rtol=0)

    state = {}
    for name, blobs in layers.items():
        for part, blob in zip(("weight", "bias"), blobs, strict=False):
            state[f"{name}.{part}"] = np.ascontiguousarray(blob)
    reference.write_zip(tmp_path / "a.pth", state)
    assert load.load(tmp_path / "a.pth").model == net.model
    assert_same(load.load(tmp_path / "a.pth").params, net.params, rtol=0)


@pytest.fixture
def fcn8s(tmp_path, reference, weights):
    """Writes an FCN-8s with some layers changed, and loads it."""

    def load_changed(**changed):
        layers = fcn_layers(weights, reference, "fcn8s") | changed
        layers = {name: blobs for name, blobs in layers.items() if blobs}
        return load.load(reference.write_caffemodel(tmp_path / "fcn", layers))

    return load_changed


def bilinear(reference, factor):
    return reference.bilinear(factor) * np.eye(CLASSES)[..., None, None]


def test_bilinear_upsampling_is_not_learned(fcn8s, reference):
    kernels = {"upscore2": 2, "upscore_pool4": 2, "upscore8": 8}
    dense = {name: [bilinear(reference, f)] for name, f in kernels.items()}
    grouped = {
        name: [np.stack([reference.bilinear(f)[None]] * CLASSES)]
        for name, f in kernels.items()
    }
    for changed in (dense, grouped, {name: None for name in kernels}):
        net = fcn8s(**changed)
        assert not net.model.learn_upsampling
        assert set(net.params["head"]) == {"score_fr", "score_pool4", "score_pool3"}


@pytest.mark.parametrize("at", [(0, 1, 1, 1), (1, 1, 0, 3)])
def test_one_other_number_makes_the_upsampling_learned(fcn8s, reference, at):
    kernels = {"upscore2": 2, "upscore_pool4": 2, "upscore8": 8}
    changed = {name: [bilinear(reference, f)] for name, f in kernels.items()}
    changed["upscore_pool4"][0][at] += 1e-4
    assert fcn8s(**changed).model.learn_upsampling


def test_scales_are_the_factors_that_were_meant(fcn8s):
    scales = {"scale_pool4": [np.full(16, 0.01)], "scale_pool3": [np.full(8, 0.0001)]}
    assert fcn8s(**scales).model.pool_scales == (0.01, 0.0001)
    assert fcn8s().model.pool_scales == (1.0, 1.0)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"scale_pool4": [np.arange(16.0)]}, "scale_pool4 has a factor for each"),
        ({"score_pool4": None}, "score_pool3 but no score_pool4"),
        ({"upscore2": None}, r"head/upscore2/kernel is missing, want \(4, 4, 3, 3\)"),
        (
            {"upscore2": [np.ones((CLASSES, 1, 4, 4))]},
            r"head/upscore2/kernel has shape \(4, 4, 3, 1\), want \(4, 4, 3, 3\)",
        ),
        (
            {"conv3_2": [np.ones((8, 8, 3, 1)), np.ones(8)], "fc7": None},
            r"conv3_2/kernel has shape \(3, 1, 8, 8\), want(.|\n)*fc7/bias is missing",
        ),
    ],
)
def test_fcn_that_does_not_fit_is_refused_with_its_layer(fcn8s, changed, problem):
    with pytest.raises(ValueError, match=problem):
        fcn8s(**changed)


def test_load_of_a_classifier_names_load_vgg16(tmp_path, body, reference):
    write_caffe_vgg(tmp_path / "vgg", body, reference)
    with pytest.raises(ValueError, match=r"vgg holds a VGG-16 .*fcn_jax.load_vgg16"):
        load.load(tmp_path / "vgg")


@pytest.mark.parametrize("write", [write_caffe_current, write_npy_old, write_keras])
def test_vgg19_is_refused_by_the_layer_that_is_too_many(
    tmp_path, reference, body, write
):
    write(tmp_path / "vgg", {**body, "conv3_4": body["conv3_3"]}, reference)
    with pytest.raises(ValueError, match="vgg is a VGG-19: it has .*conv"):
        load.load_vgg16(tmp_path / "vgg")


def test_torchvisions_vgg19_is_refused(tmp_path, body):
    tensors = torchvision(body) | {"features.34.weight": np.ones(1, np.float32)}
    save_file(tensors, tmp_path / "vgg")
    with pytest.raises(ValueError, match="vgg is a VGG-19: it has features.34"):
        load.load_vgg16(tmp_path / "vgg")


def test_load_vgg16_of_an_fcn_gives_its_body(tmp_path, reference, weights):
    layers = fcn_layers(weights, reference, "fcn16s")
    reference.write_caffemodel(tmp_path / "fcn", layers)
    assert_same(
        load.load_vgg16(tmp_path / "fcn").params,
        reference.body_params(weights),
        rtol=0,
    )


def test_other_layers_are_named_in_the_log(tmp_path, body, reference, caplog):
    layers = {name: list(pair) for name, pair in body.items()}
    layers |= {"bn1": [np.ones(3)], "prob": [np.ones(2)]}
    reference.write_caffemodel(tmp_path / "vgg", layers)
    with caplog.at_level("INFO", "fcn_jax"):
        load.load_vgg16(tmp_path / "vgg")
    assert caplog.messages == [f"{tmp_path}/vgg: not used: bn1, prob"]


def test_model_of_a_caffemodel_applies_at_any_size(fcn8s):
    net = fcn8s()
    shape = jax.eval_shape(
        lambda x: net.model.apply({"params": net.params}, x), np.ones([1, 5, 9, 3])
    )
    assert shape.shape == (1, 5, 9, CLASSES)
