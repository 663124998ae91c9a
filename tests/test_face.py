import functools
import subprocess
import sys

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
    """What `init` gives, without computing it."""
    return jax.eval_shape(functools.partial(fcn_jax.init, **fields), jax.random.key(0))


@pytest.fixture(scope="module")
def params():
    return fcn_jax.init(jax.random.key(0), **FIELDS)


def test_import_is_light():
    code = "import sys, fcn_jax; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    imported = {name.partition(".")[0] for name in result.stdout.split()}
    assert "fcn_jax" in imported
    assert not imported & HEAVY


def test_all_names_exist():
    assert fcn_jax.__all__ == sorted(set(fcn_jax.__all__))
    for name in set(fcn_jax.__all__) - {"export"}:  # A module: export.export, .load.
        assert callable(getattr(fcn_jax, name)), name
    assert callable(fcn_jax.export.export) and callable(fcn_jax.export.load)


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


def test_init_then_vgg16_then_apply(params, tmp_path):
    rng = np.random.default_rng(1)
    body = {}
    for name, layer in params["body"].items():
        shape = layer["kernel"].shape
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        kernel = rng.normal(0, scale, shape).astype(np.float32)
        body[name] = {"kernel": kernel, "bias": rng.random(shape[-1], np.float32)}
    entries = {name: [p["kernel"], p["bias"]] for name, p in body.items()}
    entries["conv1_1"][0] = body["conv1_1"]["kernel"][:, :, ::-1]  # BGR, as Caffe's.
    np.save(tmp_path / "vgg16.npy", entries, allow_pickle=True)

    started = {**params, "body": dict(params["body"])}
    started["body"].update(fcn_jax.load_vgg16(tmp_path / "vgg16.npy"))
    logits = fcn_jax.apply(started, IMAGE)
    model = fcn_jax.FCN(**FIELDS)
    by_hand = {"body": body, "head": params["head"]}
    expected = jax.jit(model.apply)({"params": by_hand}, IMAGE[None])[0]
    assert logits.shape == (19, 34, 3) and logits.dtype == jnp.float32
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(
        fcn_jax.predict(started, IMAGE), np.argmax(logits, axis=-1)
    )


@pytest.mark.parametrize("file", ["fcn.safetensors", "run/model.safetensors"])
def test_save_then_load_gives_identical_logits(params, tmp_path, file):
    model = fcn_jax.FCN(**FIELDS, mean_rgb=(100.0, 110.0, 120.0))
    fcn_jax.save(tmp_path / file, model, params, class_names=("sky", "road", "car"))
    # A run directory stands for the best network of the run.
    path = tmp_path / "run" if file.startswith("run") else tmp_path / file
    loaded_model, loaded = fcn_jax.load(path)
    assert loaded_model == model
    np.testing.assert_array_equal(
        fcn_jax.apply(loaded, IMAGE, model=loaded_model),
        fcn_jax.apply(params, IMAGE, model=model),
    )


def test_load_of_a_directory_without_a_network_says_so(tmp_path):
    with pytest.raises(ValueError) as caught:
        fcn_jax.load(tmp_path)
    assert f"{tmp_path / 'model.safetensors'} is not there" in str(caught.value)
    assert f"{tmp_path} is no run directory" in str(caught.value)
