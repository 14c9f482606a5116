"""The notebook: it is committed without outputs, and runs from the digits to the exported page."""

import json
import re

import pytest
from helpers.paths import PYTHONPATH, ROOT

NOTEBOOK = ROOT / "examples" / "distil_your_photos.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]

SHORTER = {"EPOCHS = 15": "EPOCHS = 2", "{EPOCHS}": "{EPOCHS} --teacher_num_train_epochs 3"}


def test_it_is_committed_without_outputs():
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CELLS if cell["cell_type"] == "code")


def test_what_it_links_to_and_runs_exists():
    text = "\n".join("".join(cell["source"]) for cell in CELLS)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    files = re.findall(r"examples/[\w/]+\.(?:yaml|py)", text)
    assert len(links) >= 3 and len(files) >= 3
    assert all((NOTEBOOK.parent / link).exists() for link in links) and all((ROOT / file).exists() for file in files)


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        for written, instead in SHORTER.items():
            cell.source = cell.source.replace(written, instead)
        cell.source = cell.source.replace("outputs/notebook", str(tmp_path / "run"))
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel shows figures in the notebook by itself
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "examples")}})
    client.execute()
    assert (tmp_path / "run" / "README.md").exists() and (tmp_path / "run" / "new.csv").exists()
    assert (tmp_path / "run_web" / "index.html").exists() and (tmp_path / "run_web" / "onnx" / "model.onnx").exists()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", ())
    ]
    assert len(pictures) >= 5
