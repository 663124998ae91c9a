import numpy as np
from PIL import Image

from fcn_jax.__main__ import main


def test_check_data_finds_the_flaw_and_its_file(config_file, data, tmp_path, capsys):
    arguments = ["check-data", "--config", config_file, "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    flawed = data / "labels" / "val" / "1.png"
    Image.fromarray(np.full((32, 24), 77, np.uint8)).save(flawed)
    capsys.readouterr()
    assert main(arguments) == 1
    assert f"{flawed}: label values 77" in capsys.readouterr().out
