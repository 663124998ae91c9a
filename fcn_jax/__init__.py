"""Fully convolutional networks for semantic segmentation in JAX and Flax.

The network comes first in every function that takes one::

    net = fcn_jax.load("runs/camvid")
    labels = fcn_jax.predict(net, "photo.jpg")

Reference: Long, Shelhamer and Darrell, Fully Convolutional Networks for Semantic
Segmentation, arXiv:1411.4038.
"""

import lazy_loader

__version__ = "0.1.0"

# The public names stand in __init__.pyi. The module behind a name is imported when the
# name is first used, so that importing this package stays light.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
