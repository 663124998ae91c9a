import time

import pytest

from fcn_jax.training import display
from fcn_jax.training.config import Config
from fcn_jax.training.display import Display, memory_in_use

VALUES = {"loss": 0.51234, "images_per_second": 106.4, "learning_rate": 4e-3}
CONFIG = Config(steps=100, batch_size=4, eval_every=30)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def evaluate(shown, clock, seconds):
    with shown.evaluation():
        clock[0] += seconds


def test_time_left_counts_steps_and_the_evaluations_to_come(clock, capsys):
    with Display(CONFIG, 40, 0) as shown:
        assert shown.time_left() == "?"
        shown.step(1, 60.0, compiled=True)
        assert shown.time_left() == "?"
        for step in range(2, 31):
            shown.step(step, 2.0, compiled=False)
        # Steps 31 to 100; evaluations after 30, 60, 90 and 100.
        assert shown.time_left() == "02:20 + 4 evaluations"
        evaluate(shown, clock, 20)
        assert shown.time_left() == "03:20"
        for step in range(31, 61):
            shown.step(step, 2.0, compiled=False)
        before = shown.time_left()
        evaluate(shown, clock, 20)
        assert (before, shown.time_left()) == ("02:20", "02:00")
    assert capsys.readouterr().err == ""


def test_time_left_of_a_resumed_run_leaves_earlier_evaluations_out(clock):
    with Display(CONFIG, 40, 95) as shown:
        shown.step(96, 1.0, compiled=False)
        assert shown.time_left() == "00:04 + 1 evaluation"


def test_time_left_follows_the_latest_pace():
    with Display(Config(steps=1000, eval_every=1000), 40, 0) as shown:
        for step in range(1, 301):
            shown.step(step, 1.0 if step <= 100 else 3.0, compiled=False)
        seconds = 3 - 2 * 0.98**200
        minutes, rest = divmod(int(700 * seconds), 60)
        assert shown.time_left() == f"{minutes:02}:{rest:02} + 1 evaluation"


def test_pipe_gets_a_plain_line_for_the_figures(capsys, monkeypatch):
    monkeypatch.setattr(display, "memory_in_use", lambda: 1_230_000_000)
    with Display(CONFIG, 38, 0, best=0.25) as shown:
        for step in (11, 12):
            shown.step(step, 1.0, compiled=False)
            if step == 12:
                shown.figures(VALUES)
    assert capsys.readouterr().err == (
        "step 12 of 100, epoch 2/10: loss 0.5123, 106 images/s, best IU 0.250, "
        "rate 0.004, memory 1.23 GB, 01:28 + 4 evaluations left\n"
    )


def test_terminal_gets_one_bar_with_the_figures(terminal, clock):
    with Display(CONFIG, 40, 0) as shown:
        shown.step(30, 1.0, compiled=False)
        evaluate(shown, clock, 10)
        shown.best = 0.25
        shown.figures(VALUES)
    text = terminal.readouterr().err
    assert text.count("\n") == 1  # At the end alone.
    first, *_, last = text.strip().split("\r")
    assert first.startswith("epoch 1/10, 0/100 |") and "? left, compiling" in first
    assert last.startswith("epoch 3/10, 30/100 |") and "01:40 left" in last
    for figure in ("loss 0.5123", "106 images/s", "best IU 0.250"):
        assert figure in last
    assert "rate" not in last  # 80 columns do not hold it.


def test_hidden_run_shows_nothing(capsys):
    with Display(CONFIG, 40, 0, shown=False) as shown:
        shown.step(1, 1.0, compiled=False)
        shown.figures(VALUES)
    assert capsys.readouterr().err == ""


def test_memory_of_this_process_is_that_of_numpy_and_jax_at_least():
    assert 10**7 < memory_in_use() < 10**12
