import io
import os
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.weights.pth import read

torch = pytest.importorskip("torch", reason="torch is not installed")
functional = torch.nn.functional

LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
FCN_MEAN_BGR = torch.tensor([104.00698793, 116.66876762, 122.67891434])[:, None, None]
VGG16 = {
    "features.0": (4, 3, 3, 3),
    "features.28": (2, 4, 3, 3),
    "classifier.0": (5, 2 * 7 * 7),
    "classifier.3": (5, 5),
}
FCN16S = {
    "conv1_1": (4, 3, 3, 3),
    "fc6": (5, 2, 7, 7),
    "score_fr": (3, 5, 1, 1),
    "score_pool4": (3, 2, 1, 1),
}


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request, tmp_path):
    """Saves in the format since PyTorch 1.6, or in the one before."""

    def save(content, path=tmp_path / "vgg16.pth"):
        torch.save(content, path, _use_new_zipfile_serialization=request.param)
        return path

    return save


def state_dict(shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    tensors = OrderedDict()
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=generator)
        tensors[f"{name}.weight"] = weight.to(dtype)
        tensors[f"{name}.bias"] = torch.randn(shape[0], generator=generator).to(dtype)
    return tensors


def convolve(image, layer):
    """[C, H, W] by a layer of ours."""
    kernel = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy()).float()
    return functional.conv2d(image[None], kernel, torch.from_numpy(layer["bias"]))[0]


def assert_equal(layers, tensors):
    """The layers of a file hold the tensors of `VGG16`, but for conv1_1's scale."""
    for name, torch_name in (("conv5_3", "features.28"), ("fc7", "classifier.3")):
        weight = tensors[f"{torch_name}.weight"].float().numpy()
        kernel = layers[name]["kernel"].transpose(3, 2, 0, 1)
        np.testing.assert_array_equal(kernel.reshape(weight.shape), weight)
        bias = tensors[f"{torch_name}.bias"].float().numpy()
        np.testing.assert_array_equal(layers[name]["bias"], bias)
        assert layers[name]["kernel"].dtype == layers[name]["bias"].dtype == np.float32


def test_read_torchvision_computes_as_torch_on_its_pixels(save):
    tensors = state_dict(VGG16)
    content = read(save(tensors))
    image = 255 * torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(1))
    weight, bias = tensors["features.0.weight"], tensors["features.0.bias"]
    wanted = functional.conv2d(((image / 255 - MEAN) / STD)[None], weight, bias)[0]
    ours = convolve(
        image - torch.tensor(content.mean_rgb)[:, None, None], content.layers["conv1_1"]
    )
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    features = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(2))
    wanted = functional.linear(
        features.flatten(), tensors["classifier.0.weight"], tensors["classifier.0.bias"]
    )
    ours = convolve(features, content.layers["fc6"]).flatten()
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    assert_equal(content.layers, tensors)
    assert not content.unused


def test_read_fcn_computes_as_torch_on_its_pixels(save):
    tensors = state_dict(FCN16S)
    upsample = torch.nn.ConvTranspose2d(3, 3, 4, stride=2, bias=False)
    torch.nn.init.normal_(upsample.weight, generator=torch.Generator().manual_seed(3))
    tensors["upscore2.weight"] = upsample.weight
    content = read(save(tensors))
    image = 255 * torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(1))
    wanted = functional.conv2d(
        (image.flip(0) - FCN_MEAN_BGR)[None],
        tensors["conv1_1.weight"],
        tensors["conv1_1.bias"],
    )[0]
    ours = convolve(
        image - torch.tensor(content.mean_rgb)[:, None, None], content.layers["conv1_1"]
    )
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-2)
    kernel = content.layers["upscore2"]["kernel"]
    for i in range(3):  # What one pixel of class i adds around itself.
        pixel = torch.zeros(1, 3, 1, 1)
        pixel[0, i] = 1
        around = upsample(pixel).detach().numpy()[0].transpose(1, 2, 0)
        np.testing.assert_array_equal(kernel[:, :, i], around)
    assert set(content.layers) == {*FCN16S, "upscore2"}
    assert not content.unused


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict"])
def test_read_of_a_trainers_file_finds_the_weights(save, key):
    tensors = state_dict(VGG16)
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.ones(2)).sum().backward()
    optimizer.step()
    path = save(
        {
            "epoch": 7,
            "optim_state_dict": optimizer.state_dict(),
            key: OrderedDict((f"module.{name}", t) for name, t in tensors.items()),
            "best_mean_iu": np.float64(0.6),  # as pytorch-fcn's trainer has it
            "losses": [np.float32(1.5), 0.5],
        }
    )
    content = read(path)
    assert_equal(content.layers, tensors)
    assert content.unused == ("epoch", "optim_state_dict", "best_mean_iu", "losses")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_read_of_half_precision_becomes_float32(save, dtype):
    tensors = state_dict(VGG16, dtype)
    assert_equal(read(save(tensors)).layers, tensors)


def test_read_of_parameters_gives_their_numbers(save):
    tensors = state_dict(VGG16)
    path = save({name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()})
    assert_equal(read(path).layers, tensors)


def test_read_leaves_what_is_no_float_unused(save):
    tensors = state_dict(VGG16)
    tensors["features.1.num_batches_tracked"] = torch.tensor(3)
    tensors["classifier.6.weight"] = torch.ones(2, 5, dtype=torch.int8)
    tensors["version"] = "1"
    assert read(save(tensors)).unused == (
        "features.1.num_batches_tracked",
        "classifier.6.weight",
        "version",
    )


def test_read_of_another_network_has_no_layers(save):
    content = read(save(torch.nn.Linear(2, 2).state_dict()))
    assert content.layers == {}
    assert content.unused == ("weight", "bias")


def test_read_knows_a_file_by_its_content(save, tmp_path):
    tensors = state_dict(VGG16)
    path = save(tensors, tmp_path / "vgg16.safetensors")
    assert_equal(read(path).layers, tensors)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([1, 2], "holds a list, no state dict"),
        (torch.ones(3), "holds a Tensor, no state dict"),
        (torch.nn.Linear(2, 2), r"asks for 'torch.nn.*Linear'.*state_dict\(\) alone"),
        ({"a": bytearray(3)}, "asks for '.*bytearray'"),
        ({"a": list(range(20_000))}, r"more than 10,000 opcodes.*state_dict\(\) alone"),
        ({"a": torch.ones(1).expand(1000, 1000)}, "claim more bytes than it has"),
        (
            dict.fromkeys("abcdefgh", torch.ones(1).expand(1000)),
            "claim more bytes than it has",
        ),
    ],
)
def test_read_of_other_content_is_refused(save, content, problem):
    with pytest.raises(ValueError, match=f"vgg16.pth is no readable .pth: .*{problem}"):
        read(save(content))


class Malicious:
    """Makes a directory when a pickle of it is run."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_read_runs_nothing(save, tmp_path):
    path = save({"features.0.weight": Malicious(tmp_path / "made")})
    with pytest.raises(ValueError, match=r"asks for '\w+\.mkdir'; .* nothing was run"):
        read(path)
    assert not (tmp_path / "made").exists()
    torch.load(path, weights_only=False)  # The file would do it.
    assert (tmp_path / "made").exists()


def rewrite(path, change, compression=zipfile.ZIP_STORED):
    """Writes a .pth anew, with ``change(name, bytes)`` in place of each entry."""
    with zipfile.ZipFile(path) as old:
        entries = [change(name, old.read(name)) for name in old.namelist()]
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in entries:
            new.writestr(name, content)
    return path


def encode_chain():
    """A pickle that doubles its memory with each of its steps, of a few bytes each."""
    start = b"\x80\x02c_codecs\nencode\nq\x00X\x01\x00\x00\x00aX\x06\x00\x00\x00latin1"
    return start + b"\x86R" + 40 * b"q\x01h\x00h\x01X\x03\x00\x00\x00hex\x86R" + b"."


@pytest.mark.parametrize(
    ("change", "compression", "problem"),
    [
        (lambda name, data: (name, data), zipfile.ZIP_DEFLATED, "are compressed"),
        (
            lambda name, data: (name.replace("/data/0", "/data/a"), data),
            zipfile.ZIP_STORED,
            "not numbered",
        ),
        (
            lambda name, data: (name.replace("data.pkl", "other"), data),
            zipfile.ZIP_STORED,
            "0 entries data.pkl",
        ),
        (
            lambda name, data: (name.replace("version", "DATA.pkl"), data),
            zipfile.ZIP_STORED,
            "2 entries data.pkl",
        ),
        (
            lambda name, data: (
                name,
                encode_chain() if name.endswith("data.pkl") else data,
            ),
            zipfile.ZIP_STORED,
            "calls '_codecs.encode' in a strange way",
        ),
    ],
    ids=["compressed", "unnumbered", "no pickle", "two pickles", "chain"],
)
def test_read_of_a_strange_zip_is_refused(tmp_path, change, compression, problem):
    path = tmp_path / "vgg16.pth"
    torch.save(state_dict(VGG16), path)
    assert read(rewrite(path, lambda *entry: entry)).layers
    with pytest.raises(ValueError, match=f"vgg16.pth is no readable .pth: .*{problem}"):
        read(rewrite(path, change, compression))


def test_read_of_a_zip_that_claims_too_much_is_refused(tmp_path):
    path = tmp_path / "vgg16.pth"
    torch.save(state_dict(VGG16), path)
    content = path.read_bytes()
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"/data/0"))
    claimed = (2**31).to_bytes(4, "little")
    path.write_bytes(content[: entry + 24] + claimed + content[entry + 28 :])
    with pytest.raises(ValueError, match="its entries claim more bytes than it has"):
        read(path)


def test_read_without_a_file_raises_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "vgg16.pth")


def test_read_truncated_anywhere_raises_value_error(save):
    path = save(state_dict(VGG16 | {"classifier.6": (2000, 5)}))
    content = path.read_bytes()
    assert len(content) > 40_000
    for length in (*range(0, 4000, 97), *range(4000, len(content), 1000)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="vgg16.pth"):
            read(path)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("pth") / "file"


@given(content=st.binary(max_size=200))
@pytest.mark.parametrize("start", [b"", b"PK\x03\x04", LEGACY_MAGIC])
def test_read_random_bytes_raises_value_error(scratch, start, content):
    scratch.write_bytes(start + content)
    with pytest.raises(ValueError, match=str(scratch)):
        read(scratch)


@given(st.data())
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_read_with_bytes_changed_gives_layers_or_value_error(scratch, zipped, data):
    buffer = io.BytesIO()
    torch.save(state_dict(VGG16), buffer, _use_new_zipfile_serialization=zipped)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    scratch.write_bytes(content)
    try:
        read(scratch)
    except ValueError as error:
        assert str(scratch) in str(error)
