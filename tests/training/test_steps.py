import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fcn_jax.training.steps import init_state, make_train_step


class Tiny(nn.Module):
    """A network that compiles at once."""

    dropout: float = 0.0

    @nn.compact
    def __call__(self, image, size=None, *, train=False):
        x = nn.relu(nn.Conv(8, (3, 3))(image.astype("float32") / 128 - 1))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Conv(3, (1, 1))(x)


MODEL = Tiny()
KEY = jax.random.key(7)
FAST = {"xla_backend_optimization_level": 0}  # Compiles in half the time.


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0), jnp.zeros([1, 1, 1, 3]))["params"]


@pytest.fixture(scope="module")
def net(reference):
    return reference.network("fcn8s")


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, [4, 16, 16, 3]).astype(np.uint8)
    label = rng.integers(0, 3, [4, 16, 16]).astype(np.int32)
    label[0, :12] = 255  # Voids are uneven from image to image.
    return {"image": image, "label": label}


def one_step(params, batch, model=MODEL, **options):
    """Gradient and metrics of a step of plain SGD at rate 1."""
    tx = optax.sgd(1.0)
    step = jax.jit(make_train_step(model, tx, **options), compiler_options=FAST)
    state, metrics = step(init_state(params, tx), batch, KEY)
    assert state.step == 1
    return jax.tree.map(lambda a, b: a - b, params, state.params), metrics


def loss_by_hand(params, batch, divisor, model=MODEL):
    logits = model.apply({"params": params}, batch["image"])
    log_probability = jax.nn.log_softmax(logits)
    one_hot = jax.nn.one_hot(batch["label"], logits.shape[-1])  # Zero for 255.
    return -(one_hot * log_probability).sum() / divisor


def assert_close(found, expected):
    scale = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * float(scale))


@pytest.mark.parametrize("normalization", ["mean", "sum"])
def test_step_follows_the_gradient_of_the_normalized_loss(params, batch, normalization):
    labelled = int((batch["label"] != 255).sum())
    divisor = {"mean": labelled, "sum": 4}[normalization]
    value, expected = jax.jit(jax.value_and_grad(loss_by_hand))(params, batch, divisor)
    grads, metrics = one_step(params, batch, loss_normalization=normalization)
    assert_close(grads, expected)
    assert metrics["loss"] == pytest.approx(float(value) * divisor, rel=1e-5)
    assert metrics["pixels"] == labelled
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(expected)))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_step_divides_by_the_weights_of_the_labelled_pixels(params, batch):
    weights = (1.0, 0.25, 4.0)
    labels = batch["label"][batch["label"] != 255]

    def by_hand(params):
        logits = MODEL.apply({"params": params}, batch["image"])
        one_hot = jax.nn.one_hot(batch["label"], 3) * jnp.array(weights)
        loss = -(one_hot * jax.nn.log_softmax(logits)).sum()
        return loss / sum(weights[label] for label in labels)

    grads, _ = one_step(params, batch, class_weights=weights)
    assert_close(grads, jax.jit(jax.grad(by_hand))(params))


def test_step_counts_right_pixels_among_the_labelled(params, batch):
    logits = np.asarray(MODEL.apply({"params": params}, batch["image"]))
    expected = (logits.argmax(-1) == batch["label"]).sum()
    _, metrics = one_step(params, batch)
    assert metrics["correct"] == expected


def test_step_on_padded_images_is_the_step_on_each_alone(net, batch):
    sizes = [(16, 16), (9, 13), (16, 1)]
    filled = {key: value[:3].copy() for key, value in batch.items()}
    total, pixels = jax.tree.map(jnp.zeros_like, net.params), 0
    for i, (h, w) in enumerate(sizes):
        alone = {key: value[i : i + 1, :h, :w] for key, value in batch.items()}
        grads, metrics = one_step(net.params, alone, net.model)
        pixels += int(metrics["pixels"])
        total = jax.tree.map(lambda t, g, n=metrics["pixels"]: t + n * g, total, grads)
        for key, void in (("image", 9), ("label", 255)):
            filled[key][i, h:] = void
            filled[key][i, :, w:] = void
    filled["size"] = np.array(sizes, np.int32)
    grads, metrics = one_step(net.params, filled, net.model)
    assert metrics["pixels"] == pixels
    assert_close(grads, jax.tree.map(lambda t: t / pixels, total))


@pytest.mark.parametrize("accumulate", [2, 4])
@pytest.mark.parametrize("normalization", ["mean", "sum"])
def test_micro_batches_have_the_gradient_of_the_whole_batch(
    params, batch, normalization, accumulate
):
    labelled = int((batch["label"] != 255).sum())
    divisor = {"mean": labelled, "sum": 4}[normalization]
    value, expected = jax.jit(jax.value_and_grad(loss_by_hand))(params, batch, divisor)
    grads, metrics = one_step(
        params, batch, loss_normalization=normalization, accumulate=accumulate
    )
    assert_close(grads, expected)
    assert metrics["loss"] == pytest.approx(float(value) * divisor, rel=1e-5)
    assert metrics["pixels"] == labelled


def test_micro_batches_take_less_memory(params, batch):
    def memory(accumulate):
        tx = optax.sgd(1.0)
        step = jax.jit(make_train_step(MODEL, tx, accumulate=accumulate))
        compiled = step.lower(init_state(params, tx), batch, KEY).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    batch = {
        k: np.repeat(np.tile(x, (1, 6, 6, 1)[: x.ndim]), 2, 0) for k, x in batch.items()
    }
    assert memory(8) < 0.5 * memory(1)


def test_micro_batches_have_different_dropout_masks(params, batch):
    model = MODEL.clone(dropout=0.5)

    def loss(copies):
        same = {k: np.repeat(x[1:2], copies, axis=0) for k, x in batch.items()}
        return one_step(params, same, model, accumulate=copies)[1]["loss"]

    # With the same mask for all copies, four would lose exactly twice as much as two.
    assert abs(loss(4) / (2 * loss(2)) - 1) > 1e-5


def test_all_void_batch_changes_nothing(params, batch):
    void = {**batch, "label": np.full_like(batch["label"], 255)}
    grads, metrics = one_step(params, void)
    assert metrics["loss"] == metrics["pixels"] == metrics["grad_norm"] == 0
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads))


def test_dropout_differs_from_step_to_step_and_is_a_function_of_the_key(params, batch):
    model = MODEL.clone(dropout=0.5)
    tx = optax.set_to_zero()
    step = jax.jit(make_train_step(model, tx))
    state = init_state(params, tx)
    state_1, first = step(state, batch, KEY)
    _, again = step(state, batch, KEY)
    _, second = step(state_1, batch, KEY)
    _, other = step(state, batch, jax.random.key(8))
    losses = [float(m["loss"]) for m in (first, second, other)]
    assert first["loss"] == again["loss"]
    assert len(set(losses)) == 3


def test_step_under_pmap_of_one_device_equals_jit(params, batch):
    tx = optax.sgd(1.0)
    step = make_train_step(MODEL, tx, axis_name="batch")
    pmapped = jax.pmap(step, axis_name="batch", in_axes=(None, 0, None), out_axes=None)
    shard = jax.tree.map(lambda x: x[None], batch)
    state, metrics = pmapped(init_state(params, tx), shard, KEY)
    expected, expected_metrics = one_step(params, batch)
    assert_close(jax.tree.map(lambda a, b: a - b, params, state.params), expected)
    assert metrics["loss"] == pytest.approx(float(expected_metrics["loss"]), rel=1e-6)


def test_bfloat16_step_keeps_float32_state(net, batch):
    tx = optax.adamw(1e-3)
    step = make_train_step(net.model.clone(dtype=jnp.bfloat16), tx)
    step = jax.jit(step, compiler_options=FAST)
    state, metrics = step(init_state(net.params, tx), batch, KEY)
    kinds = {leaf.dtype for leaf in jax.tree.leaves((state.params, metrics["loss"]))}
    assert kinds == {jnp.dtype("float32")}
    loss = loss_by_hand(net.params, batch, int(metrics["pixels"]), net.model)
    assert metrics["loss"] / metrics["pixels"] == pytest.approx(float(loss), rel=2e-2)


def test_unknown_normalization_is_refused():
    with pytest.raises(ValueError, match="loss_normalization = 'median' is not one of"):
        make_train_step(MODEL, optax.sgd(1.0), loss_normalization="median")
