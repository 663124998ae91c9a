import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fcn_jax.models.fcn import FCN
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
WEIGHTS = (1.0, 0.25, 4.0)


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
    step = jax.jit(make_train_step(model, tx, **options))
    state, metrics = step(init_state(params, tx), batch, KEY)
    assert state.step == 1
    return jax.tree.map(lambda a, b: a - b, params, state.params), metrics


def loss_by_hand(params, batch, divisor, model=MODEL):
    logits = model.apply({"params": params}, batch["image"])
    log_probability = jax.nn.log_softmax(logits)
    one_hot = jax.nn.one_hot(batch["label"], logits.shape[-1])  # Zero for 255.
    return -(one_hot * log_probability).sum() / divisor


def focal_by_hand(logits, label):
    p = (jax.nn.softmax(logits) * jax.nn.one_hot(label, 3)).sum(-1)
    weights = jnp.asarray(WEIGHTS)[label % 255] * (label != 255)
    losses = weights * (1 - p) ** 2 * -jnp.log(jnp.where(p == 0, 1, p))
    return losses.sum(), weights.sum()


def dice_by_hand(logits, label):
    p, g = jax.nn.softmax(logits)[label != 255], np.eye(3)[label[label != 255]]
    share = jnp.stack([2 * p[:, c] @ g[:, c] for c in range(3)])
    share = share / (p.sum(0) + g.sum(0))
    occurs = jnp.asarray(WEIGHTS) * g.any(0)
    return (occurs * (1 - share)).sum() / occurs.sum()


def values_by_hand(logits, label):
    """The value of each loss, and the sum and the number that are logged."""
    nats = -jax.nn.log_softmax(logits) * jnp.asarray(WEIGHTS)
    nats = (nats * jax.nn.one_hot(label, 3)).sum()
    focal, count = focal_by_hand(logits, label)
    dice = dice_by_hand(logits, label)
    both = nats / count + dice
    return {
        "focal": (focal / count, focal, (label != 255).sum()),
        "dice": (dice, dice, 1),
        "cross_entropy+dice": (both, both, 1),
    }


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


@pytest.mark.parametrize(
    ("loss", "accumulate"), [("focal", 1), ("dice", 2), ("cross_entropy+dice", 1)]
)
def test_step_follows_the_gradient_of_each_loss(params, batch, loss, accumulate):
    def by_hand(params):
        # Each micro-batch, of every second image, has dropout masks of its own.
        key, label, logits = jax.random.fold_in(KEY, 0), batch["label"], []
        for i in range(accumulate):
            rngs = {"dropout": jax.random.fold_in(key, i) if accumulate > 1 else key}
            image = batch["image"][i::accumulate]
            logits.append(model.apply({"params": params}, image, train=True, rngs=rngs))
        label = np.concatenate([label[i::accumulate] for i in range(accumulate)])
        value, *logged = values_by_hand(jnp.concatenate(logits), label)[loss]
        return value, logged

    model = MODEL.clone(dropout=0.5)
    expected, (total, count) = jax.jit(jax.grad(by_hand, has_aux=True))(params)
    options = {"loss": loss, "accumulate": accumulate, "class_weights": WEIGHTS}
    grads, metrics = one_step(params, batch, model, **options)
    assert_close(grads, expected)
    assert metrics["loss"] == pytest.approx(float(total), rel=1e-5)
    assert metrics["loss_count"] == count


@pytest.mark.parametrize("loss", ["cross_entropy", "cross_entropy+dice"])
def test_all_void_batch_changes_nothing(params, batch, loss):
    void = {**batch, "label": np.full_like(batch["label"], 255)}
    grads, metrics = one_step(params, void, loss=loss)
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
    step = jax.jit(step)
    state, metrics = step(init_state(net.params, tx), batch, KEY)
    kinds = {leaf.dtype for leaf in jax.tree.leaves((state.params, metrics["loss"]))}
    assert kinds == {jnp.dtype("float32")}
    loss = loss_by_hand(net.params, batch, int(metrics["pixels"]), net.model)
    assert metrics["loss"] / metrics["pixels"] == pytest.approx(float(loss), rel=2e-2)


def test_frozen_layers_stay_and_the_others_learn_as_without(reference, batch):
    net, freeze = reference.network("fcn32s"), ("conv", "fc7")
    tx = optax.chain(optax.trace(0.9), optax.scale(-0.1))

    def train(model, freeze):
        options = {"loss": "cross_entropy+dice", "accumulate": 2, "freeze": freeze}
        step = jax.jit(make_train_step(model, tx, **options))
        return step(init_state(net.params, tx, freeze=freeze), batch, KEY)

    whole, _ = train(net.model, ())
    state, metrics = train(net.model.clone(remat="blocks"), freeze)
    trace, expected = state.opt_state[0].trace, whole.opt_state[0].trace
    assert [*trace["body"], *trace["head"]] == ["fc6", "score_fr"]
    for part, layers in net.params.items():
        for name, layer in layers.items():
            if name in trace[part]:
                assert_close(trace[part][name], expected[part][name])
                assert_close(state.params[part][name], whole.params[part][name])
            else:
                found = state.params[part][name]
                jax.tree.map(np.testing.assert_array_equal, found, layer)
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(trace)))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5) and norm > 1


def test_frozen_layers_cost_no_gradient():
    side, filters = 64, {1: 2, 2: 4, 3: 8}
    model = FCN("fcn32s", num_classes=4, width=1 / 32)
    key, image = jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
    batch = {"image": image, "label": jax.ShapeDtypeStruct(image.shape[:3], np.int32)}
    params = jax.eval_shape(model.init, key, image)["params"]
    tx = optax.sgd(1.0)

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).cost_analysis()["flops"]

    def step_flops(*freeze):
        state = jax.eval_shape(lambda p: init_state(p, tx, freeze=freeze), params)
        return flops(make_train_step(model, tx, freeze=freeze), state, batch, key)

    forward = flops(model.apply, {"params": params}, image)
    # Two operations per weight and position; the border of zeros costs less.
    conv1_1, conv1_2 = (2 * side**2 * 9 * c * filters[1] for c in (3, filters[1]))
    conv2_1, conv2_2 = (2 * (side // 2) ** 2 * 9 * c * filters[2] for c in (2, 4))
    conv3_1 = 2 * (side // 4) ** 2 * 9 * filters[2] * filters[3]
    saved = conv1_1 + 2 * (conv1_2 + conv2_1 + conv2_2) + conv3_1
    assert step_flops() - step_flops("conv1", "conv2") > 0.9 * saved
    assert step_flops("conv", "fc") < 1.2 * forward


def test_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="loss = 'iou' is not one of cross_entropy, "):
        make_train_step(MODEL, optax.sgd(1.0), loss="iou")


def test_unknown_normalization_is_refused():
    with pytest.raises(ValueError, match="loss_normalization = 'median' is not one of"):
        make_train_step(MODEL, optax.sgd(1.0), loss_normalization="median")
