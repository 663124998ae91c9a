import json
import shutil

import pytest

from fcn_jax.__main__ import main
from fcn_jax.training.config import save_config
from fcn_jax.training.verify import verify_run

FILES = (
    "config.json",
    "model.safetensors",
    "metrics.json",
    "checkpoints/6.safetensors",
    "log.jsonl",
)


@pytest.fixture
def run(whole_run, tmp_path):
    return shutil.copytree(whole_run[0], tmp_path / "run")


def test_whole_run_is_told_to_be_whole(whole_run, run, capsys):
    assert main(["inspect", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} >= set(FILES)
    figures = whole_run[1]
    score = f"whole: step {figures['step']}, mean IU {figures['mean_iu']:.4f}"
    assert sum(score in line for line in lines) == 1


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flipped", "cut", "empty"])
def test_damaged_file_is_named(run, name, how, capsys):
    path = run / name
    content = bytearray(path.read_bytes())
    content[-9] ^= 64
    damaged = {"flipped": content, "cut": path.read_bytes()[:-30], "empty": b""}
    path.write_bytes(damaged[how])
    broken = [verdict.name for verdict in verify_run(run) if not verdict.is_whole]
    assert broken == [name]
    assert main(["inspect", str(run)]) == 1
    output = capsys.readouterr()
    assert str(path) in output.out and f"{run} is not whole" in output.err


def test_figures_of_another_network_are_named(run):
    figures = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(figures | {"mean_iu": 0.99}))
    [broken] = [verdict for verdict in verify_run(run) if not verdict.is_whole]
    assert "metrics.json differs from the figures in model.safetensors" in broken.found


def test_missing_checkpoint_of_the_best_network_is_named(whole_run, run):
    best = run / "checkpoints" / f"{whole_run[1]['step']}.safetensors"
    best.unlink()
    assert any(str(best) in v.found for v in verify_run(run) if not v.is_whole)


def test_run_without_an_evaluation_is_whole(run):
    for name in ("model.safetensors", "metrics.json"):
        (run / name).unlink()
    assert all(verdict.is_whole for verdict in verify_run(run))


def test_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 1
    assert "is not the directory of a run" in capsys.readouterr().out


def test_config_of_another_network_is_refused(run, thin_config, capsys):
    config = thin_config()
    config.model.mean = (1.0, 2.0, 3.0)
    save_config(run / "config.json", config)
    for command in (["evaluate"], ["predict", "x.png", "--out", str(run / "out")]):
        assert main([*command, "--run", str(run)]) == 1
        error = capsys.readouterr().err
        assert (
            f"{run}/config.json says mean = (1.0, 2.0, 3.0), and {run}/model" in error
        )
        assert "use --weights" in error
