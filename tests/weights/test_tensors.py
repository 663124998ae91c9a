import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from fcn_jax.weights import tensors

ARRAYS = {
    "a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "step": np.asarray(7, np.int32),
    "empty": np.zeros((0, 2), np.float32),
}
METADATA = {"format": "a test", "names": '["sky", "Straße"]', "zeros": "0" * 70}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("tensors") / "a.safetensors"
    tensors.write(path, ARRAYS, METADATA)
    return path


def test_other_library_reads_the_same_arrays(written):
    found = load_file(written)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype and found[name].shape == array.shape


def test_arrays_and_metadata_are_read_back(written):
    arrays, metadata = tensors.read(written, checked=True)
    tensors.check_digest(written, metadata)
    assert metadata == METADATA | {"sha256": metadata["sha256"]}
    assert {name: a.tolist() for name, a in arrays.items()} == {
        name: a.tolist() for name, a in ARRAYS.items()
    }


def test_equal_content_gives_equal_bytes(written, tmp_path):
    tensors.write(tmp_path / "b", dict(ARRAYS), dict(METADATA))
    assert (tmp_path / "b").read_bytes() == written.read_bytes()


@given(bit=st.integers(0), cut=st.integers(0))
def test_no_flipped_bit_and_no_cut_passes(written, bit, cut):
    content = bytearray(written.read_bytes())
    bit %= 8 * len(content)
    content[bit // 8] ^= 1 << bit % 8
    for damaged in (content, written.read_bytes()[: cut % len(content)]):
        path = written.with_name("damaged")
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged|not a readable"):
            tensors.read(path, checked=True)
        with pytest.raises(ValueError, match="damaged|not a readable"):
            tensors.check_digest(path, tensors.read_metadata(path))


def test_digest_holds_over_several_chunks(written, monkeypatch):
    monkeypatch.setattr(tensors, "_CHUNK", 5)
    arrays, _ = tensors.read(written, checked=True)
    np.testing.assert_array_equal(arrays["a/kernel"], ARRAYS["a/kernel"])


def test_file_without_a_digest_is_read_only_unchecked(tmp_path):
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "x")
    assert tensors.read(tmp_path / "x")[0]["x"].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="damaged"):
        tensors.read(tmp_path / "x", checked=True)


def test_jax_shares_the_memory_of_the_arrays(written):
    array = tensors.read(written)[0]["a/kernel"]
    assert array.ctypes.data % 64 == 0 and array.flags.writeable
    placed = jax.device_put(array, jax.devices("cpu")[0])
    assert placed.unsafe_buffer_pointer() == array.ctypes.data


def test_every_type_of_numpy_is_read(tmp_path):
    types = "?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"
    arrays = {name: np.arange(3).astype(name) for name in types}
    save_file(arrays, tmp_path / "x")
    for name, found in tensors.read(tmp_path / "x")[0].items():
        assert found.dtype == np.dtype(name)
        np.testing.assert_array_equal(found, arrays[name])


def test_shapes_are_read_alone(written):
    assert tensors.read_shapes(written) == {k: a.shape for k, a in ARRAYS.items()}


def test_bfloat16_of_other_programs_is_read(tmp_path):
    array = np.arange(3).astype(ml_dtypes.bfloat16)
    save_file({"x": array}, tmp_path / "x")
    arrays, metadata = tensors.read(tmp_path / "x")
    assert arrays["x"].tolist() == [0, 1, 2] and metadata == {}
