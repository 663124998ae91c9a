"""A network, the data that it is evaluated on, and a run directory of both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import fcn_jax
from fcn_jax.network import Network
from fcn_jax.training.config import Config, Data, Model, make_network, save_config

NAMES = ("sky", "road", "car", "boat")  # The network never says "boat".


SIZES = ((20, 33), (32, 24))


MODEL = Model(width=1 / 16, mean=(90.0, 100.0, 110.0))


DATA = {"num_classes": len(NAMES), "class_names": NAMES}


def draw(seed, size):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1]))


def write_split(root, split, seed):
    """Three images and labels without a boat, a tenth of them void."""
    rng = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True)
    for i in range(3):
        size = SIZES[i % 2]
        label = rng.integers(0, 3, size, np.uint8)
        label[rng.random(size) < 0.1] = 255
        image = Image.fromarray(draw(seed + i, size))
        image.save(root / "images" / split / f"{i}.png")
        Image.fromarray(label).save(root / "labels" / split / f"{i}.png")


def random_params(model):
    """Of a scale that keeps every layer alive, without the time to compile an init."""
    rng = np.random.default_rng(0)
    image = jnp.zeros([1, 1, 1, 3])
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]

    def draw(leaf):
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return rng.normal(0, scale, leaf.shape).astype(np.float32)

    params = jax.tree.map(draw, shapes)
    for name, layer in params["head"].items():
        # Weights that sum to zero, lest one class wins everywhere.
        layer["kernel"] -= layer["kernel"].mean(axis=2, keepdims=True)
        layer["bias"][:] = (0, 0, 0, -1e6) if name == "score_fr" else 0
    return params


@pytest.fixture
def picture():
    """A function of a seed and a size."""
    return draw


@pytest.fixture(scope="session")
def net():
    net = make_network(Config(model=MODEL, data=Data(**DATA)))
    return net.replace(params=random_params(net.model))


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    write_split(root, "val", seed=10)
    write_split(root, "test", seed=20)
    return root


@pytest.fixture
def make_run(tmp_path, net):
    """Gives a function that makes a run directory with these fields of config.data."""

    def make(**fields):
        run = tmp_path / "run"
        run.mkdir()
        data = Data(**DATA | fields)
        save_config(run / "config.json", Config(model=MODEL, data=data))
        fcn_jax.save(run / "model.safetensors", net.replace(size=data.size))
        return run

    return make


@pytest.fixture
def weights(net, tmp_path):
    fcn_jax.save(tmp_path / "net.safetensors", Network(net.params, net.model))
    return str(tmp_path / "net.safetensors")


@pytest.fixture
def config_file(data, tmp_path):
    path = tmp_path / "config.py"
    fields = f"root={str(data)!r}, num_classes=5, train_split='test'"
    path.write_text(
        "from fcn_jax.training.config import Config, Data\n"
        "def get_config():\n"
        f"    return Config(data=Data({fields}))\n"
    )
    return str(path)
