import functools
import json
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image

from fcn_jax.inference import export as module
from fcn_jax.inference.export import export, load_exported
from fcn_jax.inference.predict import apply, predict
from fcn_jax.models.fcn import FCN
from fcn_jax.network import Network
from fcn_jax.visualize import colormap
from fcn_jax.weights.layers import shapes_of

EXAMPLES = Path(__file__).parents[2] / "examples"
CLASSES = 5
NAMES = ("sky", "road", "tree", "car", "sign")
MODEL = FCN(variant="fcn16s", num_classes=CLASSES, width=1 / 32)


def random_params(model, seed=0):
    """Of a scale that keeps every layer alive."""
    rng = np.random.default_rng(seed)
    return unflatten_dict(
        {
            name: rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape).astype(
                np.float32
            )
            for name, shape in shapes_of(model).items()
        },
        sep="/",
    )


PARAMS = random_params(MODEL)
PALETTE = tuple((i, 2 * i, 3 * i) for i in range(CLASSES))
NET = Network(PARAMS, MODEL, NAMES, PALETTE)


def picture(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, batch):
    return model.apply({"params": params}, batch)


def assert_labels(labels, logits):
    """The highest logit's, wherever rounding cannot change which one that is."""
    logits = np.asarray(logits)
    low, high = np.sort(logits, axis=-1)[..., -2:].transpose(3, 0, 1, 2)
    clear = high - low > 1e-4 * np.abs(logits).max()
    assert labels.dtype == np.int32 and labels.shape == logits.shape[:-1]
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(labels[clear], logits.argmax(-1)[clear])


@pytest.fixture
def unchecked(monkeypatch):
    """Saves the time of the comparison, where the test makes its own."""
    monkeypatch.setattr(module, "_CHECKS", ())


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("new") / "folder" / "network.jax"
    export(path, NET)
    return path


@pytest.fixture(scope="module")
def network(path):
    return load_exported(path)


# (variant, geometry, crop, learned upsampling, output)
CASES = [
    ("fcn32s", "same", "center", False, "logits"),
    ("fcn16s", "same", "corner", True, "labels"),
    ("fcn8s", "same", "center", True, "logits"),
    ("fcn32s", "caffe", "center", True, "labels"),
    ("fcn16s", "caffe", "center", False, "logits"),
    ("fcn8s", "caffe", "center", False, "labels"),
]


@pytest.mark.parametrize("variant, geometry, crop, learned, output", CASES)
def test_export_computes_what_the_model_does(
    tmp_path, unchecked, variant, geometry, crop, learned, output
):
    model = FCN(
        variant=variant,
        geometry=geometry,
        crop=crop,
        learn_upsampling=learned,
        num_classes=CLASSES,
        width=1 / 32,
    )
    params, batch = random_params(model), picture(2, 33, 71)
    # Whatever it trained in, the network is exported in float32.
    trained = model.clone(dtype=jnp.bfloat16)
    export(tmp_path / "a.npz", Network(params, trained), output=output)
    found = load_exported(tmp_path / "a.npz")(batch)
    logits = logits_of(model, params, batch)
    if output == "labels":
        assert_labels(found, logits)
    else:
        largest = np.abs(logits).max()
        assert found.dtype == np.float32 and largest > 0.1
        np.testing.assert_allclose(found, logits, rtol=0, atol=1e-4 * largest)


def test_file_for_jax_computes_in_bfloat16_if_told(tmp_path):
    export(tmp_path / "a.npz", NET, output="logits", dtype="bfloat16")
    batch = picture(1, 37, 50)
    found = load_exported(tmp_path / "a.npz")(batch)
    logits = logits_of(NET.model, NET.params, batch)
    error = np.abs(found - logits).max() / np.abs(logits).max()
    assert found.dtype == np.float32 and 1e-4 < error < 2e-2


def test_onnx_file_in_bfloat16_is_refused(tmp_path):
    with pytest.raises(ValueError, match="an .onnx file is written in float32"):
        export(tmp_path / "a.onnx", NET, dtype="bfloat16")
    assert list(tmp_path.iterdir()) == []


def test_file_takes_sizes_that_it_was_not_checked_with(network):
    batch = picture(1, 96, 20)
    assert_labels(network(batch), logits_of(MODEL, PARAMS, batch))


def test_single_image_gives_what_its_batch_of_one_gives(network):
    batch = picture(1, 96, 20)
    labels = network(batch[0])
    assert isinstance(labels, np.ndarray) and labels.shape == (96, 20)
    np.testing.assert_array_equal(labels, network(batch)[0])
    np.testing.assert_array_equal(labels, network(jnp.asarray(batch[0])))


def test_file_tells_output_and_class_names(network):
    assert network.output == "labels" and network.class_names == NAMES
    assert network.palette == PALETTE


def test_export_leaves_only_its_file(path):
    assert list(path.parent.iterdir()) == [path]


def test_program_is_for_cpu_and_cuda_and_any_size(path):
    with np.load(path) as file:
        program = jax.export.deserialize(bytearray(file["program"]))
    assert program.platforms == ("cpu", "cuda")
    image, labels = program.in_avals[-1], program.out_avals[0]
    assert str(image.shape) == "(b, h, w, 3)" and image.dtype == jnp.uint8
    assert str(labels.shape) == "(b, h, w)" and labels.dtype == jnp.int32


def serve(script, without, tmp_path, *arguments):
    """Runs an example where some packages cannot be imported; gives what it prints."""
    code = (
        "import runpy, sys\n"
        f"sys.modules |= dict.fromkeys({without}, None)\n"
        f"sys.argv = {[str(EXAMPLES / script), *map(str, arguments)]}\n"
        "runpy.run_path(sys.argv[0])\n"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout


def test_example_serves_the_file_without_fcn_jax(path, tmp_path):
    image = picture(96, 20)
    Image.fromarray(image).save(tmp_path / "photo.png")
    with np.load(path) as file:
        arrays = dict(file)
    metadata = json.loads(str(arrays["metadata"])) | {"palette": []}
    arrays["metadata"] = np.array(json.dumps(metadata))
    np.savez(tmp_path / "plain.npz", **arrays)
    for file, colors in ((path, PALETTE), ("plain.npz", colormap())):
        serve("serve.py", ["fcn_jax"], tmp_path, file, "photo.png", "labels.png")
        with Image.open(tmp_path / "labels.png") as served:
            found = np.asarray(served.convert("RGB"))
            labels = np.asarray(served, np.int32)
        assert_labels(labels[None], logits_of(MODEL, PARAMS, image[None]))
        np.testing.assert_array_equal(found, np.array(colors)[labels])


@pytest.fixture(scope="module")
def onnx_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("new") / "folder" / "network.onnx"
    assert export(path, NET) == 5
    return path


def test_onnx_file_gives_the_labels_of_the_network(onnx_path):
    image = picture(2, 33, 71)
    session = onnxruntime.InferenceSession(onnx_path)
    (labels,) = session.run(["labels"], {"image": image})
    assert_labels(labels, logits_of(MODEL, PARAMS, image))
    assert list(onnx_path.parent.iterdir()) == [onnx_path]


def test_onnx_file_tells_names_and_colours(onnx_path, tmp_path, unchecked):
    def told(path):
        meta = onnxruntime.InferenceSession(path).get_modelmeta()
        assert meta.producer_name == "fcn_jax"
        return {k: json.loads(v) for k, v in meta.custom_metadata_map.items()}

    assert told(onnx_path) == {
        "output": "labels",
        "class_names": list(NAMES),
        "palette": [list(color) for color in PALETTE],
        "in_channels": 3,
        "channels": [],
    }
    path = tmp_path / "a.onnx"
    export(path, NET.replace(class_names=(), palette=()), output="logits")
    found = told(path)
    assert found["output"] == "logits" and found["class_names"] == []
    assert found["palette"] == colormap(CLASSES).tolist()


def test_onnx_example_serves_its_file_without_jax(onnx_path, tmp_path):
    image = picture(96, 20)
    Image.fromarray(image).save(tmp_path / "photo.png")
    absent = ["fcn_jax", "jax", "flax", "onnx"]
    arguments = (onnx_path, "photo.png", "labels.png")
    printed = serve("serve_onnx.py", absent, tmp_path, *arguments)
    with Image.open(tmp_path / "labels.png") as served:
        colors = np.asarray(served.convert("RGB"))
        labels = np.asarray(served, np.int32)
    assert_labels(labels[None], logits_of(MODEL, PARAMS, image[None]))
    np.testing.assert_array_equal(colors, np.uint8(PALETTE)[labels])
    shares = {NAMES[i]: 100 * (labels == i).mean() for i in np.unique(labels)}
    lines = [f"{name}: {share:.1f} % of the pixels" for name, share in shares.items()]
    assert printed.splitlines() == lines


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """A function that runs an example in a folder and returns how it ends."""
    Image.fromarray(picture(8, 8)).save(tmp_path / "photo.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "text").write_text("no network")
    monkeypatch.chdir(tmp_path)

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(EXAMPLES / script))
        return end.value.code

    return run


UNREAD = {
    "serve_onnx.py": "cannot be read as an .onnx file: ",
    "serve.py": "is missing, or it is not an .npz file",
}


@pytest.mark.parametrize("script", UNREAD)
def test_examples_refuse_what_they_cannot_read_or_write(
    script, path, onnx_path, refusal
):
    network, other = onnx_path, path
    if script == "serve.py":
        network, other = other, network
    assert "photo.jpg labels.png" in refusal(script, network)
    for file in ("none", "text", other):
        found = refusal(script, file, "photo.png", "a.png")
        assert found.startswith(f"{file} {UNREAD[script]}")
    for photo in ("none.png", "text.png"):
        found = refusal(script, network, photo, "a.png")
        assert found.startswith(f"{photo} cannot be read as an image: ")
    found = refusal(script, network, "photo.png", "none/a.png")
    assert found.startswith("none/a.png cannot be written: ")


def test_examples_refuse_networks_that_give_logits(path, refusal, unchecked):
    arrays = arrays_of(path)
    metadata = json.loads(str(arrays["metadata"])) | {"output": "logits"}
    np.savez("a.npz", **arrays | {"metadata": np.array(json.dumps(metadata))})
    export("a.onnx", NET, output="logits")
    for script, name in (("serve.py", "a.npz"), ("serve_onnx.py", "a.onnx")):
        message = f"{name}: export a network of RGB images with --output labels"
        assert refusal(script, name, "photo.png", "a.png") == message


def test_examples_refuse_files_of_other_programs(refusal):
    np.savez("other.npz", a=np.zeros(3))
    found = refusal("serve.py", "other.npz", "photo.png", "a.png")
    assert found.startswith("other.npz cannot be read as a file of fcn_jax export")
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [2]) for name in "xy")
    graph = onnx.helper.make_graph([node], "other", [x], [y])
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.save(model, "other.onnx")
    found = refusal("serve_onnx.py", "other.onnx", "photo.png", "a.png")
    assert found.startswith("other.onnx: export a network of RGB images")


def test_onnx_file_without_the_package_onnx_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"pip install 'fcn-jax\[onnx\]'"):
        export(tmp_path / "a.onnx", NET)
    assert list(tmp_path.iterdir()) == []


def test_onnx_file_without_onnxruntime_is_written_with_a_warning(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export(tmp_path / "a.onnx", NET) == 0
    assert "is not compared with the network" in caplog.text
    assert "pip install onnxruntime" in caplog.text
    assert (tmp_path / "a.onnx").exists()


def test_onnx_file_is_not_for_jax(onnx_path):
    with pytest.raises(ValueError, match="is not for JAX: run it in onnxruntime"):
        load_exported(onnx_path)


@pytest.mark.parametrize("name", ["network", "network.safetensors", "network.ONNX"])
def test_names_that_tell_no_format_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: name .* .npz or .jax, .* or .onnx"):
        export(tmp_path / name, NET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, output", [("a.npz", "labels"), ("a.npz", "logits"), ("a.onnx", "labels")]
)
def test_export_that_computes_something_else_is_refused(
    tmp_path, monkeypatch, name, output
):
    monkeypatch.setattr(module, "_CHECKS", ((1, 1, 1),))
    apply = module.apply
    monkeypatch.setattr(module, "apply", lambda *a, **k: np.roll(apply(*a, **k), 1, -1))
    with pytest.raises(ValueError, match=r"logits differ by .* images \[1, 1, 1\]"):
        export(tmp_path / name, NET, output=output)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_export_leaves_what_was_there(tmp_path, monkeypatch):
    def half(file, **arrays):
        file.write(b"PK")
        raise KeyboardInterrupt

    (tmp_path / "a.npz").write_text("old")
    monkeypatch.setattr(np, "savez", half)
    for name in ("a.npz", "b.npz"):
        with pytest.raises(KeyboardInterrupt):
            export(tmp_path / name, NET)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.npz"]
    assert (tmp_path / "a.npz").read_text() == "old"


REFUSED = [
    ({"output": "scores"}, "output = 'scores' is not one of labels, logits"),
    ({"platforms": ("cpu", "gpu")}, "are not all of cpu, cuda, rocm, tpu"),
    ({"platforms": ()}, "this machine has none of them"),
    ({"dtype": "float16"}, "dtype = 'float16' is not one of float32, bfloat16"),
]


@pytest.mark.parametrize("arguments, message", REFUSED)
def test_arguments_that_do_not_fit_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "a.npz", NET, **arguments)
    assert list(tmp_path.iterdir()) == []


UNFIT = [
    (None, r"is missing, want \(5,\)"),
    (np.zeros(CLASSES + 1), r"has shape \(6,\), want \(5,\)"),
    (np.full(CLASSES, np.nan), "holds NaN or infinity"),
]


@pytest.mark.parametrize("bias, problem", UNFIT)
def test_params_that_do_not_fit_are_named(tmp_path, bias, problem):
    flat = {**flatten_dict(PARAMS, sep="/"), "head/score_fr/bias": bias}
    flat = {name: array for name, array in flat.items() if array is not None}
    with pytest.raises(ValueError, match=f"\nhead/score_fr/bias {problem}$"):
        export(tmp_path / "a.npz", NET.replace(params=unflatten_dict(flat, sep="/")))
    assert list(tmp_path.iterdir()) == []


def arrays_of(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def flipped(path, bad):
    """One bit in the middle of the weights is another."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    bad.write_bytes(content)


def less_one_array(path, bad):
    arrays = arrays_of(path)
    del arrays["body/fc7/bias"]
    np.savez(bad, **arrays)


def half_a_program(path, bad):
    arrays = arrays_of(path)
    program = arrays.pop("program")
    np.savez(bad, program=program[: len(program) // 2], **arrays)


def newer(path, bad):
    arrays = arrays_of(path)
    arrays["metadata"] = np.array('{"format": "fcn_jax export", "version": 2}')
    np.savez(bad, **arrays)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


DAMAGES = {
    "empty": (lambda path, bad: bad.touch(), "not a whole .npz"),
    "random": (
        lambda path, bad: bad.write_bytes(bytes(range(256))),
        "not a whole .npz",
    ),
    "half": (lambda path, bad: bad.write_bytes(path.read_bytes()[:99]), "not a whole"),
    "flipped": (flipped, "CRC"),
    "less-one-array": (less_one_array, "takes other parameters"),
    "half-a-program": (half_a_program, ""),
    "newer": (newer, "format version 2, .* install"),
    "npy": (lambda path, bad: np.save(bad, np.zeros(3)), "not a whole .npz"),
    "other-npz": (lambda path, bad: np.savez(bad, a=np.zeros(3)), "another kind"),
    "pickle": (lambda path, bad: bad.write_bytes(pickle.dumps(Bomb())), "not a whole"),
    "pickle-npz": (lambda path, bad: np.savez(bad, metadata=[Bomb()]), "allow_pickle"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_other_files_are_refused(path, tmp_path, damage):
    make, message = DAMAGES[damage]
    bad = tmp_path / ("bad.npy" if damage == "npy" else "bad.npz")
    make(path, bad)
    with pytest.raises(ValueError, match=f"{bad.name} cannot be read as .*{message}"):
        load_exported(bad)


def test_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_exported(tmp_path / "none.npz")


@pytest.mark.parametrize("dtype", [np.float32, np.int32, bool])
def test_images_that_are_not_uint8_are_refused(network, dtype):
    with pytest.raises(ValueError, match="image must be uint8, .* got"):
        network(picture(4, 4).astype(dtype))


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 4), (0, 4, 3), (1,) * 5])
def test_images_of_other_shapes_are_refused(network, shape):
    with pytest.raises(ValueError, match=r"\[H, W, 3\] or \[B, H, W, 3\]"):
        network(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("image", [None, [[[1, 2, 3]]]])
def test_what_is_no_image_is_refused(network, image):
    with pytest.raises(ValueError, match="pass an array"):
        network(image)


def test_image_may_be_a_path_or_a_pil_image(network, tmp_path):
    image = picture(96, 20)
    Image.fromarray(image).save(tmp_path / "a.png")
    labels = network(image)
    np.testing.assert_array_equal(network(tmp_path / "a.png"), labels)
    np.testing.assert_array_equal(network(Image.fromarray(image)), labels)


def test_bare_parameters_are_refused(tmp_path):
    with pytest.raises(ValueError, match="pass the Network"):
        export(tmp_path / "a.npz", PARAMS)


def test_network_with_a_size_resizes_in_the_file(tmp_path, unchecked):
    net, image = NET.replace(size=(40, 56)), picture(71, 33)
    for output in ("labels", "logits"):
        export(tmp_path / "a.npz", net, output=output)
        found = load_exported(tmp_path / "a.npz")(image)
        logits = np.asarray(apply(net, image))
        if output == "labels":
            assert_labels(found[None], logits[None])
            np.testing.assert_array_equal(found, predict(net, image))
        else:
            tolerance = 1e-4 * np.abs(logits).max()
            np.testing.assert_allclose(found, logits, rtol=0, atol=tolerance)
