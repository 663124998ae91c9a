import os
import queue
import signal
import subprocess
import sys

import pytest

from fcn_jax.__main__ import main, split_overrides
from fcn_jax.commands import convert


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "vgg16.npy", "--fast"],
        ["inspect", "vgg16.npy", "--config.steps=1"],
        ["train", "--config", "a.py", "--workdir", "run", "--fast"],
    ],
)
def test_unknown_argument_is_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert f"unrecognized arguments: {arguments[-1]}" in capsys.readouterr().err


def test_value_of_an_override_may_be_the_next_word():
    words = ["--config.steps", "-1", "--x", "--config.seed=2", "y", "--config.epochs"]
    assert split_overrides(words) == (
        ["--config.steps=-1", "--config.seed=2", "--config.epochs"],
        ["--x", "y"],
    )


CONVERT = ["convert", "a.npy", "a.safetensors"]


def test_interrupt_ends_a_command_with_one_line(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "run", interrupted)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit, match="130"):
        main(CONVERT)
    assert capsys.readouterr().err == "\nfcn_jax convert: interrupted\n"


def test_interrupt_ends_a_command_even_during_a_compiled_program(monkeypatch):
    ended, statuses = queue.Queue(), []

    def compute(_):
        signal.raise_signal(signal.SIGINT)
        statuses.append(ended.get(timeout=5))

    monkeypatch.setattr(os, "_exit", ended.put)
    # Python waits for a compiled program before it raises KeyboardInterrupt.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    monkeypatch.setattr(convert, "run", compute)
    main(CONVERT)
    signal.signal(signal.SIGINT, before)
    assert statuses == [130]


def modules_after(code):
    """The names of the modules that a Python has imported after running code."""
    code = f"import sys\n{code}\nprint(*sys.modules)"
    run = [sys.executable, "-c", code]
    return subprocess.check_output(run, text=True).split()


def test_help_lists_the_commands_and_imports_none(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        main(["--help"])
    said = capsys.readouterr().out
    for command in ("train", "evaluate", "predict", "check-data", "export"):
        assert f"\n    {command} " in said
    assert "jax" not in modules_after("import fcn_jax.__main__")


def test_predict_imports_nothing_of_training():
    modules = modules_after("import fcn_jax.commands.predict")
    assert "jax" in modules
    assert not {"grain", "orbax", "matplotlib", "tensorboardX"} & set(modules)
