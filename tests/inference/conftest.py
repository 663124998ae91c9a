import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.models.fcn import FCN
from fcn_jax.network import Network


@pytest.fixture(scope="session")
def net():
    """FCN-32s, 5 classes, width 1/16: random, of a scale that keeps layers alive."""
    model = FCN(variant="fcn32s", num_classes=5, width=1 / 16)
    rng = np.random.default_rng(0)
    image = jnp.zeros((1, 1, 1, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    params = jax.tree.map(
        lambda leaf: rng.normal(
            0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape
        ).astype(np.float32),
        shapes,
    )
    return Network(params, model)


@pytest.fixture
def traced(monkeypatch):
    """The shapes of batches that a network is traced with, which it is compiled for.

    Only a network that no other test has compiled shows all of them.
    """
    shapes, compute = [], FCN.apply

    def apply(self, variables, batch, *args, **kwargs):
        shapes.append(batch.shape)
        return compute(self, variables, batch, *args, **kwargs)

    monkeypatch.setattr(FCN, "apply", apply)
    return shapes
