"""One network, saved, loaded and used in every way that users have: one result."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from PIL import Image

import fcn_jax
from fcn_jax.__main__ import main
from fcn_jax.data.images import read_image, read_label
from fcn_jax.inference.tiles import predict_tiled
from fcn_jax.models.upsampling import bilinear_kernel
from fcn_jax.network import Network, as_network
from fcn_jax.training.config import Config, Data, Model, save_config

BASE = {"variant": "fcn16s", "num_classes": 4, "width": 1 / 32}
NAMES = ("sky", "road", "car", "tree")
PALETTE = ((1, 2, 3), (40, 50, 60), (7, 8, 9), (200, 100, 0))
# Fields of the model or of the network that are not the defaults.
FIELDS = {
    "geometry": "caffe",
    "crop": "corner",
    "mean": (90.0, 100.0, 110.0),
    "pool_scales": (0.01, 0.001),
    "width": 1 / 16,
    "learn_upsampling": True,
    "size": (40, 52),
    "class_names": NAMES,
    "palette": PALETTE,
    "scale": (0.5, 1.0, 1.5),
}
# Networks with several of these, each field in one of them at least.
CASES = {
    "caffe": {k: FIELDS[k] for k in ("geometry", "mean", "pool_scales")},
    "resized": {k: FIELDS[k] for k in ("size", "crop", "mean", "class_names")},
}
DEPTH = {
    "in_channels": 4,
    "mean": (120.0, 110.0, 100.0, 30_000.0),
    "scale": (1.0, 1.0, 1.0, 64 / 15_000),
    "channels": ("red", "green", "blue", "depth"),
    "shown": (3, 1, 0),
    "size": (40, 52),
    "class_names": NAMES,
}
IMAGE_SIZE = (33, 71)


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8))
    return np.asarray(coarse.resize(IMAGE_SIZE[::-1], Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def depth():
    """A smooth map of 16 bits, of the size of the image."""
    coarse = np.random.default_rng(2).uniform(0, 60_000, (4, 6)).astype(np.float32)
    fine = Image.fromarray(coarse).resize(IMAGE_SIZE[::-1], Image.Resampling.BILINEAR)
    return np.asarray(fine).astype(np.uint16)


@pytest.fixture(scope="module")
def make_network(image, depth):
    """Make a network that finds several classes in the image."""
    wide = np.dstack([image, depth])

    def make(size=(), class_names=(), palette=(), channels=(), shown=None, **fields):
        model = fcn_jax.FCN(**BASE | fields)
        inputs = jnp.zeros([1, 1, 1, model.in_channels])
        shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
        rng = np.random.default_rng(0)

        def draw(path, leaf):
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            noise = rng.normal(0, scale, leaf.shape).astype(np.float32)
            if not path[-2].key.startswith("upscore"):
                return noise
            return bilinear_kernel(leaf.shape[0] // 2, leaf.shape[2]) + 0.1 * noise

        params = jax.tree.map_with_path(draw, shapes["params"])
        own = class_names, palette, size, channels, shown or (0, 1, 2)
        net = Network(params, model, *own)
        # Each class gets scores of one mean and size, lest one wins everywhere.
        logits = fcn_jax.apply(net, image if model.in_channels == 3 else wide)
        logits = np.asarray(logits)
        scale = 1 / logits.std(axis=(0, 1))
        for name in filter(lambda name: name.startswith("score"), params["head"]):
            for array in params["head"][name].values():
                array *= scale
        params["head"]["score_fr"]["bias"] -= scale * np.median(logits, axis=(0, 1))
        return net

    return make


def make_run(path, net):
    """A run directory, as training leaves it."""
    own = {"variant", "geometry", "crop", "mean", "width", "pool_scales"}
    own |= {"in_channels", "scale"}
    fields = {k: getattr(net.model, k) for k in (*own, "learn_upsampling")}
    described = ("class_names", "palette", "size", "channels", "shown")
    data = {k: getattr(net, k) for k in described}
    config = Config(model=Model(**fields), data=Data(num_classes=4, **data))
    save_config(path / "config.json", config)
    fcn_jax.save(path / "model.safetensors", net)


@pytest.mark.parametrize("case", CASES)
def test_every_way_to_use_a_network_gives_the_same_labels(
    case, make_network, image, tmp_path
):
    net, run = make_network(**CASES[case]), tmp_path / "run"
    make_run(run, net)
    Image.fromarray(image).save(tmp_path / "photo.png")
    labels = fcn_jax.predict(net, image)
    assert len(np.unique(labels)) > 1  # Or equality would tell little.
    loaded = fcn_jax.load(run)
    assert loaded.replace(params=None) == net.replace(params=None)
    fcn_jax.export(tmp_path / "net.npz", loaded)

    found = {
        "apply": np.argmax(fcn_jax.apply(net, image), axis=-1),
        "loaded": fcn_jax.predict(loaded, image),
        "a path": fcn_jax.predict(loaded, tmp_path / "photo.png"),
        "a list": fcn_jax.predict(loaded, [Image.fromarray(image)])[0],
        "a batch": fcn_jax.predict(loaded, np.stack([image, image]))[1],
        "jit": jax.jit(fcn_jax.predict)(loaded, image),
        "probabilities": fcn_jax.probabilities(loaded, image).argmax(axis=-1),
        "tiles": predict_tiled(loaded, image, tile=(640, 640)),
        "export": fcn_jax.load_exported(tmp_path / "net.npz")(image),
        "bare": fcn_jax.predict(Network(net.params, net.model, size=net.size), image),
    }
    for option, source in (("--run", run), ("--weights", run / "model.safetensors")):
        out = tmp_path / option
        arguments = [option, str(source), "--out", str(out)]
        assert main(["predict", *arguments, str(tmp_path / "photo.png")]) == 0
        found[option] = read_label(out / "photo.png")
    for way, other in found.items():
        np.testing.assert_array_equal(other, labels, err_msg=way)
    colors = fcn_jax.colorize(labels, net.palette)
    with Image.open(tmp_path / "--run" / "photo.png") as written:
        np.testing.assert_array_equal(np.asarray(written.convert("RGB")), colors)

    with pytest.raises(ValueError, match="pass the Network .* or model="):
        fcn_jax.predict(net.params, image)


def test_every_way_to_use_four_channels_gives_the_same_labels(
    make_network, image, depth, tmp_path
):
    net, run, wide = make_network(**DEPTH), tmp_path / "run", np.dstack([image, depth])
    make_run(run, net)
    for name, channels in (("rgb", image), ("depth", depth), ("rgba", image[..., :1])):
        (tmp_path / name).mkdir()
        picture = np.dstack([image, channels]) if name == "rgba" else channels
        Image.fromarray(picture).save(tmp_path / name / "a.png")
    labels = fcn_jax.predict(net, wide)
    assert len(np.unique(labels)) > 1
    # The fourth channel counts.
    assert (labels != fcn_jax.predict(net, np.dstack([image, 0 * depth]))).any()
    loaded = fcn_jax.load(run)
    assert loaded.replace(params=None) == net.replace(params=None)
    fcn_jax.export(tmp_path / "net.npz", loaded)
    exported = fcn_jax.load_exported(tmp_path / "net.npz")
    assert exported.in_channels == 4 and exported.channels == DEPTH["channels"]
    with pytest.raises(ValueError, match=r"image must be \[H, W, 4\]"):
        exported(image)

    whole = loaded.replace(size=())
    found = {
        "apply": np.argmax(fcn_jax.apply(net, wide), axis=-1),
        "floats": fcn_jax.predict(loaded, wide.astype(np.float32)),
        "a list": fcn_jax.predict(loaded, [wide, wide[:5, :5]])[0],
        "a batch": fcn_jax.predict(loaded, np.stack([wide, wide]))[1],
        "jit": jax.jit(fcn_jax.predict)(loaded, wide),
        "probabilities": fcn_jax.probabilities(loaded, wide).argmax(axis=-1),
        "tiles": predict_tiled(loaded, wide, tile=(640, 640)),
        "export": exported(wide),
    }
    command = ["predict", "--run", str(run), "--extra", str(tmp_path / "depth")]
    assert main([*command, str(tmp_path / "rgb"), "--out", str(tmp_path / "out")]) == 0
    found["files"] = read_label(tmp_path / "out" / "a.png")
    for way, other in found.items():
        np.testing.assert_array_equal(other, labels, err_msg=way)
    rgba = tmp_path / "rgba" / "a.png"
    np.testing.assert_array_equal(
        fcn_jax.predict(whole, rgba),
        fcn_jax.apply(whole, np.dstack([image, image[..., 0]])).argmax(axis=-1),
    )

    examples = [(wide.astype(np.float32), labels)]
    evaluation = fcn_jax.evaluate(net, examples, examples=1, progress=False)
    assert evaluation.figures["pixel_accuracy"] == 1
    shown = 127.5 + (depth.astype(np.float64) - 30_000) * 64 / 15_000
    picture = np.dstack([np.clip(shown, 0, 255), image[..., 1], image[..., 0]])
    np.testing.assert_allclose(evaluation.examples[0].image, picture, atol=0.51)
    tinted = fcn_jax.overlay(
        evaluation.examples[0].image, labels, background=net.background
    )
    np.testing.assert_array_equal(
        read_image(tmp_path / "out" / "a_overlay.png"), tinted
    )


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_survives_the_file_and_reaches_the_command_line(
    field, make_network, image, tmp_path
):
    net = make_network(**{field: FIELDS[field]})
    make_run(tmp_path / "run", net)
    loaded = fcn_jax.load(tmp_path / "run")
    assert loaded.replace(params=None) == net.replace(params=None)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, net.params)
    Image.fromarray(image).save(tmp_path / "a.png")
    command = ["predict", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "o")]
    assert main([*command, str(tmp_path / "a.png")]) == 0
    labels = read_label(tmp_path / "o" / "a.png")
    np.testing.assert_array_equal(labels, np.argmax(fcn_jax.apply(net, image), axis=-1))


@pytest.fixture(scope="module")
def net(make_network):
    return make_network(size=(24, 32), class_names=NAMES, palette=PALETTE)


def test_network_is_a_pytree_of_its_parameters(net):
    assert len(jax.tree.leaves(net)) == len(jax.tree.leaves(net.params))
    doubled = jax.tree.map(lambda x: 2 * x, net)
    assert doubled.replace(params=None) == net.replace(params=None)
    np.testing.assert_array_equal(
        doubled.params["head"]["score_fr"]["kernel"],
        2 * net.params["head"]["score_fr"]["kernel"],
    )
    assert jax.tree.structure(net) != jax.tree.structure(net.replace(size=()))


def test_network_passes_through_grad_optax_and_jit(net, image):
    tx = optax.sgd(0.1)

    @jax.jit
    def step(net, state):
        grads = jax.grad(lambda net: fcn_jax.apply(net, image).sum())(net)
        updates, state = tx.update(grads, state, net)
        return optax.apply_updates(net, updates), state

    stepped, _ = step(net, tx.init(net))
    assert stepped.replace(params=None) == net.replace(params=None)
    # Of each class, the bias reaches every pixel once, through weights that sum to 1.
    before, after = (n.params["head"]["score_fr"]["bias"] for n in (net, stepped))
    assert (before - after > 0).all()


def test_network_passes_through_vmap(net, image):
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), net)
    found = jax.vmap(fcn_jax.apply, in_axes=(0, None))(many, image)
    for i, factor in enumerate((1, 2)):
        one = fcn_jax.apply(jax.tree.map(lambda x, f=factor: f * x, net), image)
        tolerance = 1e-4 * np.abs(one).max()
        np.testing.assert_allclose(found[i], one, rtol=0, atol=tolerance)


def test_network_passes_through_a_checkpoint(net, tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "net", net)
        checkpointer.wait_until_finished()
        empty = jax.tree.map(np.empty_like, net)
        restored = checkpointer.restore(tmp_path / "net", empty)
    assert restored.replace(params=None) == net.replace(params=None)
    jax.tree.map(np.testing.assert_array_equal, restored, net)


def test_astype_casts_parameters_and_computation(net, image, tmp_path):
    small = net.astype("bfloat16")
    assert {x.dtype for x in jax.tree.leaves(small)} == {jnp.dtype("bfloat16")}
    assert small.replace(params=net.params, model=net.model) == net
    logits, found = fcn_jax.apply(net, image), fcn_jax.apply(small, image)
    assert found.dtype == jnp.float32
    error = jnp.abs(found - logits).max() / jnp.abs(logits).max()
    assert 1e-4 < error < 2e-2  # In bfloat16, and right.
    fcn_jax.save(tmp_path / "small.safetensors", small)
    loaded = fcn_jax.load(tmp_path / "small.safetensors")
    for ours, theirs in zip(*map(jax.tree.leaves, (small, loaded)), strict=True):
        assert theirs.dtype == jnp.float32
        np.testing.assert_array_equal(ours.astype(jnp.float32), theirs)


def test_astype_refuses_other_dtypes(net):
    with pytest.raises(ValueError, match="dtype = 'float16' is not one of float32, bf"):
        net.astype("float16")


def test_lists_are_taken_as_tuples():
    model = fcn_jax.FCN(**BASE)
    net = Network({}, model, list(NAMES), [list(c) for c in PALETTE], [3, 4])
    assert net == Network({}, model, NAMES, PALETTE, (3, 4))
    assert hash(jax.tree.structure(net)) is not None


def test_names_are_made_up_where_there_are_none():
    net = Network({}, fcn_jax.FCN(**BASE))
    assert net.names == ("class 0", "class 1", "class 2", "class 3")
    assert net.replace(class_names=NAMES).names == NAMES


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "fcn8s"}, "model = 'fcn8s' is not an fcn_jax.FCN"),
        ({"class_names": ["sky"]}, "class_names has 1 entries for 4 classes"),
        ({"class_names": [1, 2, 3, 4]}, "class_names has 1, want a string"),
        ({"palette": PALETTE[:3]}, "palette has 3 entries for 4 classes"),
        ({"palette": [(0, 0)] * 4}, r"palette has \(0, 0\), want"),
        ({"palette": [(0, 0, 256)] * 4}, "palette has"),
        ({"size": (4,)}, r"size = \(4,\) must be \(height, width\)"),
        ({"size": (4, 0)}, "size = "),
        ({"size": (4.0, 5)}, "size = "),
        ({"channels": ("red",)}, "channels has 1 entries for 3 input channels"),
        ({"channels": ("a", "b", 3)}, "channels has 3, want a string"),
        ({"shown": (0, 1, 3)}, r"shown = \(0, 1, 3\) must be .* from 0 to 2, for red"),
        ({"shown": (0, 1)}, r"shown = \(0, 1\) must be three input channels"),
        ({"shown": (0, 1, -1)}, r"shown = \(0, 1, -1\) must be"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Network(**{"params": {}, "model": fcn_jax.FCN(**BASE)} | fields)


def test_as_network_takes_parameters_with_their_model_alone(net):
    assert as_network(net) is net
    assert as_network(net.params, net.model) == Network(net.params, net.model)
    with pytest.raises(ValueError, match="bare parameters do not tell"):
        as_network(net.params)
    with pytest.raises(ValueError, match="has its own model"):
        as_network(net, net.model)
    for other in (None, net.model, (net.model, net.params)):
        with pytest.raises(ValueError, match=f"net is a {type(other).__name__}"):
            as_network(other)


@pytest.mark.parametrize(
    ("names", "background"),
    [
        ((), 0),
        (("background", "a", "b", "c"), 0),
        (("Background", "a", "b", "c"), 0),
        (("Sky", "background", "b", "c"), None),
    ],
)
def test_class_0_is_background_by_its_name(reference, names, background):
    net = reference.network("fcn32s").replace(class_names=names)
    assert net.background == background
