import shlex

import pytest

from fcn_jax.__main__ import main
from fcn_jax.evaluation.report import SCORES
from fcn_jax.training import command

CONFIG = """
from fcn_jax.training.config import Config, Data, Model, Optim

def get_config():
    return Config(
        model=Model(variant="fcn32s", width=1 / 64),
        data=Data(name="shapes", num_classes=5, size=(32, 32), crop=(24, 24)),
        optim=Optim(schedule="constant"),
        steps=6,
        batch_size=2,
    )
"""


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    return ["train", "--config", str(tmp_path / "config.py"), "--workdir"]


def test_finished_run_is_printed_and_left_as_it_is(quick, whole_run, arguments, capsys):
    workdir, figures = whole_run
    before = (workdir / "model.safetensors").stat().st_mtime_ns
    rate = "--config.optim.learning_rate=1e-3"
    pace = ["--config.eval_every=2", "--config.log_every", "1"]
    assert main([*arguments, str(workdir), rate, *pace]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"Best network, of step {figures['step']}:"
    assert lines[0].split() == [
        "pixel",
        "accuracy",
        f"{100 * figures['pixel_accuracy']:.2f}",
    ]
    at = lines.index(f"Files in {workdir}:")
    named = [line.split()[0] for line in lines[at + 1 : at + 8]]
    assert named and all((workdir / name).exists() for name in named)
    for line in lines[-2:]:  # Commands that the parser takes.
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "fcn_jax"] and str(workdir) in words
        with pytest.raises(SystemExit, match="^0$"):
            main([*words[3:], "--help"])
    assert " train --config " in (workdir / "report.html").read_text()
    assert (workdir / "model.safetensors").stat().st_mtime_ns == before


def test_report_that_cannot_be_written_is_a_warning(
    arguments, monkeypatch, tmp_path, capsys, caplog
):
    figures = {"step": 1, "iu": {}, **dict.fromkeys(SCORES, 0.5)}
    monkeypatch.setattr(command, "train", lambda *_, **__: figures)
    assert main([*arguments, str(tmp_path / "run")]) == 0
    assert "Report:" not in capsys.readouterr().out
    assert "no report is written: " in caplog.text


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no data"), "no data"),
        (
            KeyboardInterrupt("stopped and saved at step 3"),
            "stopped and saved at step 3",
        ),
        (KeyboardInterrupt(), "interrupted"),
        (
            FloatingPointError("the loss is nan"),
            "the loss is nan: see config.optim.learning_rate and "
            "config.optim.warmup_steps",
        ),
    ],
)
def test_error_of_a_run_ends_in_one_line(arguments, monkeypatch, capsys, error, line):
    def fail(config, workdir, allow_changes):
        assert (config.steps, workdir, allow_changes) == (9, "run", False)
        raise error

    monkeypatch.setattr(command, "train", fail)
    assert main([*arguments, "run", "--config.steps=9"]) == 1
    assert capsys.readouterr().err == f"fcn_jax train: {line}\n"


def test_run_in_a_pipe_prints_plain_lines(quick, arguments, tmp_path, capsys):
    pace = ["--config.steps=2", "--config.eval_every=2", "--config.log_every=1"]
    pace.append("--config.optim.learning_rate=1e-3")  # Its program is compiled.
    assert main([*arguments, str(tmp_path / "run"), *pace]) == 0
    err = capsys.readouterr().err
    assert "\r" not in err and "\x1b" not in err
    lines = [line for line in err.splitlines() if line.startswith("step ")]
    begins = ["step 1 of 2, epoch 1/1: loss ", "step 2 of 2, epoch 1/1: loss "]
    begins.append("step 2: validation mean IU ")
    for line, begin in zip(lines, begins, strict=True):
        assert line.startswith(begin)
