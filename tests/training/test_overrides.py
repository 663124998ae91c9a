import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fcn_jax.__main__ import main
from fcn_jax.training.config import Config, flat
from fcn_jax.training.overrides import config_help, read_config

ROOT = Path(__file__).parents[2]
FOLDER = str(ROOT / "configs" / "folder.py")


def test_fields_are_set_by_their_types():
    config = read_config(
        FOLDER,
        [
            "--config.data.crop=(1, 2)",
            "--config.init_from=",
            "--config.data.flip=false",
            "--config.optim.learning_rate=-1",
            "--config.data.class_names=('sky', 'a b')",
        ],
    )
    assert config.data.crop == (1, 2) and config.init_from == ""
    assert config.data.flip is False and config.optim.learning_rate == -1
    assert config.data.class_names == ("sky", "a b") and config.epochs == 20


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "--config.batchsize=2",
            "config.batchsize is not .* nearest .*config.batch_siz",
        ),
        ("--config.optim.rate=2", "config.optim.rate is not a field of a config"),
        ("--config.learning_rate=2", "nearest are config.optim.learning_rate;"),
        ("--config.data=2", "config.data is not a field"),
        ("--config.batch_size=abc", "config.batch_size = abc must be of type int"),
        (
            "--config.data.flip=maybe",
            "flip = maybe must be of type bool: true or false",
        ),
        ("--config.data.crop=(1", "crop = .1 must be of type tuple, such as"),
        ("--config.steps", "--config.steps has no value"),
    ],
)
def test_wrong_override_is_one_line_with_the_field(capsys, override, message):
    assert main(["train", "--config", FOLDER, "--workdir", "x", override]) == 1
    text = capsys.readouterr().err
    assert re.search(f"^fcn_jax train: .*{message}", text) and text.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "there is no such file"),
        ("x = 1", "get_config"),
        ("def get_config(): return nothing", "NameError: name 'nothing'"),
        ("def get_config(): return {}", "returns a dict, want"),
        ("def get_config(:", "SyntaxError"),
    ],
)
def test_config_file_that_gives_no_config_is_named(tmp_path, code, message):
    path = tmp_path / "config.py"
    if code:
        path.write_text(code)
    with pytest.raises(ValueError, match=f"config.py: .*{message}"):
        read_config(str(path))


def test_configs_that_come_along_are_known_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = read_config(str(ROOT / "configs" / "quickstart.py"))
    assert read_config("quickstart") == expected
    with pytest.raises(ValueError, match="--config=fast: .* are ade20k, camvid, .*"):
        read_config("fast")


def test_help_has_the_type_the_default_and_a_meaning_for_every_field(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        main(["train", "--helpconfig"])
    text = capsys.readouterr().out
    assert text.strip() == config_help()
    entries = dict(re.findall(r"^([\w.]+) \(\w+\) = .*\n    (\S.*)", text, re.M))
    assert entries.keys() == {name for name, *_ in flat(Config())}
    assert "batch_size (int) = 4\n    images per step." in text


def test_train_py_is_the_train_command(tmp_path):
    run = subprocess.run(
        [sys.executable, ROOT / "train.py", "--config", FOLDER, "--workdir=x"]
        + ["--config.data.size=(0, 8)", "--config.data.root", "."],
        cwd=tmp_path,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and not list(tmp_path.iterdir())
    assert run.stderr.strip().splitlines()[-1] == (
        "fcn_jax train: config.data.size = (0, 8) must be (height, width) or ()"
    )
