import copy
import json
import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"


def read(name):
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook, folder):
    """Run a copy of a notebook in a folder; return it with its outputs."""
    notebook = copy.deepcopy(notebook)
    # With no folder of kernels to search, "python3" is the interpreter of this test.
    manager = AsyncKernelManager(
        kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[])
    )
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, km=manager, timeout=600, resources=resources)
    client.execute(cleanup_kc=True)  # Raises the error of a cell.
    return notebook


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def printed(notebook):
    return "".join(output.get("text", "") for output in outputs(notebook))


def count_pictures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


@pytest.mark.parametrize("name", ["tour.ipynb", "finetune.ipynb"])
def test_notebooks_are_stored_without_outputs(name):
    for cell in code_cells(read(name)):
        assert not cell.outputs and cell.execution_count is None, cell.id


def test_tour_runs_and_learns_its_pictures(tmp_path):
    notebook = execute(read("tour.ipynb"), tmp_path)
    text = printed(notebook)
    scores = dict(re.findall(r"^(pixel accuracy|mean IU) ([\d.]+)$", text, re.M))
    assert float(scores["pixel accuracy"]) > 0.9  # Three quarters are background.
    assert float(scores["mean IU"]) > 0.8
    assert "same model: True" in text and "same parameters: True" in text
    assert count_pictures(notebook) == 11


def test_finetune_runs_and_leaves_a_whole_run(tmp_path):
    notebook = read("finetune.ipynb")
    (settings,) = (cell for cell in notebook.cells if cell.id == "settings")
    for name, value in {"IMAGES": 40, "STEPS": 3}.items():
        line = rf"^{name} = \d+"
        settings.source, count = re.subn(
            line, f"{name} = {value}", settings.source, flags=re.M
        )
        assert count == 1
    notebook = execute(notebook, tmp_path)
    run = tmp_path / "runs" / "mydata"
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    assert metrics["mean_iu"] > 0.1  # "background" everywhere gives 0.17.
    text = printed(notebook)
    assert re.search(rf"^mean IU +{100 * metrics['mean_iu']:.2f}$", text, re.M)
    assert "44 images in mydata" in text
    for name in ("model.safetensors", "report.html", "results.png", "errors.png"):
        assert (run / name).stat().st_size > 0
    assert (tmp_path / "labels.png").exists()
    assert count_pictures(notebook) == 8
