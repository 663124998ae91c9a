"""What the tests of faults share, and the table of what became of all faults."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
from lab import GOOD, Lab, Trial

from fcn_jax.evaluation import report
from fcn_jax.parallel import Parallel
from fcn_jax.training import loop
from fcn_jax.visualize import save_image


@contextlib.contextmanager
def quick_commands():
    """Draw no large pictures, and make each step once."""
    steps, step = {}, Parallel.step

    def kept_step(parallel, make_step):
        key = repr((parallel.mode, make_step.args[0], make_step.keywords))
        return steps.setdefault(key, step(parallel, make_step))

    def draw(path, *_, **__):
        save_image(path, (8, 8), [np.zeros((8, 8, 3), np.uint8)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parallel, "step", kept_step)
        patch.setattr(report, "results_figure", draw)
        patch.setattr(report, "confusion_chart", draw)
        patch.setattr(loop, "learning_curves", draw)
        yield


@pytest.fixture(scope="module")
def lab(tmp_path_factory, keeping_programs):
    folder = tmp_path_factory.mktemp("faults")
    with quick_commands(), keeping_programs(folder / "compiled"):
        lab = Lab(folder)
        lab.build()
        yield lab


@pytest.fixture
def judge(request):
    """A function that notes trials for the table and fails for the bad ones."""

    def judge(trials):
        trials = [trial for trial in trials if trial.outcome != "not reached"]
        request.node.user_properties.extend(("trial", tuple(t)) for t in trials)
        bad = [t for t in trials if t.outcome not in GOOD]
        listed = "\n".join(f"{t.outcome}: {t.fault}: {t.note[-500:]}" for t in bad)
        assert not bad, f"{len(bad)} of {len(trials)} faults:\n{listed}"

    return judge


def pytest_terminal_summary(terminalreporter):
    """Print the table of all trials; write it to the file that FAULTS_TABLE names."""
    trials = [
        Trial(*value)
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "trial" and report.when == "call"
    ]
    if not trials:
        return
    outcomes = (*GOOD, "lost", "unnamed", "traceback", "hangs")
    rows = [("faults", "tried", *outcomes, "slowest end")]
    kinds = dict.fromkeys(trial.kind for trial in trials)
    for name in (*sorted(kinds), "all"):
        row = [t for t in trials if name in (t.kind, "all")]
        counts = (sum(t.outcome == outcome for t in row) for outcome in outcomes)
        slowest = f"{max(t.seconds for t in row):.1f} s"
        rows.append((name, len(row), *counts, slowest))
    rows.insert(1, ["---"] * len(rows[0]))
    table = "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)
    terminalreporter.write("\n" + table)
    if path := os.environ.get("FAULTS_TABLE"):
        Path(path).write_text(table, encoding="utf-8")
