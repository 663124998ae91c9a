import io
import json

import jax.numpy as jnp
import pytest
from tqdm import tqdm

from fcn_jax.training.log import Log, Meter, read_log


@pytest.fixture
def log(tmp_path):
    log = Log(tmp_path, start_step=0)
    yield log
    log.close()


def metrics(loss=2.0, pixels=4, correct=1, grad_norm=1.0, loss_count=None):
    values = {"loss": loss, "pixels": pixels, "correct": correct}
    values["loss_count"] = pixels if loss_count is None else loss_count
    return {k: jnp.asarray(v) for k, v in {**values, "grad_norm": grad_norm}.items()}


def meter_of(log, every=2):
    bar = tqdm(total=10, file=io.StringIO())
    return Meter(log, bar, schedule=lambda step: 0.5, batch_size=3, every=every)


def test_meter_logs_means_over_pixels_not_over_steps(log):
    meter = meter_of(log)
    meter.add(1, metrics(loss=2.0, pixels=1, correct=1, grad_norm=1.0))
    meter.add(2, metrics(loss=4.0, pixels=9, correct=4, grad_norm=2.0))
    meter.drain()
    (record,) = read_log(log.path)
    assert record["step"] == 2
    assert record["loss"] == pytest.approx(0.6)
    assert record["train_pixel_accuracy"] == pytest.approx(0.5)
    assert record["grad_norm"] == pytest.approx(1.5)
    assert record["learning_rate"] == 0.5
    assert record["images_per_second"] > 0


def test_meter_logs_the_mean_over_steps_of_a_loss_that_counts_one(log):
    meter = meter_of(log)
    meter.add(1, metrics(loss=0.2, pixels=1, loss_count=1))
    meter.add(2, metrics(loss=0.6, pixels=9, loss_count=1))
    meter.drain()
    (record,) = read_log(log.path)
    assert record["loss"] == pytest.approx(0.4)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_meter_names_the_step_that_is_not_finite(log, name, value):
    meter = meter_of(log)
    meter.add(1, metrics())
    meter.add(2, metrics(**{name: value}))
    with pytest.raises(FloatingPointError, match=rf"{name} is {value} at step 2"):
        meter.drain()


def test_meter_of_void_alone_logs_zero(log):
    meter = meter_of(log, every=1)
    meter.add(1, metrics(loss=0.0, pixels=0, correct=0, grad_norm=0.0))
    meter.drain()
    assert read_log(log.path)[0]["loss"] == 0


def test_resumed_log_drops_what_lies_beyond_the_step(tmp_path, log):
    for step in (1, 2, 3):
        log.scalars(step, {"loss": 0.5}, prefix="train")
    Log(tmp_path, start_step=2).close()
    assert [r["step"] for r in read_log(log.path)] == [1, 2]


def test_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert read_log(path) == [{"step": 1}]


def test_log_that_is_not_there_is_empty(tmp_path):
    assert read_log(tmp_path / "log.jsonl") == []
