import numpy as np
import pytest

from fcn_jax.__main__ import main
from fcn_jax.models.fcn import FCN
from fcn_jax.weights import load
from fcn_jax.weights.describe import describe
from fcn_jax.weights.layers import WeightFile


@pytest.fixture(scope="module")
def weights(reference):
    rng = np.random.default_rng(1)
    return reference.random_weights(rng, width=1 / 32, num_classes=3)


@pytest.fixture
def vgg(tmp_path, reference, weights):
    names = (*reference.BODY, "fc8")
    layers = {name: list(weights[name]) for name in names} | {"bn1": [np.ones(2)]}
    return reference.write_caffemodel(tmp_path / "vgg.caffemodel", layers)


def test_inspect_tells_what_the_file_is_and_each_layer(vgg, weights, capsys):
    assert main(["inspect", str(vgg)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        str(vgg),
        "VGG-16 classifier, 3 classes",
        "from Caffe .caffemodel (layers), BGR, O, I, H, W; below as RGB, H, W, I, O",
        "subtracts the mean RGB 123.68, 116.779, 103.939",
    ]
    kernel = weights["conv3_1"][0]
    statistics = kernel.min(), kernel.mean(), kernel.std(), kernel.max()
    (row,) = (line.split() for line in lines if line.startswith("conv3_1       kernel"))
    assert row[2:4] == ["3x3x4x8", "float32"]
    np.testing.assert_allclose([float(x) for x in row[4:]], statistics, rtol=1e-3)
    assert lines[-1] == "not used: bn1"


def test_inspect_of_an_fcn_tells_its_geometry_and_scales(tmp_path):
    model = FCN(num_classes=2, geometry="caffe", pool_scales=(0.01, 0.0001))
    layers = {"score_fr": {"kernel": np.zeros((1, 1, 4, 2)), "bias": np.zeros(2)}}
    content = WeightFile(layers, (1.0, 2.0, 3.0), "a test", model=model)
    assert describe("a", content).splitlines()[1] == (
        "fcn8s, 2 classes, geometry caffe, width 1, pool scales 0.01 and 0.0001, "
        "bilinear upsampling"
    )


def test_inspect_of_further_channels_tells_their_names_mean_and_scale():
    mean, scale = (1.0, 2.0, 3.0, 4000.0), (1.0, 1.0, 1.0, 0.05)
    model = FCN(num_classes=2, in_channels=4, mean=mean, scale=scale)
    layers = {"score_fr": {"kernel": np.zeros((1, 1, 4, 2)), "bias": np.zeros(2)}}
    content = WeightFile(layers, mean[:3], "a test", model=model)
    names = ("red", "green", "blue", "depth")
    for channels, suffix in ((), ""), (names, ": red, green, blue, depth"):
        lines = describe("a", content._replace(channels=channels)).splitlines()
        assert lines[3:6] == [
            f"4 input channels{suffix}",
            "subtracts the mean 1, 2, 3, 4000",
            "multiplies by the scale 1, 1, 1, 0.05",
        ]


def test_inspect_of_a_classifier_without_a_bias_tells_its_kernel():
    layers = {"fc6": {}, "fc8": {"kernel": np.zeros((1, 1, 4, 2))}}
    lines = describe("a", WeightFile(layers, (1.0, 2.0, 3.0), "a test")).splitlines()
    assert lines[1] == "VGG-16"
    assert lines[6].split()[:3] == ["fc8", "kernel", "1x1x4x2"]


def test_inspect_writes_names_that_would_control_a_terminal_in_letters():
    content = WeightFile({}, (1.0, 2.0, 3.0), "\ud83d", unused=("\x1b[2J", "a\nb", "ä"))
    lines = describe("a", content).splitlines()
    assert lines[2].startswith(r"from \ud83d; below")
    assert lines[-1] == r"not used: \x1b[2J, a\nb, ä"


def test_inspect_of_very_many_unused_names_counts_them():
    unused = tuple(map(str, range(150)))
    line = describe("a", WeightFile({}, (1.0, 2.0, 3.0), "", unused)).splitlines()[-1]
    assert line.startswith("not used: 0, 1, 2,")
    assert line.endswith(", 98, 99, ... and 50 more")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f4", np.float64])
def test_inspect_of_a_large_view_tells_its_statistics(dtype):
    numbers = np.random.default_rng(0).normal(size=(5, 3, 10_000)).astype(dtype)
    for array in (
        numbers,
        numbers.T,
        numbers[::2, ::-1],
        np.broadcast_to(numbers, (2, 5, 3, 10_000)),
    ):
        content = WeightFile({"fc6": {"kernel": array}}, (1.0, 2.0, 3.0), "a test")
        exact = array.astype(np.float64)
        statistics = exact.min(), exact.mean(), exact.std(), exact.max()
        (row,) = (line for line in describe("a", content).splitlines() if "fc6" in line)
        found = [float(x) for x in row.split()[4:]]
        np.testing.assert_allclose(found, statistics, rtol=1e-3, atol=1e-9)


def test_inspect_of_numbers_that_are_not_finite_shows_them():
    layers = {"fc6": {"kernel": np.array([1.0, np.nan])}}
    layers |= {"fc7": {"kernel": np.array([-1.0, 1e300])}}
    lines = describe("a", WeightFile(layers, (1.0, 2.0, 3.0), "a test")).splitlines()
    assert [line.split()[4:] for line in lines if line.startswith("fc")] == [
        ["nan", "nan", "nan", "nan"],
        ["-1", "inf", "nan", "inf"],
    ]


def test_inspect_of_a_file_that_does_not_fit_shows_it_and_fails(
    tmp_path, reference, weights, capsys
):
    layers = {name: list(weights[name]) for name in reference.BODY if name != "fc7"}
    path = reference.write_caffemodel(tmp_path / "vgg", layers)
    assert main(["inspect", str(path)]) == 1
    out, err = capsys.readouterr()
    assert "conv3_1       kernel" in out
    assert "fc7/kernel is missing, want (1, 1, 128, 128)" in err


def test_convert_writes_what_loads_the_same(vgg, tmp_path, capsys):
    target = tmp_path / "new" / "vgg.safetensors"
    assert main(["convert", str(vgg), str(target)]) == 0
    assert f"Written: {target}, from Caffe .caffemodel" in capsys.readouterr().out
    one, other = load.read(vgg), load.read(target)
    assert one.mean_rgb == other.mean_rgb
    for name, layer in one.params.items():
        for part, array in layer.items():
            np.testing.assert_array_equal(other.params[name][part], array)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("vgg.npy", "a.safetensors"), "vgg.npy does not exist"),
        (
            ("vgg17", "a.safetensors"),
            "vgg17 does not exist; weights with a name are vgg16,",
        ),
        (("vgg.npy", "a.npy"), "a.npy: name what is written .safetensors"),
    ],
)
def test_convert_of_what_cannot_be_ends_in_one_line(arguments, problem, capsys):
    assert main(["convert", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line
