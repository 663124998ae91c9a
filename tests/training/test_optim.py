import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax.training.optim import make_optimizer, make_schedule


def test_poly_schedule_falls_as_power_nine_tenths():
    schedule = make_schedule("poly", learning_rate=0.5, steps=100)
    for t in (0, 1, 50, 99):
        assert schedule(t) == pytest.approx(0.5 * (1 - t / 100) ** 0.9, rel=1e-5)


def test_cosine_schedule_falls_as_half_a_cosine():
    schedule = make_schedule("cosine", learning_rate=0.5, steps=100)
    for t in (0, 25, 50, 99):
        expected = 0.5 * (1 + np.cos(np.pi * t / 100)) / 2
        assert schedule(t) == pytest.approx(expected, rel=1e-4)


def test_constant_schedule_stays():
    schedule = make_schedule("constant", learning_rate=0.5, steps=100)
    assert schedule(0) == schedule(99) == 0.5


def test_warmup_rises_linearly_then_decays_over_the_rest():
    schedule = make_schedule("poly", learning_rate=1.0, steps=110, warmup_steps=10)
    assert [float(schedule(t)) for t in (0, 5, 10)] == pytest.approx([0, 0.5, 1])
    assert schedule(60) == pytest.approx(0.5**0.9, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "step"}, "name = 'step' is not one of the schedules poly, cosine"),
        ({"warmup_steps": 100}, "warmup_steps = 100 must be less than the 100 steps"),
    ],
)
def test_schedule_that_cannot_be_is_refused(change, message):
    values = {"name": "poly", "learning_rate": 1.0, "steps": 100} | change
    with pytest.raises(ValueError, match=message):
        make_schedule(values.pop("name"), **values)


def test_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="name = 'adam' is not one of the optimizers"):
        make_optimizer("adam", lambda step: 1.0)


def params_and_grads():
    rng = np.random.default_rng(0)
    params = {"a": {"kernel": rng.normal(size=[3, 2]), "bias": rng.normal(size=[2])}}
    grads = [
        {"a": {name: rng.normal(size=p.shape) for name, p in params["a"].items()}}
        for _ in range(4)
    ]
    return params, grads


def run(tx, params, grads):
    params = {"a": {name: jnp.asarray(p) for name, p in params["a"].items()}}
    state = tx.init(params)
    for grad in grads:
        updates, state = tx.update(grad, state, params)
        params = {"a": {k: params["a"][k] + updates["a"][k] for k in params["a"]}}
    return params["a"]


def test_sgd_equals_caffes_update():
    """Caffe: V = momentum V + rate (grad + decay W); W = W - V."""
    params, grads = params_and_grads()
    rate, momentum, weight_decay = 0.1, 0.9, 0.05
    expected = {}
    for name, lr, wd in (("kernel", rate, weight_decay), ("bias", 2 * rate, 0.0)):
        w, v = params["a"][name].copy(), 0.0
        for grad in grads:
            v = momentum * v + lr * (grad["a"][name] + wd * w)
            w = w - v
        expected[name] = w
    tx = make_optimizer(
        "sgd",
        lambda step: rate,
        momentum=momentum,
        weight_decay=weight_decay,
        bias_rate=2.0,
    )
    updated = run(tx, params, grads)
    for name in expected:
        np.testing.assert_allclose(updated[name], expected[name], rtol=1e-5, atol=1e-6)


def test_adamw_equals_its_definition_and_decays_kernels_alone():
    params, grads = params_and_grads()
    rate, weight_decay = 0.1, 0.05
    expected = {}
    for name, wd in (("kernel", weight_decay), ("bias", 0.0)):
        w, m, v = params["a"][name].copy(), 0.0, 0.0
        for t, grad in enumerate(grads, start=1):
            g = grad["a"][name]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            adam = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            w = w - rate * (adam + wd * w)
        expected[name] = w
    updated = run(
        make_optimizer("adamw", lambda step: rate, weight_decay=weight_decay),
        params,
        grads,
    )
    for name in expected:
        np.testing.assert_allclose(updated[name], expected[name], rtol=1e-4, atol=1e-5)


def params_of_both_parts(rng):
    shapes = {"kernel": [3, 2], "bias": [2]}
    return {
        part: {layer: {name: rng.normal(size=s) for name, s in shapes.items()}}
        for part, layer in (("body", "conv1_1"), ("head", "score_fr"))
    }


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_rates_scale_the_updates_of_a_part_and_clipping_the_gradient(name):
    rng = np.random.default_rng(1)
    params = params_of_both_parts(rng)
    grads = [params_of_both_parts(rng) for _ in range(3)]
    grads[1] = jax.tree.map(lambda g: 0.01 * g, grads[1])  # Below the limit.
    rate, weight_decay, clip_norm = 0.1, 0.05, 0.5
    tx = make_optimizer(
        name,
        lambda step: rate,
        momentum=0.9,
        weight_decay=weight_decay,
        bias_rate=2.0,
        rates=(0.25, 3.0),
        clip_norm=clip_norm,
    )
    found = jax.tree.map(jnp.asarray, params)
    state = tx.init(found)
    for grad in grads:
        updates, state = tx.update(jax.tree.map(jnp.asarray, grad), state, found)
        found = jax.tree.map(jnp.add, found, updates)

    norms = [
        np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grad))) for grad in grads
    ]
    assert norms[1] < clip_norm < min(norms[0], norms[2])
    for part, of_part in (("body", 0.25), ("head", 3.0)):
        (layer,) = params[part]
        for leaf, w in params[part][layer].items():
            m = v = 0.0
            decay, of_leaf = {"kernel": (weight_decay, 1), "bias": (0, 2)}[leaf]
            for t, (grad, norm) in enumerate(zip(grads, norms, strict=True), start=1):
                g = grad[part][layer][leaf] * min(1, clip_norm / norm)
                if name == "sgd":
                    step = m = 0.9 * m + g + decay * w
                else:
                    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                    step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
                    step = step + decay * w
                w = w - rate * of_part * of_leaf * step
            np.testing.assert_allclose(
                found[part][layer][leaf], w, rtol=1e-4, atol=1e-5
            )


def test_state_does_not_depend_on_rates_and_clip_norm():
    params = params_of_both_parts(np.random.default_rng(0))
    plain = make_optimizer("sgd", lambda step: 1.0)
    other = make_optimizer("sgd", lambda step: 1.0, rates=(1.0, 10.0), clip_norm=1.0)
    assert jax.tree.structure(plain.init(params)) == jax.tree.structure(
        other.init(params)
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rates": (0.0, 1.0)}, r"rates = \(0.0, 1.0\) must be two .* in freeze"),
        ({"rates": (1.0,)}, "rates = .* must be two finite numbers above 0"),
        ({"rates": 2.0}, "rates = 2.0 must be two finite numbers above 0"),
        ({"rates": (1.0, float("inf"))}, "rates = .* must be two finite numbers"),
        ({"clip_norm": -1.0}, "clip_norm = -1.0 must be a finite number above 0, or"),
        ({"clip_norm": float("nan")}, "clip_norm = nan must be a finite number"),
    ],
)
def test_rates_and_clip_norm_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer("sgd", lambda step: 1.0, **values)
