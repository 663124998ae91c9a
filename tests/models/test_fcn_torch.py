"""The network against the same one in torch, in double precision."""

import jax
import numpy as np
import pytest

from fcn_jax.models.fcn import FCN

torch = pytest.importorskip(
    "torch", reason="torch is not installed: pip install .[torch]"
)


def run_torch(reference, weights, image, variant):
    """Logits [B, H, W, C] float64 of bilinear upsampling and centre crops."""
    functional = torch.nn.functional
    tensors = {
        name: [torch.from_numpy(a.astype(np.float64)) for a in weights[name]]
        for name in (*reference.BODY, *reference.SCORES)
    }

    def conv(x, name):
        kernel, bias = tensors[name]
        return functional.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2)

    def upsample_to(x, factor, size):
        kernel = torch.from_numpy(reference.bilinear(factor))
        kernel = kernel.expand(x.shape[1], 1, -1, -1)
        x = functional.conv_transpose2d(
            x, kernel, stride=factor, padding=factor // 2, groups=x.shape[1]
        )
        top, left = ((b - s) // 2 for b, s in zip(x.shape[2:], size, strict=True))
        return x[:, :, top : top + size[0], left : left + size[1]]

    x = torch.from_numpy(image - np.array([123.68, 116.779, 103.939]))
    x, pools = x.permute(0, 3, 1, 2), {}
    for name in reference.BODY:
        if name.endswith("_1") and name != "conv1_1" or name == "fc6":
            x = functional.max_pool2d(x, 2, 2, ceil_mode=True)
            pools[f"pool{len(pools) + 1}"] = x
        x = conv(x, name).relu()
    x = conv(x, "score_fr")
    *doublings, last = reference.UPSAMPLINGS[variant].values()
    for pool, factor in zip(("pool4", "pool3"), doublings, strict=False):
        skip = conv(pools[pool], f"score_{pool}")
        x = upsample_to(x, factor, skip.shape[2:]) + skip
    return upsample_to(x, last, image.shape[1:3]).permute(0, 2, 3, 1).numpy()


def test_logits_equal_torch(reference):
    rng = np.random.default_rng(11)
    weights = reference.random_weights(rng, width=1 / 16, num_classes=4)
    image = rng.uniform(0, 255, (2, 45, 71, 3)).astype(np.float32)
    heads = {
        variant: reference.head_params(weights, variant)
        for variant in reference.UPSAMPLINGS
    }

    @jax.jit
    def apply(body, heads, image):
        # All variants have the same body, which XLA computes once.
        return {
            variant: FCN(variant, num_classes=4, width=1 / 16).apply(
                {"params": {"body": body, "head": head}}, image
            )
            for variant, head in heads.items()
        }

    for variant, logits in apply(reference.body_params(weights), heads, image).items():
        expected = run_torch(reference, weights, image, variant)
        assert logits.shape == expected.shape
        error = np.abs(logits - expected).max()
        assert error <= 1e-5 * np.abs(expected).max(), variant
