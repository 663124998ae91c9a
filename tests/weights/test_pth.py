import os
import pickletools
import struct
import sys
import tracemalloc
import zipfile
from collections import Counter, OrderedDict

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.weights.pth import read

LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
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


def state_dict(shapes=VGG16, dtype=np.float32):
    rng = np.random.default_rng(0)
    arrays = OrderedDict()
    for name, shape in shapes.items():
        arrays[f"{name}.weight"] = rng.normal(size=shape).astype(dtype)
        arrays[f"{name}.bias"] = rng.normal(size=shape[0]).astype(dtype)
    return arrays


def torch_module():
    return pytest.importorskip("torch", reason="torch is not installed")


def as_tensors(content):
    """Plain data with torch's tensors in place of arrays, of the same strides."""
    torch = torch_module()
    if isinstance(content, np.ndarray):
        if content.dtype == ml_dtypes.bfloat16:
            bits = torch.from_numpy(content.view(np.int16))
            return bits.view(torch.bfloat16)
        return torch.from_numpy(content)
    if isinstance(content, dict):
        entries = {key: as_tensors(value) for key, value in content.items()}
        return OrderedDict(entries) if isinstance(content, OrderedDict) else entries
    return content


@pytest.fixture(params=["zip", "legacy", "zip by torch", "legacy by torch"])
def save(request, tmp_path, torch_files):
    """Saves in the format since PyTorch 1.6, or in the one before."""

    def save(content, path=tmp_path / "vgg16.pth"):
        if request.param.endswith("by torch"):
            zipped = request.param.startswith("zip")
            options = {"_use_new_zipfile_serialization": zipped}
            torch_module().save(as_tensors(content), path, **options)
            return path
        if request.param == "zip":
            return torch_files.write_zip(path, content)
        return torch_files.write_legacy(path, content)

    return save


def assert_equal(layers, arrays):
    """The layers of a file hold the arrays of `VGG16`, but for conv1_1's scale."""
    assert list(layers) == ["conv1_1", "conv5_3", "fc6", "fc7"]
    for name, torch_name in (("conv5_3", "features.28"), ("fc7", "classifier.3")):
        weight = arrays[f"{torch_name}.weight"]
        kernel = layers[name]["kernel"].transpose(3, 2, 0, 1)
        np.testing.assert_array_equal(kernel.reshape(weight.shape), weight)
        np.testing.assert_array_equal(
            layers[name]["bias"], arrays[f"{torch_name}.bias"]
        )
        assert (
            layers[name]["kernel"].dtype == layers[name]["bias"].dtype == weight.dtype
        )


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict"])
def test_read_of_a_trainers_file_finds_the_weights(save, key):
    arrays = state_dict()
    momentum = {
        i: {"momentum_buffer": array} for i, array in enumerate(arrays.values())
    }
    path = save(
        {
            "epoch": 7,
            "optim_state_dict": {"state": momentum, "param_groups": [{"lr": 0.1}]},
            key: OrderedDict((f"module.{name}", a) for name, a in arrays.items()),
            "best_mean_iu": np.float64(0.6),  # as pytorch-fcn's trainer has it
            "losses": [np.float32(1.5), 0.5],
            "milestones": Counter([3, 5]),
            3: "no name",
        }
    )
    content = read(path)
    assert_equal(content.layers, arrays)
    assert content.unused == (
        "epoch",
        "optim_state_dict",
        "best_mean_iu",
        "losses",
        "milestones",
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_read_of_half_precision_keeps_it(save, dtype):
    arrays = state_dict(dtype=dtype)
    assert_equal(read(save(arrays)).layers, arrays)


def test_read_of_double_precision_keeps_it(save):
    arrays = state_dict(dtype=np.float64)
    kernel = read(save(arrays)).layers["fc7"]["kernel"]
    assert kernel.dtype == np.float64
    np.testing.assert_array_equal(kernel[0, 0].T, arrays["classifier.3.weight"])


def test_read_of_views_gives_their_numbers(save):
    arrays = state_dict()
    grid = np.arange(400, dtype=np.float32).reshape(20, 20)
    arrays["classifier.3.weight"] = grid[3:8, 2:17:3].T
    arrays["classifier.3.bias"] = grid[::4, 7]
    arrays["features.28.weight"] = arrays["features.28.weight"].transpose(0, 1, 3, 2)
    assert_equal(read(save(arrays)).layers, arrays)


def test_read_leaves_what_is_no_float_unused(save):
    arrays = state_dict()
    arrays["features.1.num_batches_tracked"] = np.array(3)
    arrays["classifier.6.weight"] = np.ones((2, 5), np.int8)
    arrays["mask"] = np.ones(3, bool)
    arrays["version"] = "1"
    content = read(save(arrays))
    assert_equal(content.layers, arrays)
    assert content.unused == (
        "features.1.num_batches_tracked",
        "classifier.6.weight",
        "mask",
        "version",
    )


def test_read_of_another_network_has_no_layers(save):
    content = read(save({"weight": np.ones((2, 2)), "bias": np.ones((0, 3))}))
    assert content.layers == {}
    assert content.unused == ("weight", "bias")


def test_read_knows_a_file_by_its_content(save, tmp_path):
    arrays = state_dict()
    path = save(arrays, tmp_path / "vgg16.safetensors")
    assert_equal(read(path).layers, arrays)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([1, 2], "holds a list, no state dict"),
        (np.ones(3), "holds a Tensor, no state dict"),
        ({"a": bytearray(3)}, r"asks for '.*bytearray'.*state_dict\(\) alone"),
        ({"a": list(range(20_000))}, r"more than 10,000 opcodes.*state_dict\(\) alone"),
        ({"a": np.broadcast_to(np.float32(1), (1000, 1000))}, "claim more bytes than"),
        (
            dict.fromkeys("abcdefgh", np.broadcast_to(np.float32(1), 1000)),
            "claim more bytes than it has",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_read_of_other_content_is_refused(save, content, problem):
    with pytest.raises(
        ValueError, match=f"vgg16.pth is not a readable .pth: .*{problem}"
    ):
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


def test_read_truncated_anywhere_raises_value_error(save):
    path = save(state_dict(VGG16 | {"classifier.6": (2000, 5)}))
    content = path.read_bytes()
    assert len(content) > 40_000
    for length in (*range(0, 4000, 97), *range(4000, len(content), 1000)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="vgg16.pth"):
            read(path)


def test_read_needs_no_torch(tmp_path, torch_files, monkeypatch):
    path = torch_files.write_zip(tmp_path / "vgg16.pth", state_dict())
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_equal(read(path).layers, state_dict())


def test_read_of_parameters_gives_their_numbers(tmp_path, torch_files):
    arrays = state_dict()
    parameters = {name: torch_files.Parameter(array) for name, array in arrays.items()}
    for write in (torch_files.write_zip, torch_files.write_legacy):
        assert_equal(read(write(tmp_path / "vgg16.pth", parameters)).layers, arrays)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_read_of_big_endian_numbers_gives_them(tmp_path, torch_files, dtype):
    arrays = state_dict(dtype=dtype)
    path = torch_files.write_zip(tmp_path / "vgg16.pth", arrays, big_endian=True)
    assert_equal(read(path).layers, arrays)


def test_read_of_pickle_protocol_4_gives_the_same(tmp_path, torch_files):
    arrays = state_dict()
    path = torch_files.write_zip(tmp_path / "vgg16.pth", arrays, protocol=4)
    assert_equal(read(path).layers, arrays)


def test_read_of_python2_texts_gives_the_same(tmp_path, torch_files):
    arrays = state_dict()
    path = torch_files.write_legacy(
        tmp_path / "vgg16.pth",
        {"epoch": 3, "model_state_dict": arrays},
        pickler=torch_files.Python2Pickler,
    )
    content = read(path)
    assert_equal(content.layers, arrays)
    assert content.unused == ("epoch",)


def test_read_of_the_oldest_files_with_views_of_storages(tmp_path, torch_files):
    arrays = state_dict()
    for name, array in arrays.items():  # The view leaves the first number out.
        numbers = np.concatenate([[9, 9], array.ravel()]).astype(np.float32)
        arrays[name] = numbers[2:].reshape(array.shape)
    path = torch_files.write_legacy(tmp_path / "vgg16.pth", arrays, views=True)
    assert_equal(read(path).layers, arrays)


def test_read_without_a_file_raises_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "vgg16.pth")


def rewrite(path, change, compression=zipfile.ZIP_STORED):
    """Writes a .pth anew, with ``change(name, bytes)`` in place of each entry."""
    with zipfile.ZipFile(path) as old:
        entries = [change(name, old.read(name)) for name in old.namelist()]
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in entries:
            new.writestr(name, content)
    return path


def rename(old, new):
    return lambda name, data: (name.replace(old, new), data)


def put(entry, content):
    return lambda name, data: (name, content if name.endswith(entry) else data)


@pytest.fixture
def zipped(tmp_path, torch_files):
    return torch_files.write_zip(tmp_path / "vgg16.pth", state_dict())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (rename("/data/0", "/data/a"), "storage archive/data/0 is missing"),
        (rename("data.pkl", "other"), "0 entries data.pkl"),
        (rename("archive/version", "other/data.pkl"), "2 entries data.pkl"),
        (rename("version", "DATA.pkl"), "several entries of one name"),
        (put("byteorder", b"middle"), "neither little nor big"),
        (put("data/0", b"1234"), "features.0.weight: its tensor lies outside"),
        (put("data.pkl", b"\x80\x02K\x01Q."), "describes a storage in an unknown way"),
    ],
)
def test_read_of_a_strange_zip_is_refused(zipped, change, problem):
    assert read(rewrite(zipped, lambda *entry: entry)).layers
    with pytest.raises(
        ValueError, match=f"vgg16.pth is not a readable .pth: .*{problem}"
    ):
        read(rewrite(zipped, change))


def test_read_of_a_compressed_zip_is_refused(zipped):
    with pytest.raises(ValueError, match="are compressed or encrypted"):
        read(rewrite(zipped, lambda *entry: entry, zipfile.ZIP_DEFLATED))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_read_of_two_entries_of_one_name_is_refused(zipped):
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    with pytest.raises(ValueError, match="several entries of one name"):
        read(zipped)


def directory_entry(content, name):
    """Where the directory of a zip archive describes an entry."""
    return content.rindex(b"PK\x01\x02", 0, content.rindex(name))


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        (0, 7, "its directory is damaged"),
        (8, 1, "are compressed or encrypted"),
        (16, 7, "a checksum differs"),
        (20, 7, "are compressed or encrypted"),
        (24, 2**31, "are compressed or encrypted"),
        (28, 0, "its directory is damaged"),
        (28, 2**16 - 1, "have other names in its directory"),
        (46, 7, "have other names in its directory"),
        (42, 0, "overlap or are not where its"),
        (42, 1, "overlap or are not where its"),
        (42, 2**31, "overlap or are not where its"),
        (42, 2**32 - 1, "the file is above 4 GB"),
    ],
)
def test_read_of_a_lying_directory_is_refused(zipped, field, value, problem):
    content = bytearray(zipped.read_bytes())
    entry = directory_entry(content, b"/data/4")
    struct.pack_into("<I", content, entry + field, value)
    zipped.write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        read(zipped)


def test_read_without_checksums_gives_the_numbers(zipped):
    content = bytearray(zipped.read_bytes())
    for entry in (b"/data.pkl", b"/data/4"):
        struct.pack_into("<I", content, directory_entry(content, entry) + 16, 0)
    zipped.write_bytes(content)
    assert_equal(read(zipped).layers, state_dict())


def test_read_of_damaged_numbers_is_refused(zipped):
    content = zipped.read_bytes()
    number = state_dict()["classifier.3.weight"].tobytes()[:4]
    zipped.write_bytes(content.replace(number, b"1234"))
    with pytest.raises(ValueError, match="it is damaged: a checksum differs"):
        read(zipped)


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        (2**31, "entries claim more bytes than it has"),
        (2100, "overlap or are not where its"),
    ],
)
def test_read_of_a_size_that_is_too_large_is_refused(zipped, size, problem):
    content = bytearray(zipped.read_bytes())
    entry = directory_entry(content, b"/data/4")
    struct.pack_into("<2I", content, entry + 20, size, size)
    zipped.write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        read(zipped)


def test_read_of_an_archive_with_more_than_one_view_is_refused(tmp_path, torch_files):
    one = torch_files.write_zip(tmp_path / "one", state_dict()).read_bytes()
    other = torch_files.write_zip(tmp_path / "other", {"a": np.ones(1)}).read_bytes()
    comment = struct.pack("<H", len(other)) + other
    path = tmp_path / "vgg16.pth"
    for content in (
        one + other,
        one[:-2] + comment,
        one + other[other.index(b"PK\1\2") :],
        one[:-22] + other[-22:],
        one + b" ",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="its directory is not at its end"):
            read(path)


def long_end(content):
    """A zip archive with the directory's place in the long form, as PyTorch has it."""
    size, start = struct.unpack("<2L", content[-10:-2])
    end = len(content) - 22
    record = struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, 1, 1, size, start)
    locator = struct.pack("<LQL", 0, end, 1)
    return content[:end] + b"PK\6\6" + record + b"PK\6\7" + locator + content[-22:]


def test_read_of_a_long_end_of_the_directory_gives_the_numbers(zipped):
    content = long_end(zipped.read_bytes())
    zipped.write_bytes(content)
    with zipfile.ZipFile(zipped) as archive:
        assert archive.testzip() is None
    assert_equal(read(zipped).layers, state_dict())
    # The short form may then hold anything.
    zipped.write_bytes(content[:-10] + 8 * b"\xff" + content[-2:])
    assert_equal(read(zipped).layers, state_dict())


def test_read_of_a_very_long_directory_is_refused(zipped):
    with zipfile.ZipFile(zipped, "a") as archive:
        for i in range(17):
            archive.writestr(f"{i:065000}", b"")
    with pytest.raises(ValueError, match="its directory has more than 1,048,576 bytes"):
        read(zipped)


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "problem"),
    [
        (0, (10, 10), (10, 1), None),
        (99, (1, 1), (2**70, 5), None),
        (0, (0, 3), (3, 1), None),
        (1, (10, 10), (10, 1), "outside its storage"),
        (0, (10, 10), (11, 1), "outside its storage"),
        (100, (1,), (1,), "outside its storage"),
        (2**70, (1,), (1,), "outside its storage"),
        (0, (2,), (2**62,), "outside its storage"),
        (0, (0, 2**70), (1, 1), "dimension"),
        (-1, (1,), (1,), "a: its pickle describes a tensor in an unknown way"),
        (99, (3,), (-1,), "a tensor in an unknown way"),
        (0, (-1,), (1,), "a tensor in an unknown way"),
        (0, (1, 1), (1,), "a tensor in an unknown way"),
        (0, (1.0,), (1,), "a tensor in an unknown way"),
        (0, [1], (1,), "a tensor in an unknown way"),
        (0, (1,) * 65, (1,) * 65, "a tensor in an unknown way"),
        (0, (2**40,), (0,), "claim more bytes than it has"),
        (0, (2**2000,) * 64, (0,) * 64, "claim more bytes than it has"),
    ],
)
def test_read_of_a_lying_tensor_is_refused(
    tmp_path, torch_files, offset, shape, strides, problem
):
    numbers = np.arange(100, dtype=np.float32)
    lie = torch_files.Tensor(numbers, offset, shape, strides)
    for write in (torch_files.write_zip, torch_files.write_legacy):
        path = write(tmp_path / "a.pth", {"a": lie})
        if problem:
            with pytest.raises(
                ValueError, match=f"a.pth is not a readable .pth: .*{problem}"
            ):
                read(path)
        else:
            assert read(path).unused == ("a",)


def test_read_of_a_tensor_with_a_flipped_sign_is_refused(tmp_path, torch_files):
    lie = torch_files.Tensor(np.ones(3), 0, (3,), (1,), {"neg": True})
    with pytest.raises(ValueError, match="a tensor in an unknown way"):
        read(torch_files.write_zip(tmp_path / "a.pth", {"a": lie}))


def legacy(pickled, keys, storages=b""):
    """A file of the format before PyTorch 1.6."""
    return LEGACY_MAGIC + b"\x80\x02M\xe9\x03.\x80\x02}." + pickled + keys + storages


FLOATS = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x02tQ"
LONGS = FLOATS.replace(b"Float", b"Long")
KEY = b"\x80\x02]U\x010a."


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (legacy(b"\x80\x02}.", KEY), "storage 0 belongs to no tensor or comes twice"),
        (
            legacy(b"\x80\x02}U\x01a" + FLOATS + b"s.", b"\x80\x02](U\x010U\x010e.",
                   bytes(16)),
            "comes twice",
        ),
        (legacy(b"\x80\x02](" + FLOATS + LONGS + b"e.", KEY), "0 is of two types"),
        (legacy(b"\x80\x02}U\x01a" + FLOATS + b"s.", b"\x80\x02}."), "no list of"),
        (
            legacy(b"\x80\x02}U\x01a" + FLOATS + b"s.", KEY, b"\xff" * 8),
            "storages claim more bytes than it has",
        ),
    ],
)  # fmt: skip
def test_read_of_a_strange_legacy_file_is_refused(tmp_path, content, problem):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.pth is not a readable .pth: .*{problem}"):
        read(tmp_path / "a.pth")


def text(string):
    return b"X" + struct.pack("<I", len(string)) + string.encode()


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor\n(" + FLOATS + b"K\x00K\x01\x85K\x01\x85tR"
)  # fmt: skip


@pytest.mark.parametrize(
    "pickled",
    [
        pytest.param(
            text("x" * 100_000) + b"q\x00" + b"}(" + b"h\x00N" * 1000 + b"u.",
            id="one long name",
        ),
        pytest.param(
            b"}(" + b"".join(text(str(i)) + TENSOR for i in range(500)) + b"u.",
            id="one number many times",
        ),
        pytest.param(b"}q\x00" + text("state_dict") + b"h\x00s.", id="holds itself"),
        pytest.param(b"B\xff\xff\xff\xff.", id="length of bytes"),
        pytest.param(b"}" * 400_000 + b".", id="many objects"),
    ],
)  # fmt: skip
def test_read_of_a_bomb_takes_memory_for_its_size(tmp_path, torch_files, pickled):
    path = torch_files.write_zip(tmp_path / "a.pth", {"a": np.ones(2, np.float32)})
    rewrite(path, put("data.pkl", b"\x80\x02" + pickled))
    tracemalloc.start()
    try:
        read(path)
    except ValueError as error:
        assert "a.pth is not a readable .pth" in str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 5e6


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
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_read_with_bytes_changed_gives_layers_or_value_error(
    scratch, torch_files, kind, data
):
    getattr(torch_files, f"write_{kind}")(scratch, state_dict())
    content = bytearray(scratch.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    scratch.write_bytes(content)
    try:
        read(scratch)
    except ValueError as error:
        assert str(scratch) in str(error)


OPCODES = (
    b"N \x88 ) ] } K\x00 K\x64 U\x010 \x8a\x01\xff "
    b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x7f "
    b"( t e u s a b R Q h\x00 h\x01 h\x05 h\x08 \x85 \x86 \x87"
).split(b" ")


@given(data=st.data())
def test_read_with_opcodes_changed_gives_layers_or_value_error(
    scratch, torch_files, data
):
    torch_files.write_zip(scratch, {"state_dict": state_dict(), "loss": np.float64(1)})
    with zipfile.ZipFile(scratch) as archive:
        content = archive.read("archive/data.pkl")
    starts = [position for _, _, position in pickletools.genops(content)]
    at = data.draw(st.integers(1, len(starts) - 1))
    kept = data.draw(st.integers(at, min(at + 2, len(starts) - 1)))
    inserted = data.draw(st.lists(st.sampled_from(OPCODES), max_size=3))
    altered = content[: starts[at]] + b"".join(inserted) + content[starts[kept] :]
    rewrite(scratch, put("data.pkl", altered))
    try:
        read(scratch)
    except ValueError as error:
        assert str(scratch) in str(error)


# What follows takes PyTorch itself for a reference.


def torch_conv(image, layer):
    """[C, H, W] by a layer of this library."""
    torch = torch_module()
    kernel = torch.tensor(layer["kernel"].transpose(3, 2, 0, 1).copy()).float()
    bias = torch.tensor(layer["bias"])
    return torch.nn.functional.conv2d(image[None], kernel, bias)[0]


def torch_vector(*values):
    return torch_module().tensor(values)[:, None, None]


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def torch_save(request, tmp_path):
    def save(content):
        path = tmp_path / "vgg16.pth"
        options = {"_use_new_zipfile_serialization": request.param}
        torch_module().save(content, path, **options)
        return path

    return save


def test_read_torchvision_computes_as_torch_on_its_pixels(torch_save):
    torch = torch_module()
    tensors = as_tensors(state_dict())
    content = read(torch_save(tensors))
    image = 255 * torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(1))
    mean, std = torch_vector(0.485, 0.456, 0.406), torch_vector(0.229, 0.224, 0.225)
    weight, bias = tensors["features.0.weight"], tensors["features.0.bias"]
    pixels = (image / 255 - mean) / std
    wanted = torch.nn.functional.conv2d(pixels[None], weight, bias)[0]
    pixels = image - torch_vector(*content.mean_rgb)
    ours = torch_conv(pixels, content.layers["conv1_1"])
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    features = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(2))
    wanted = torch.nn.functional.linear(
        features.flatten(), tensors["classifier.0.weight"], tensors["classifier.0.bias"]
    )
    ours = torch_conv(features, content.layers["fc6"]).flatten()
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    assert not content.unused


def test_read_fcn_computes_as_torch_on_its_pixels(torch_save):
    torch = torch_module()
    tensors = as_tensors(state_dict(FCN16S))
    upsample = torch.nn.ConvTranspose2d(3, 3, 4, stride=2, bias=False)
    torch.nn.init.normal_(upsample.weight, generator=torch.Generator().manual_seed(3))
    tensors["upscore2.weight"] = upsample.weight
    content = read(torch_save(tensors))
    image = 255 * torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(1))
    pixels = image.flip(0) - torch_vector(104.00698793, 116.66876762, 122.67891434)
    wanted = torch.nn.functional.conv2d(
        pixels[None], tensors["conv1_1.weight"], tensors["conv1_1.bias"]
    )[0]
    pixels = image - torch_vector(*content.mean_rgb)
    ours = torch_conv(pixels, content.layers["conv1_1"])
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-2)
    kernel = content.layers["upscore2"]["kernel"]
    for i in range(3):  # What one pixel of class i adds around itself.
        pixel = torch.zeros(1, 3, 1, 1)
        pixel[0, i] = 1
        around = upsample(pixel).detach().numpy()[0].transpose(1, 2, 0)
        np.testing.assert_array_equal(kernel[:, :, i], around)
    assert set(content.layers) == {*FCN16S, "upscore2"}
    assert not content.unused


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_read_of_a_trained_network_gives_its_numbers(torch_save, optimizer):
    torch = torch_module()
    network = torch.nn.Sequential()
    network.features = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
    )
    network = torch.nn.DataParallel(network)
    options = {"momentum": 0.9} if optimizer == "SGD" else {}
    optimizer = getattr(torch.optim, optimizer)(network.parameters(), 0.1, **options)
    pixels = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    network.module.features(pixels).square().sum().backward()
    optimizer.step()
    state = {"state_dict": network.state_dict(), "optimizer": optimizer.state_dict()}
    content = read(torch_save(state))
    bias = network.module.features[0].bias.detach().numpy()
    np.testing.assert_array_equal(content.layers["conv1_1"]["bias"], bias)
    assert content.unused[-2:] == (
        "optimizer",
        "module.features.1.num_batches_tracked",
    )


def test_read_of_shared_and_transposed_tensors_gives_their_numbers(torch_save):
    torch = torch_module()
    generator = torch.Generator().manual_seed(1)
    shared = torch.randn(10, 10, generator=generator)
    tensors = {
        "classifier.3.weight": torch.nn.Parameter(shared[:5, 5:].T),
        "classifier.3.bias": shared.diagonal()[::2],
        "classifier.6.weight": shared[2:, 1:10:2].to(torch.bfloat16),
        "classifier.6.bias": shared[3, 1:9].half(),
    }
    layers = read(torch_save(tensors)).layers
    for name, layer in (("classifier.3", "fc7"), ("classifier.6", "fc8")):
        weight = tensors[f"{name}.weight"].detach().float().numpy()
        np.testing.assert_array_equal(layers[layer]["kernel"][0, 0].T, weight)
        bias = tensors[f"{name}.bias"].float().numpy()
        np.testing.assert_array_equal(layers[layer]["bias"], bias)


def test_read_of_a_whole_network_says_to_save_its_state_dict(torch_save):
    network = torch_module().nn.Linear(2, 2)
    problem = r"asks for 'torch.nn.*Linear'.*state_dict\(\) alone"
    with pytest.raises(ValueError, match=problem):
        read(torch_save(network))


def test_torch_loads_what_the_tests_write(tmp_path, torch_files):
    torch = torch_module()
    arrays = state_dict() | {"view": np.arange(6.0).reshape(2, 3).T}
    for write in (torch_files.write_zip, torch_files.write_legacy):
        tensors = torch.load(write(tmp_path / "vgg16.pth", arrays), weights_only=True)
        assert list(tensors) == list(arrays)
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor.numpy(), arrays[name])
