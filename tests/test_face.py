import functools
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fcn_jax

WIDTH = 1 / 32
FIELDS = {"variant": "fcn16s", "num_classes": 3, "width": WIDTH}
HEAVY = {
    "array_record",
    "grain",
    "matplotlib",
    "orbax",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
}
# Kernel side, channels in and out of each layer of VGG-16.
BODY = {
    "conv1_1": (3, 3, 64),
    "conv1_2": (3, 64, 64),
    "conv2_1": (3, 64, 128),
    "conv2_2": (3, 128, 128),
    "conv3_1": (3, 128, 256),
    "conv3_2": (3, 256, 256),
    "conv3_3": (3, 256, 256),
    "conv4_1": (3, 256, 512),
    "conv4_2": (3, 512, 512),
    "conv4_3": (3, 512, 512),
    "conv5_1": (3, 512, 512),
    "conv5_2": (3, 512, 512),
    "conv5_3": (3, 512, 512),
    "fc6": (7, 512, 4096),
    "fc7": (1, 4096, 4096),
}
HEADS = {
    "fcn32s": {"score_fr": 4096},
    "fcn16s": {"score_fr": 4096, "score_pool4": 512},
    "fcn8s": {"score_fr": 4096, "score_pool4": 512, "score_pool3": 256},
}
IMAGE = np.random.default_rng(0).integers(0, 256, (19, 34, 3), np.uint8)


def shapes_of_init(**fields):
    """The parameters that `init` gives, without computing them."""
    init = functools.partial(fcn_jax.init, **fields)
    return jax.eval_shape(init, jax.random.key(0)).params


@pytest.fixture(scope="module")
def net():
    return fcn_jax.init(jax.random.key(0), score_init="xavier", **FIELDS)


def modules_after(code):
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in result.stdout.split()}


def test_import_is_light():
    imported = modules_after("import fcn_jax")
    assert "fcn_jax" in imported and not imported & {"jax", "flax", *HEAVY}
    using = "import fcn_jax; fcn_jax.load, fcn_jax.predict, fcn_jax.init"
    imported = modules_after(using)
    assert "jax" in imported and not imported & HEAVY


def test_all_names_exist_and_are_listed():
    assert len(set(fcn_jax.__all__)) == len(fcn_jax.__all__) == 24
    for name in fcn_jax.__all__:
        assert name in dir(fcn_jax)
        if name != "metrics":  # The one module.
            assert callable(getattr(fcn_jax, name)), name
    with pytest.raises(AttributeError, match="attribute imread"):
        fcn_jax.imread  # noqa: B018


def test_version_and_types_are_those_of_the_package():
    assert fcn_jax.__version__ == importlib.metadata.version("fcn-jax")
    assert (Path(fcn_jax.__file__).parent / "py.typed").exists()


def test_metrics_take_arrays():
    label = np.array([0, 0, 0, 1, 1, 2, 255, 255])
    prediction = np.array([0, 0, 1, 1, 0, 2, 0, 2])
    confusion = fcn_jax.metrics.confusion_matrix(label, prediction, num_classes=4)
    assert fcn_jax.metrics.mean_iu(confusion) == pytest.approx(0.611111, abs=1e-6)


@pytest.mark.parametrize("variant", HEADS)
def test_init_gives_the_layers_of_the_original(variant):
    params = shapes_of_init(variant=variant, num_classes=7, width=WIDTH)

    def layer(side, inputs, outputs):
        kernel = jax.ShapeDtypeStruct((side, side, inputs, outputs), jnp.float32)
        return {"kernel": kernel, "bias": jax.ShapeDtypeStruct((outputs,), jnp.float32)}

    def thin(filters):
        return filters if filters == 3 else filters // 32

    head = HEADS[variant]
    assert params == {
        "body": {n: layer(k, thin(i), thin(o)) for n, (k, i, o) in BODY.items()},
        "head": {name: layer(1, thin(i), 7) for name, i in head.items()},
    }


def test_init_defaults_to_fcn8s_of_21_classes_at_full_width():
    params = shapes_of_init()
    # 14,714,688 and 119,545,856 in VGG-16's convolutions and dense layers, and 21
    # classes of (4096 + 1) + (512 + 1) + (256 + 1) parameters.
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == 134_260_544 + 21 * 4867


def test_init_passes_fields_on():
    head = shapes_of_init(width=WIDTH, learn_upsampling=True)["head"]
    assert head["upscore8"]["kernel"].shape == (16, 16, 21, 21)


def test_init_refuses_what_the_network_has_not():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="variant = 'fcn4s' is not one of fcn32s"):
        fcn_jax.init(key, "fcn4s")
    with pytest.raises(ValueError, match="num_classes = 0"):
        fcn_jax.init(key, num_classes=0)
    with pytest.raises(TypeError, match="depth"):
        fcn_jax.init(key, depth=19)


def test_init_with_vgg16_applies_as_by_hand(net, tmp_path):
    rng = np.random.default_rng(1)
    body = {}
    for name, layer in net.params["body"].items():
        shape = layer["kernel"].shape
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        kernel = rng.normal(0, scale, shape).astype(np.float32)
        body[name] = {"kernel": kernel, "bias": rng.random(shape[-1], np.float32)}
    entries = {name: [p["kernel"], p["bias"]] for name, p in body.items()}
    entries["conv1_1"][0] = body["conv1_1"]["kernel"][:, :, ::-1]  # BGR, as Caffe's.
    np.save(tmp_path / "vgg16.npy", entries, allow_pickle=True)

    started = fcn_jax.init(
        jax.random.key(0), vgg16=tmp_path / "vgg16.npy", score_init="xavier", **FIELDS
    )
    logits = fcn_jax.apply(started, IMAGE)
    by_hand = {"body": body, "head": started.params["head"]}
    expected = jax.jit(fcn_jax.FCN(**FIELDS).apply)({"params": by_hand}, IMAGE[None])
    assert logits.shape == (19, 34, 3) and logits.dtype == jnp.float32
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(logits, expected[0], rtol=1e-4, atol=1e-3)


def test_mean_of_the_weights_is_the_mean_of_the_network(net, tmp_path):
    mean = (100.0, 110.0, 120.0)
    fcn_jax.save(tmp_path / "a", net.replace(model=net.model.clone(mean=mean)))
    vgg16 = fcn_jax.load_vgg16(tmp_path / "a")
    assert vgg16.mean_rgb == mean
    started = fcn_jax.init(jax.random.key(0), vgg16=vgg16, **FIELDS)
    assert started.model.mean == mean


def test_load_of_a_directory_without_a_network_says_so(tmp_path):
    with pytest.raises(ValueError) as caught:
        fcn_jax.load(tmp_path)
    assert f"{tmp_path / 'model.safetensors'} is not there" in str(caught.value)
    assert f"{tmp_path} is not a run directory" in str(caught.value)
