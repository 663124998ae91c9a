"""Files of our own, whole, damaged and with any metadata."""

import json
import os

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import fcn_jax
from fcn_jax.models.fcn import FCN, fields_of
from fcn_jax.weights import safetensors_file, tensors
from fcn_jax.weights.layers import network_of, shapes_of

MODEL = FCN(variant="fcn16s", num_classes=3, width=1 / 32, mean=(1.0, 2.0, 3.0))
NAMES = ("sky", "road", "car")
ARRAYS = {
    "body/conv1_1/kernel": np.arange(54, dtype=np.float32).reshape(3, 3, 3, 2),
    "head/score_fr/bias": np.zeros(3, np.float32),
    "other": np.zeros(1, np.float32),
}


def write(path, fields=None, arrays=ARRAYS):
    model = {"model": fields_of(MODEL), "class_names": NAMES}
    safetensors_file.write(path, arrays, model if fields is None else fields)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "fcn.safetensors"
    write(path)
    return path


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("safetensors") / "file"


def metadata_of(path):
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def rewrite(path, **metadata):
    """Changes the metadata of a saved file, as they are in it."""
    metadata = metadata_of(path) | metadata
    del metadata["sha256"]
    tensors.write(path, ARRAYS, metadata)


def write_header(path, entries, data=b""):
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def test_read_of_a_written_network_gives_all_of_it(saved):
    content = safetensors_file.read(saved)
    assert content.model == MODEL
    assert content.mean_rgb == MODEL.mean
    assert content.class_names == NAMES
    assert content.palette == content.size == ()
    assert content.unused == ("other",)
    assert content.source == "fcn_jax, RGB, H, W, I, O"
    np.testing.assert_array_equal(
        content.layers["conv1_1"]["kernel"], ARRAYS["body/conv1_1/kernel"]
    )


def test_read_of_palette_and_size_gives_them(tmp_path):
    palette = ((0, 0, 0), (1, 2, 3), (255, 0, 9))
    fields = {"model": fields_of(MODEL), "class_names": NAMES}
    write(tmp_path / "fcn", fields | {"palette": palette, "size": (30, 40)})
    content = safetensors_file.read(tmp_path / "fcn")
    assert content.palette == palette and content.size == (30, 40)


def test_read_of_an_older_file_takes_its_mean_rgb(tmp_path):
    fields = fields_of(MODEL)
    old = {k: v for k, v in fields.items() if k not in ("in_channels", "mean", "scale")}
    model = old | {"mean_rgb": fields["mean"]}
    write(tmp_path / "fcn", {"model": model, "class_names": NAMES})
    content = safetensors_file.read(tmp_path / "fcn")
    assert content.model == MODEL and content.mean_rgb == MODEL.mean
    assert content.channels == () and content.shown == (0, 1, 2)


def test_read_of_further_channels_gives_them(tmp_path):
    model = MODEL.clone(in_channels=4, mean=(1.0, 2.0, 3.0, 4.0), scale=(1, 1, 1, 0.5))
    names, shown = ("red", "green", "blue", "depth"), (3, 1, 0)
    fields = {"model": fields_of(model), "class_names": NAMES}
    write(tmp_path / "fcn", fields | {"channels": names, "shown": shown})
    content = safetensors_file.read(tmp_path / "fcn")
    assert content.model == model and content.mean_rgb == (1.0, 2.0, 3.0)
    assert (content.channels, content.shown) == (names, shown)


def test_read_of_a_written_vgg16_gives_its_mean_and_source(tmp_path):
    write(tmp_path / "vgg", {"mean_rgb": (1, 2.5, 3), "source": "fcn_jax, from Caffe"})
    content = safetensors_file.read(tmp_path / "vgg")
    assert content.model is None
    assert content.mean_rgb == (1, 2.5, 3)
    assert content.source == "fcn_jax, from Caffe"


def test_write_that_fails_leaves_the_old_file_alone(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_write_gives_the_file_the_usual_permissions(saved):
    usual = saved.with_name("usual")
    usual.touch()
    assert saved.stat().st_mode == usual.stat().st_mode


def test_read_of_a_type_numpy_lacks_is_refused(tmp_path):
    path = tmp_path / "vgg16.safetensors"
    entry = {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}
    write_header(path, {"features.0.bias": entry}, bytes(2))
    with pytest.raises(ValueError, match="holds a type that numpy lacks: .F8_E4M3"):
        safetensors_file.read(path)


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"version": "3"}, "format version 3, this fcn_jax reads version 2"),
        ({"model": "{"}, "damaged metadata: model"),
        ({"model": "[" * 100_000}, "damaged metadata: model"),
        ({"class_names": "3"}, "damaged metadata: class_names"),
        ({"class_names": '"abc"'}, "damaged metadata: class_names"),
        ({"class_names": '["a", "b"]'}, "damaged metadata: class_names has 2"),
        ({"class_names": '["a", "b", 3]'}, "damaged metadata: class_names has 3"),
        ({"size": "7"}, "damaged metadata: size"),
        ({"channels": "7"}, "damaged metadata: channels"),
        ({"channels": '["red"]'}, "damaged metadata: channels has 1"),
        ({"shown": "[0, 1, 3]"}, "damaged metadata: shown"),
        ({"shown": "null"}, "damaged metadata: shown"),
        ({"size": "[4, 0]"}, "damaged metadata: size"),
        ({"size": "[4, 1e3]"}, "damaged metadata: size"),
        ({"palette": "[[0, 0, 0]]"}, "damaged metadata: palette has 1"),
        ({"palette": "[[0, 0, 256], [0, 0, 0], [1, 2, 3]]"}, "metadata: palette has"),
        ({"palette": "[1, 2, 3]"}, "damaged metadata"),
        ({"model": "[]"}, "damaged metadata: model"),
    ],
)
def test_read_of_damaged_metadata_is_refused(saved, metadata, problem):
    rewrite(saved, **metadata)
    with pytest.raises(ValueError, match=f"fcn.safetensors .*{problem}"):
        safetensors_file.read(saved)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("depth", 19),
        ("parent", None),
        ("dtype", "float16"),
        ("variant", "fcn4s"),
        ("num_classes", "many"),
        ("num_classes", 21.0),
        ("num_classes", True),
        ("num_classes", 2**31),
        ("width", np.inf),
        ("width", 1e300),
        ("width", "1"),
        ("dropout", np.nan),
        ("dropout", [0.5]),
        ("mean", [1, 2, np.nan]),
        ("mean", [1, 2, 1e39]),
        ("mean", [[1], [2], [3]]),
        ("mean", [1, 2]),
        ("mean", "abc"),
        ("mean_rgb", [1, 2, 3]),
        ("in_channels", 4),
        ("in_channels", 2**60),
        ("in_channels", 1),
        ("in_channels", [3]),
        ("scale", [1, 2]),
        ("scale", [0, 1, 1]),
        ("scale", "abc"),
        ("scale", None),
        ("pool_scales", [np.inf, 1]),
        ("pool_scales", [False, 1]),
        ("learn_upsampling", "yes"),
        ("crop", ["center"]),
    ],
)
def test_read_of_a_field_no_network_has_names_it(tmp_path, field, value):
    path = tmp_path / "fcn.safetensors"
    model = fields_of(MODEL) | {field: value}
    write(path, {"model": model, "class_names": ()})
    with pytest.raises(ValueError, match=f"fcn.safetensors .*does not know: .*{field}"):
        safetensors_file.read(path)


@pytest.mark.parametrize("mean", [[1, 2], [1, 2, np.inf], "abc", None, [[], 1, 2]])
def test_read_of_a_mean_that_is_none_names_it(tmp_path, mean):
    write(tmp_path / "vgg", {"mean_rgb": mean, "source": "a test"})
    with pytest.raises(ValueError, match="vgg .*mean = "):
        safetensors_file.read(tmp_path / "vgg")


@pytest.mark.parametrize("part", ["kernel", "weights"])
def test_load_of_scores_without_a_bias_is_refused(tmp_path, part):
    arrays = {f"head/score_fr/{part}": np.zeros([1, 1, 4, 2], np.float32)}
    write(tmp_path / "fcn", {"mean_rgb": (1, 2, 3), "source": "a test"}, arrays)
    with pytest.raises(ValueError, match="fcn holds no network: score_fr has no bias"):
        fcn_jax.load(tmp_path / "fcn")


def test_load_of_scores_without_a_body_is_refused(tmp_path):
    arrays = {"head/score_fr/bias": np.zeros(2, np.float32)}
    arrays["head/upscore/scale"] = arrays["head/conv1_1/other"] = np.float32([0, 0])
    write(tmp_path / "fcn", {"mean_rgb": (1, 2, 3), "source": "a test"}, arrays)
    with pytest.raises(ValueError, match="body/fc6/kernel is missing"):
        fcn_jax.load(tmp_path / "fcn")


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, bool, np.complex64])
def test_read_leaves_other_types_than_floats_unused(tmp_path, dtype):
    name = "body/conv1_1/kernel"
    write(tmp_path / "fcn")
    arrays = ARRAYS | {name: ARRAYS[name].astype(dtype)}
    metadata = metadata_of(tmp_path / "fcn") | {"version": "1"}  # Without a digest.
    save_file(arrays, tmp_path / "fcn", metadata)
    content = safetensors_file.read(tmp_path / "fcn")
    assert "conv1_1" not in content.layers
    assert set(content.unused) == {name, "other"}


def test_read_of_a_header_far_larger_than_any_is_refused(tmp_path):
    path = tmp_path / "fcn.safetensors"
    write_header(path, {"__metadata__": {"note": " " * 2**20}})
    with pytest.raises(
        ValueError, match="fcn.safetensors is not .* its header has 1,0"
    ):
        safetensors_file.read(path)


def test_read_of_a_header_for_255_classes_gives_them(tmp_path):
    names, palette = [f"class {i} " * 9 for i in range(255)], [[255, 255, 255]] * 255
    model = fields_of(MODEL) | {"num_classes": 255}
    fields = {"model": model, "class_names": names, "palette": palette}
    write(tmp_path / "fcn", fields)
    assert safetensors_file.read(tmp_path / "fcn").class_names == tuple(names)


def test_read_truncated_anywhere_raises_value_error(saved):
    content = saved.read_bytes()
    for length in range(len(content)):
        saved.write_bytes(content[:length])
        with pytest.raises(ValueError, match="fcn.safetensors"):
            safetensors_file.read(saved)


@settings(max_examples=50)
@given(content=st.binary(max_size=100))
@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"\x40" + bytes(7) + b"{",
        b"\xff" * 7 + b"\x7f{",
        b'\x02\x00\x00\x00\x00\x00\x00\x00{"',
    ],
)
def test_read_random_bytes_raises_value_error(scratch, start, content):
    scratch.write_bytes(start + content)
    with pytest.raises(ValueError, match=str(scratch)):
        safetensors_file.read(scratch)


SIDES = st.sampled_from([0, 1, 2, 2**31, 2**40, 2**63, 2**64 - 1])


@given(shape=st.lists(SIDES, max_size=5), data=st.sampled_from([b"", bytes(4)]))
@example(shape=[0] * 70, data=b"")
def test_read_of_any_shape_gives_layers_or_value_error(scratch, shape, data):
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, len(data)]}
    write_header(scratch, {"features.0.weight": entry}, data)
    try:
        safetensors_file.read(scratch)
    except ValueError as error:
        assert str(scratch) in str(error)


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([2**31 - 1, 2**63, 10**400, 1e300, 1 / 64, -1.0, 1e-320]),
    lambda json: st.lists(json, max_size=3) | st.dictionaries(st.text(), json),
    max_leaves=5,
)
FIELDS = st.dictionaries(st.sampled_from(sorted(fields_of(MODEL))), ANY_JSON)


OTHERS = st.dictionaries(st.sampled_from(["class_names", "palette", "size"]), ANY_JSON)


@settings(max_examples=50)
@given(fields=FIELDS | ANY_JSON, others=OTHERS)
@example(fields={"num_classes": 2**31 - 1, "width": 1000}, others={})
@example(
    fields={"num_classes": 2**31 - 1, "width": 1000, "learn_upsampling": True},
    others={},
)
def test_any_fields_give_a_network_or_value_error(scratch, fields, others):
    if isinstance(fields, dict):
        fields = fields_of(MODEL) | fields
    write(scratch, {"model": fields, "class_names": [], **others})
    try:
        model = network_of(scratch, safetensors_file.read(scratch))
    except ValueError as error:
        assert str(scratch) in str(error)
    else:
        shapes = shapes_of(model)
        assert shapes["head/score_fr/bias"] == (model.num_classes,)


PLACES = st.tuples(
    st.sampled_from(["body", "head", "other"]),
    st.sampled_from(["score_fr", "score_pool4", "scale_pool4", "upscore", "conv1_1"]),
    st.sampled_from(["kernel", "bias", "scale"]),
).map("/".join)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 64]), max_size=4)


@settings(max_examples=50)
@given(shapes=st.dictionaries(PLACES, SHAPES), number=st.sampled_from([1, np.nan]))
@example(shapes={"head/score_fr/bias": [2], "head/scale_pool4/scale": []}, number=1)
@example(shapes={"head/score_fr/bias": []}, number=1)
def test_load_of_any_few_arrays_raises_value_error(scratch, shapes, number):
    arrays = {name: np.full(shape, number, "f4") for name, shape in shapes.items()}
    write(scratch, {"mean_rgb": (1, 2, 3), "source": "a test"}, arrays)
    with pytest.raises(ValueError, match=str(scratch)):
        fcn_jax.load(scratch)


@settings(max_examples=50)
@given(mean=ANY_JSON | st.lists(ANY_JSON, min_size=3, max_size=3), source=ANY_JSON)
def test_any_mean_gives_layers_or_value_error(scratch, mean, source):
    write(scratch, {"mean_rgb": mean, "source": source})
    try:
        content = safetensors_file.read(scratch)
    except ValueError as error:
        assert str(scratch) in str(error)
    else:
        assert np.isfinite(np.float32(content.mean_rgb)).all()
