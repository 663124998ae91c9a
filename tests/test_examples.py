import copy
import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

TOUR = Path(__file__).parents[1] / "examples" / "tour.ipynb"


@pytest.fixture(scope="module")
def tour():
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


def test_tour_is_stored_without_outputs(tour):
    for cell in code_cells(tour):
        assert not cell.outputs and cell.execution_count is None, cell.id


def test_tour_runs_and_learns_its_pictures(tour, tmp_path):
    notebook = copy.deepcopy(tour)
    # With no folder of kernels to search, "python3" is the interpreter of this test.
    manager = AsyncKernelManager(
        kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[])
    )
    resources = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, km=manager, timeout=600, resources=resources)
    client.execute(cleanup_kc=True)  # Raises the error of a cell.
    text = printed(notebook)
    scores = dict(re.findall(r"^(pixel accuracy|mean IU) ([\d.]+)$", text, re.M))
    assert float(scores["pixel accuracy"]) > 0.9  # Three quarters are background.
    assert float(scores["mean IU"]) > 0.8
    assert "same model: True" in text and "same parameters: True" in text
