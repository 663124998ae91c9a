import contextlib
import json
import logging
import time

import jax.numpy as jnp
import pytest

from fcn_jax.training.config import Config
from fcn_jax.training.display import Display
from fcn_jax.training.log import TIMES, Log, Meter, read_log


@pytest.fixture
def log(tmp_path):
    log = Log(tmp_path, start_step=0)
    yield log
    log.close()


def metrics(loss=2.0, pixels=4, correct=1, grad_norm=1.0, loss_count=None):
    values = {"loss": loss, "pixels": pixels, "correct": correct}
    values["loss_count"] = pixels if loss_count is None else loss_count
    return {k: jnp.asarray(v) for k, v in {**values, "grad_norm": grad_norm}.items()}


@pytest.fixture
def meter_of(log):
    """A function that makes a meter, which logs every second step unless told."""
    with contextlib.ExitStack() as stack:

        def make(every=2, **options):
            config = Config(steps=10, eval_every=10)
            shown = stack.enter_context(Display(config, 10, 0, shown=False))
            options = {"schedule": lambda step: 0.5, "batch_size": 3} | options
            return stack.enter_context(Meter(log, shown, every=every, **options))

        yield make


def add(meter, step, shape=(3, 8, 8, 3), waited=0.0, **values):
    got = time.perf_counter()
    meter.add(step, metrics(**values), shape=shape, asked=got - waited, got=got)


def test_meter_logs_means_over_pixels_not_over_steps(log, meter_of):
    meter = meter_of()
    add(meter, 1, loss=2.0, pixels=1, correct=1, grad_norm=1.0)
    add(meter, 2, loss=4.0, pixels=9, correct=4, grad_norm=2.0)
    meter.drain()
    (record,) = read_log(log.path)
    assert record["step"] == 2
    assert record["loss"] == pytest.approx(0.6)
    assert record["train_pixel_accuracy"] == pytest.approx(0.5)
    assert record["grad_norm"] == pytest.approx(1.5)
    assert record["learning_rate"] == 0.5
    assert record["images_per_second"] > 0


def test_meter_logs_the_mean_over_steps_of_a_loss_that_counts_one(log, meter_of):
    meter = meter_of()
    add(meter, 1, loss=0.2, pixels=1, loss_count=1)
    add(meter, 2, loss=0.6, pixels=9, loss_count=1)
    meter.drain()
    (record,) = read_log(log.path)
    assert record["loss"] == pytest.approx(0.4)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_meter_names_the_step_that_is_not_finite(meter_of, name, value):
    meter = meter_of()
    add(meter, 1)
    add(meter, 2, **{name: value})
    with pytest.raises(FloatingPointError, match=rf"{name} is {value} at step 2"):
        meter.drain()


def test_meter_of_void_alone_logs_zero(log, meter_of):
    meter = meter_of(every=1)
    add(meter, 1, loss=0.0, pixels=0, correct=0, grad_norm=0.0)
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


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_meter_logs_the_same_means(log, meter_of, stop):
    def run(meter, steps):
        for step in steps:
            side = 8 + step % 2
            add(meter, step, (3, side, 8, 3), loss=step / 3, grad_norm=1 / step)
        meter.drain()

    def means():
        lines = read_log(log.path)
        return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]

    run(meter_of(every=4), range(1, 5))
    [whole] = means()
    stopped = meter_of(every=4)
    run(stopped, range(1, stop + 1))
    progress = json.loads(json.dumps(stopped.progress))
    run(meter_of(every=4, progress=progress), range(stop + 1, 5))
    assert means() == [whole, whole]
    assert whole["compiles"] == 2


def test_speed_and_waiting_are_those_of_the_device(log, meter_of, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    meter = meter_of()
    # Each step: when it asks for its batch, has it, and is done.
    for step, asked, got, done in ((1, 0, 2, 3), (2, 1, 4, 5)):
        now[0] = done
        meter.add(step, metrics(), shape=(3, 8, 8, 3), asked=asked, got=got)
        meter.drain()
    now[0] = 100.0  # After an evaluation.
    meter.restart_clock()
    for step, asked, got, done in ((3, 100, 100, 101), (4, 100, 100.5, 102)):
        now[0] = done
        meter.add(step, metrics(), shape=(3, 8, 8, 3), asked=asked, got=got)
        meter.drain()
    first, second = read_log(log.path)
    assert first["images_per_second"] == pytest.approx(2 * 3 / 5)
    assert first["waited_for_data"] == pytest.approx((2 + 1) / 5)
    assert second["images_per_second"] == pytest.approx(2 * 3 / 2)
    assert second["waited_for_data"] == 0


def test_damaged_lines_are_left_out_with_a_warning(tmp_path, caplog):
    path = tmp_path / "log.jsonl"
    good = [{"step": 1, "loss": 0.5}, {"step": 2, "mean_iu": None, "iu": {"a": 0.5}}]
    bad = [b"{", b"[]", b"\xff", b'{"loss": 1}', b'{"step": "x"}', b"[" * 10**5]
    bad += [b'{"step": 1, "loss": "x"}', b'{"step": 1, "loss": 1' + b"0" * 99 + b"}"]
    lines = [json.dumps(good[0]).encode(), *bad, json.dumps(good[1]).encode()]
    path.write_bytes(b"\n".join(lines) + b"\n")
    with caplog.at_level(logging.WARNING):
        assert read_log(path) == good
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: line {n} is damaged and left out" for n in range(2, 2 + len(bad))
    ]
