import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.models.fcn import FCN


@pytest.fixture(scope="session")
def params():
    """Of FCN-32s, 5 classes, width 1/16: random, of a scale that keeps layers alive."""
    model = FCN(variant="fcn32s", num_classes=5, width=1 / 16)
    rng = np.random.default_rng(0)
    image = jnp.zeros((1, 1, 1, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    return jax.tree.map(
        lambda leaf: rng.normal(
            0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape
        ).astype(np.float32),
        shapes,
    )
