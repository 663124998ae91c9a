"""Files of every kind with some layers, shapes, numbers or metadata changed.

Whatever is changed, a file gives finite weights that fit their network, or a ValueError
that names it. Warnings are errors, so no number may overflow in silence either.
"""

import io
import json
import pickle
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fcn_jax.__main__ import main
from fcn_jax.models.fcn import FCN, fields_of
from fcn_jax.network import Network
from fcn_jax.weights import load
from fcn_jax.weights.layers import shapes_of

MODEL = FCN(variant="fcn16s", num_classes=2, width=1 / 64, mean=(1.0, 2.0, 3.0))
TYPES = ["float16", "float64", "bfloat16", "int8", "uint64", "bool", "complex64"]
NUMBERS = [np.nan, np.inf, -np.inf, 1e300, -1.0, 0.0]
# Layers that a thin FCN-16s lacks, kernels [O, I, H, W].
FURTHER = {
    "fc8": [np.ones((3, 64, 1, 1)), np.ones(3)],
    "conv3_4": [np.ones((4, 4, 3, 3)), np.ones(4)],
    "score_pool3": [np.ones((2, 4, 1, 1)), np.ones(2)],
    "scale_pool4": [np.full(8, 0.01)],
    "scale_pool3": [np.full(4, 1e-4)],
    "upscore2": [np.ones((2, 2, 4, 4))],
    "upscore16": [np.ones((2, 1, 32, 32))],
    "upscore": [np.ones((2, 2, 64, 64))],
}


def odd_shape(array, how):
    """An array of another shape, with some of its numbers."""
    return {
        "flat": array.reshape(-1),
        "one": array.reshape(-1)[:1],
        "none": array[:0],
        "scalar": array.reshape(-1)[0],
        "turned": array.T,
        "shorter": array[:-1],
        "deeper": array[None],
        "twice": np.concatenate([array, array]),
    }[how]


SHAPES = ["flat", "one", "none", "scalar", "turned", "shorter", "deeper", "twice"]
# What to do to which blob of which layer. Most of what readers do depends on the first.
LAYERS = st.sampled_from(["conv1_1", "score_fr", "score_pool4"]) | st.integers(0, 20)
CHANGES = st.lists(
    st.tuples(
        st.one_of(
            st.tuples(st.just("drop"), st.none()),
            st.tuples(st.just("cut"), st.none()),
            st.tuples(st.just("add"), st.sampled_from(sorted(FURTHER))),
            st.tuples(st.just("shape"), st.sampled_from(SHAPES)),
            st.tuples(st.just("number"), st.sampled_from(NUMBERS)),
            st.tuples(st.just("type"), st.sampled_from(TYPES)),
        ),
        LAYERS,
        st.integers(0, 1),
    ),
    max_size=4,
)


def changed(layers, changes):
    """The layers with each change that is possible."""
    layers = {name: list(blobs) for name, blobs in layers.items()}
    for (kind, what), name, at in changes:
        name = name if isinstance(name, str) else sorted(layers)[name % len(layers)]
        if kind == "add":
            layers[what] = [np.float32(blob) for blob in FURTHER[what]]
        elif at >= len(layers.get(name, ())):
            continue
        elif kind == "drop":
            del layers[name]
        elif kind == "cut":
            del layers[name][at]
        else:
            layers[name][at] = changed_blob(layers[name][at], kind, what)
    return layers


def changed_blob(blob, kind, what):
    if kind == "shape":
        return np.ascontiguousarray(odd_shape(blob, what)) if blob.size else blob
    with np.errstate(all="ignore"):
        if kind == "type":
            return blob.real.astype(what)
        # Only float64 holds such a number.
        blob = blob.astype(np.float64 if what == 1e300 else blob.dtype)
        blob.reshape(-1)[-1:] = np.asarray(what).astype(blob.dtype)
        return blob


def parts(layers, first="weight"):
    for name, blobs in layers.items():
        for part, blob in zip((first, "bias"), blobs, strict=False):
            yield name, "scale" if name.startswith("scale") else part, blob


def write_caffemodel(path, layers, writers):
    writers.write_caffemodel(
        path,
        {n: [np.float64(b.real) for b in blobs] for n, blobs in layers.items()},
        double=True,
    )


def write_npy(path, layers, writers):
    entries = {name: [hwc(b) for b in blobs] for name, blobs in layers.items()}
    with open(path, "wb") as file:
        np.save(file, entries, allow_pickle=True)


def write_pickle(path, layers, writers):
    entries = {}
    for name, part, blob in parts(layers, "weights"):
        part = "biases" if part == "bias" else part
        entries.setdefault(name, {})[part] = hwc(blob)
    path.write_bytes(pickle.dumps(entries, 2))


def hwc(blob):
    return blob.transpose(2, 3, 1, 0) if blob.ndim == 4 else blob


def write_torch(path, layers, writers, write="write_zip"):
    known = ("float32", "float16", "float64", "bfloat16", "int8", "bool")
    getattr(writers, write)(
        path,
        {f"{n}.{p}": b for n, p, b in parts(layers) if b.dtype.name in known},
    )


def write_old_torch(path, layers, writers):
    write_torch(path, layers, writers, "write_legacy")


def write_torch_safetensors(path, layers, writers):
    save_file({f"{n}.{p}": b for n, p, b in parts(layers)}, path)


def write_keras(path, layers, writers):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    with h5py.File(path, "w") as file:
        for name, part, blob in parts(layers, "kernel"):
            keras = {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}.get(
                name, f"block{name[4:5]}_conv{name[6:]}"
            )
            if blob.dtype != ml_dtypes.bfloat16:
                file[f"{keras}/{part}:0"] = hwc(blob)


def write_own(path, layers, writers, **metadata):
    arrays = {}
    for name, part, blob in parts(layers, "kernel"):
        place = "body" if name in writers.BODY else "head"
        arrays[f"{place}/{name}/{part}"] = np.ascontiguousarray(hwc(blob))
    fields = {"mean_rgb": [1, 2, 3], "source": "a test"}
    fields = {key: json.dumps(value) for key, value in fields.items()}
    save_file(arrays, path, {"format": "fcn_jax", "version": "1"} | fields | metadata)


def write_own_network(path, layers, writers):
    fields = {"model": fields_of(MODEL), "class_names": []}
    metadata = {key: json.dumps(value) for key, value in fields.items()}
    write_own(path, layers, writers, **metadata)


KINDS = [
    write_caffemodel, write_npy, write_pickle, write_torch, write_old_torch,
    write_torch_safetensors, write_keras, write_own, write_own_network,
]  # fmt: skip


@pytest.fixture(scope="module")
def write_thin(reference, torch_files, tmp_path_factory):
    """Writes a thin FCN-16s with changed layers in a file of some kind."""
    writers = SimpleNamespace(**vars(reference), **vars(torch_files))
    rng = np.random.default_rng(0)
    weights = reference.random_weights(rng, width=MODEL.width, num_classes=2)
    names = (*reference.BODY, "score_fr", "score_pool4")
    layers = {name: list(weights[name]) for name in names}
    path = tmp_path_factory.mktemp("fuzz") / "file"

    def write_thin(write, changes=(), **metadata):
        write(path, changed(layers, changes), writers, **metadata)
        return path

    return write_thin


def assert_reads_or_names(path):
    """The file gives weights that fit, or errors that name it. Returns the weights."""
    weights = None
    try:
        weights = load.read(path)
    except ValueError as error:
        assert str(error).startswith(str(path)), error
        assert len(str(error)) < 10_000
    else:
        is_network = isinstance(weights, Network)
        means = weights.model.mean if is_network else weights.mean_rgb
        scales = weights.model.pool_scales if is_network else ()
        for array in (*jax.tree.leaves(weights.params), *np.float32([*means, *scales])):
            assert array.dtype == np.float32 and np.isfinite(array).all()
        if is_network:
            shapes = shapes_of(weights.model)
            assert len(jax.tree.leaves(weights.params)) == len(shapes)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        assert main(["inspect", str(path)]) == (weights is None)
    start = "" if weights else f"fcn_jax inspect: {path}"
    assert said.getvalue().startswith(start)
    return weights


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
def test_unchanged_thin_network_is_read(write_thin, write):
    assert assert_reads_or_names(write_thin(write))


@settings(max_examples=20)
@given(changes=CHANGES)
@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
def test_any_changed_layers_give_weights_or_value_error(write_thin, write, changes):
    assert_reads_or_names(write_thin(write, changes))


ODD = st.sampled_from(
    [np.nan, np.inf, -np.inf, 1e300, 1e39, -1, 0, 2**31, 2**63, 10**400, 0.5, 1e-320,
     True, None, "", "x", [], {}, [[]], [1, 2, 3], [1.0, np.nan, 3], [1e39, 1, 1],
     [[1], [2], [3]], [None] * 3, [10**400] * 3, ["a", "b"], [[0, 0, 0]] * 2,
     [[0, 0, np.inf]] * 2, [0, 1, 2], {"a": 1}, [4, 5], [np.inf, 5]]
)  # fmt: skip
RAW = st.sampled_from(
    ["", "{", "NaN", "[" * 2_000, "[1,", "null", "3", r'"\ud83d"', r'["\ud83d", "\n"]']
)
FIELDS = sorted(fields_of(MODEL)) + ["mean_rgb", "parent", "dtype", ""]
ENTRIES = ["model", "class_names", "palette", "size", "channels", "shown", "mean_rgb",
           "source", "format", "version"]  # fmt: skip


@settings(max_examples=20)
@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=3),
    entries=st.dictionaries(st.sampled_from(ENTRIES), ODD, max_size=3),
    raw=st.dictionaries(st.sampled_from(ENTRIES), RAW, max_size=1),
)
def test_any_changed_metadata_give_weights_or_value_error(
    write_thin, fields, entries, raw
):
    metadata = {"model": fields_of(MODEL) | fields, "class_names": []} | entries
    metadata = {key: json.dumps(value) for key, value in metadata.items()} | raw
    assert_reads_or_names(write_thin(write_own, **metadata))
