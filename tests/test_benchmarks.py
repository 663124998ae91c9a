import importlib.util
import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(tmp_path, script, *arguments):
    """The figures that a benchmark writes, and what it prints."""
    out = tmp_path / "out.json"
    printed = subprocess.run(
        [sys.executable, BENCHMARKS / script, *map(str, arguments), "--out", out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert printed.returncode == 0, printed.stderr
    return json.loads(out.read_text()), printed.stdout


def test_upsample_compares_every_form(tmp_path):
    options = ("--side", 32, "--classes", 2, "--repeats", 1)
    figures, printed = run(tmp_path, "upsample.py", *options)
    for use in ("FCN-32s", "FCN-16s", "FCN-8s"):
        forms = figures["uses"][use]
        assert len(forms) == 6
        for name, found in forms.items():
            assert name in printed
            assert found["difference"] < 1e-5
            assert found["forward"]["seconds"] > 0
            assert found["with gradient"]["seconds"] > 0


def test_pipeline_measures_each_way(tmp_path):
    options = ("--images", 4, "--crop", 64, "--batch-size", 2, "--batches", 2)
    options += ("--rounds", 1, "--cores", 1)
    figures, printed = run(tmp_path, "pipeline.py", *options)
    found = figures["images/s"]
    assert list(found) == ["one core", "threads", "processes"]
    assert all(row["fcn_jax"] > 0 for row in found.values())
    installed = importlib.util.find_spec("torch") is not None
    assert ("torch: not installed" in printed) != installed
    assert ("torch" in found["processes"]) == installed
