"""Which parameters of a network start from those of another?"""

import numpy as np
from flax.traverse_util import unflatten_dict

from fcn_jax.models.fcn import FCN, SKIPS
from fcn_jax.weights.layers import shapes_of
from fcn_jax.weights.load import Weights


def transplant(weights: Weights, model: FCN) -> tuple[dict, list[str]]:
    """The parameters that a network can take over, such as FCN-16s from FCN-32s.

    The body is always taken. Of an FCN of as many classes the score layers are taken as
    well, and those of a new skip are zero: the network starts as good as the coarser
    one was, whose scores it only upsamples in more steps.

    Args:
        weights: of a VGG-16 or an FCN.
        model: the network to start.
    Returns:
        params: the part of the model's parameters that is decided, float32 numpy.
        notes: what was not taken over as it was, for people to read.
    Raises:
        ValueError: if the widths differ.
    Reference: Long et al., arXiv:1411.4038, section 4.2.
    """
    body = {name: p for name, p in weights.params["body"].items() if name != "fc8"}
    filters = body["conv1_1"]["bias"].size
    if filters != 64 * model.width:
        raise ValueError(
            f"the weights have {filters} filters in conv1_1, the network "
            f"{64 * model.width:g}: set model.width={filters / 64:g}"
        )
    source, notes = weights.model, []
    if source is None:
        return {"body": body, "head": {}}, notes
    if source.num_classes != model.num_classes:
        notes.append(
            f"{source.num_classes} classes there, {model.num_classes} here: the body "
            "is taken, the score layers start afresh"
        )
        return {"body": body, "head": {}}, notes
    old, head = weights.params["head"], {}
    for name, shapes in unflatten_dict(shapes_of(model), sep="/")["head"].items():
        if name in old:
            head[name] = old[name]
        elif name.startswith("score"):
            head[name] = {
                part: np.zeros(shape, np.float32) for part, shape in shapes.items()
            }
            notes.append(f"{name} is new and starts at zero")
    for pool, before, now in zip(
        SKIPS["fcn8s"], source.pool_scales, model.pool_scales, strict=True
    ):
        layer = head.get(f"score_{pool}")
        if layer and before != now:  # What the layer gives stays the same.
            kernel = np.float32(layer["kernel"] * (before / now))
            head[f"score_{pool}"] = {**layer, "kernel": kernel}
    if source.learn_upsampling and not model.learn_upsampling:
        notes.append("its learned upsampling is replaced by the bilinear one")
    return {"body": body, "head": head}, notes
