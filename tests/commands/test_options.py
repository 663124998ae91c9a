import numpy as np
import pytest
from PIL import Image

import fcn_jax
from fcn_jax.__main__ import main
from fcn_jax.data.images import read_label

COMMANDS = {
    "evaluate": [],
    "predict": ["image.png", "--out", "out"],
    "export": ["--out", "out.npz"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_run_is_named(command, tmp_path, capsys):
    run = tmp_path / "nowhere"
    assert main([command, "--run", str(run), *COMMANDS[command]]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"fcn_jax {command}: ") and str(run) in error


@pytest.mark.parametrize("command", COMMANDS)
def test_run_without_a_network_is_named(command, make_run, data, capsys):
    run = make_run(root=str(data))
    (run / "model.safetensors").unlink()
    assert main([command, "--run", str(run), *COMMANDS[command]]) == 1
    assert f"{run / 'model.safetensors'} is not there" in capsys.readouterr().err


def test_run_of_an_older_version_resizes_as_its_config_says(
    picture, net, make_run, tmp_path
):
    run = make_run(root="not needed", size=(24, 24))
    fcn_jax.save(run / "model.safetensors", net)  # A file that has no size.
    Image.fromarray(picture(1, (20, 33))).save(tmp_path / "a.png")
    out = tmp_path / "out"
    command = ["predict", "--run", str(run), "--out", str(out)]
    assert main([*command, str(tmp_path / "a.png")]) == 0
    expected = fcn_jax.predict(net.replace(size=(24, 24)), tmp_path / "a.png")
    np.testing.assert_array_equal(read_label(out / "a.png"), expected)
