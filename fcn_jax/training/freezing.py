"""Split parameters into a trainable and a frozen part."""

from collections.abc import Sequence
from typing import Any


def split_params(params: Any, freeze: Sequence[str]) -> tuple[Any, Any]:
    """Return the trainable and the frozen layers of a network.

    Args:
        params: ``{"body": layers, "head": layers}``, with layers by their names.
        freeze: prefixes of the names of the frozen layers: "conv1" freezes conv1_1 and
            conv1_2, and "conv" all layers from conv1_1 to conv5_3. () for none.

    Returns:
        trainable: a dict like ``params``, which is ``params`` itself for ().
        frozen: a dict like ``params`` with the other layers, or {} for ().

    Raises:
        ValueError: if ``freeze`` is not a sequence of strings, a prefix fits no layer,
            or no layer is left to train.
    """
    if not freeze:
        return params, {}
    _check(freeze, [name for layers in params.values() for name in layers])
    trainable: dict[str, Any] = {part: {} for part in params}
    frozen: dict[str, Any] = {part: {} for part in params}
    for part, layers in params.items():
        for name, layer in layers.items():
            side = frozen if name.startswith(tuple(freeze)) else trainable
            side[part][name] = layer
    return trainable, frozen


def merge_params(trainable: Any, frozen: Any) -> Any:
    """Return the whole parameters from the two parts that `split_params` returned."""
    if not frozen:
        return trainable
    return {part: layers | frozen[part] for part, layers in trainable.items()}


def _check(freeze: Sequence[str], names: list[str]) -> None:
    """Raise ValueError as `split_params` does."""
    if isinstance(freeze, str) or not all(isinstance(p, str) for p in freeze):
        raise ValueError(
            f"freeze = {freeze!r} must be a tuple of prefixes of layer names, such as "
            '("conv1", "conv2")'
        )
    layers = ", ".join(names)
    for prefix in freeze:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(
                f"freeze has {prefix!r}, and no layer's name begins like that. The "
                f"layers are {layers}"
            )
    if all(name.startswith(tuple(freeze)) for name in names):
        raise ValueError(
            f"freeze = {freeze!r} leaves nothing to train: leave out at least one of "
            f"the layers {layers}"
        )
