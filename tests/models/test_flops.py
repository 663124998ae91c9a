"""Operations counted by hand, layer by layer."""

import pytest

from fcn_jax.models.fcn import FCN
from fcn_jax.models.flops import flop_per_image

# Sides of the maps of an image of 224x224 by the first letters of a layer's name.
SIDES = {"conv1": 224, "conv2": 112, "conv3": 56, "conv4": 28, "conv5": 14, "fc": 7}


def operations(reference, names):
    """Two for each weight and position of the named layers of the body."""
    total = 0
    for name in names:
        [side] = [side for start, side in SIDES.items() if name.startswith(start)]
        kernel, fan_in, filters = reference.BODY[name]
        total += 2 * side**2 * kernel**2 * fan_in * filters
    return total


def test_convolutions_of_vgg16_take_15_billion_multiplications(reference):
    convolutions = [name for name in reference.BODY if name.startswith("conv")]
    assert operations(reference, convolutions) == 2 * 15_346_630_656
    # fc6 and fc7 keep the 7x7 positions of pool5, where a classifier has one.
    dense = 49 * (7 * 7 * 512 * 4096 + 4096 * 4096)
    # The scores of fc7, pool4 and pool3, for 21 classes.
    scores = 21 * (49 * 4096 + 14**2 * 512 + 28**2 * 256)
    found = flop_per_image(FCN(), (224, 224))
    assert found == 2 * (15_346_630_656 + dense + scores)


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_padding_of_caffe_and_odd_sides_count(remat):
    model = FCN("fcn32s", 2, geometry="caffe", width=1 / 64, remat=remat)
    # An image of one pixel: conv1_1 pads it to 199, then 100, 50, 25, 13, 7 and 1.
    sides = {1: 199, 2: 100, 3: 50, 4: 25, 5: 13}
    layers = {1: [(3, 1), (1, 1)], 2: [(1, 2), (2, 2)], 3: [(2, 4), (4, 4), (4, 4)]}
    layers |= {4: [(4, 8), (8, 8), (8, 8)], 5: [(8, 8)] * 3}
    products = sum(9 * sides[k] ** 2 * i * o for k in layers for i, o in layers[k])
    products += 49 * 8 * 64 + 64 * 64 + 64 * 2
    assert flop_per_image(model, (1, 1)) == 2 * products
