import time

import pytest

from fcn_jax import progress
from fcn_jax.progress import Progress, say, size, track


@pytest.fixture
def now(monkeypatch):
    """The time that a test sets."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_pipe_gets_a_plain_line_now_and_then(now, capsys):
    with Progress("predict", 100, unit="image") as work:
        for _ in range(40):
            now[0] += progress.INTERVAL / 20
            work.update()
    assert capsys.readouterr().err.splitlines() == [
        "predict: 20 of 100 images, 01:00 left",
        "predict: 40 of 100 images, 00:45 left",
    ]


def test_bytes_that_lay_there_before_do_not_count_as_speed(now, capsys):
    with Progress("download a", 4_000_000, unit="B", initial=1_000_000) as work:
        now[0] = 20.0
        work.update(1_000_000)
    line = "download a: 2 MB of 4 MB, 00:40 left\n"
    assert capsys.readouterr().err == line


def test_short_or_hidden_work_writes_nothing_to_a_pipe(now, capsys):
    assert list(track("ab", "survey", 2, unit="image")) == ["a", "b"]
    for _ in track("ab", "survey", 2, unit="image", shown=False):
        now[0] += 2 * progress.INTERVAL
    assert capsys.readouterr().err == ""


def test_terminal_gets_a_bar_that_goes_away(terminal):
    for _ in track("ab", "survey", 2, unit="image"):
        say("a line")
    text = terminal.readouterr().err
    assert "survey:   0%" in text and "a line\n" in text
    assert text.rpartition("\r")[2] == ""  # The cursor is at the start of its line,
    assert text.split("\r")[-2].strip() == ""  # which is empty.


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_700, "1 MB"),
        (1_634_000_000, "1.63 GB"),
        (5e15, "5e+03 TB"),
    ],
)
def test_size_has_three_digits(count, text):
    assert size(count) == text
