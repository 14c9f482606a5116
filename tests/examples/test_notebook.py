"""The notebook: it is committed without outputs, and runs from the digits to the exported page."""

import json
import re
from collections import Counter

import PIL.ExifTags
import PIL.Image
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


def variables_of(*words, **changes):
    """What the code cells that contain one of the words leave, with other settings; commands to the shell left out."""
    found = {}
    for code in CODE:
        if any(word in code for word in words):
            for name, value in changes.items():
                code = re.sub(f"^{name} = None$", f"{name} = {value!r}", code, flags=re.MULTILINE)
            exec("\n".join(line for line in code.splitlines() if not line.startswith("!")), found)
    return found


SETTINGS, LOOK = ("OUTPUT =", "RECIPE ="), ("read_class_folders", "def show")


def test_photos_and_digits_are_two_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    digits, photos = variables_of(*SETTINGS), variables_of(*SETTINGS, PHOTOS="my photos")
    assert digits["OUTPUT"] != photos["OUTPUT"] and digits["RECIPE"] != photos["RECIPE"]


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """What comes from a phone: broken, turned, HEIC, files of the system, an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    for name in ("bag", "hat", "shoe"):
        (tmp_path / "my photos" / name).mkdir(parents=True)
    for name in ("bag/0.jpg", "hat/0.jpg"):
        (tmp_path / "my photos" / name).write_bytes(b"\xff\xd8\xff broken")
    turned = PIL.Image.Exif()
    turned[PIL.ExifTags.Base.Orientation] = 6
    PIL.Image.new("RGB", (40, 20)).save(tmp_path / "my photos" / "hat" / "1.jpg", exif=turned)
    for name in (".DS_Store", "Thumbs.db", "notes.txt"):
        (tmp_path / "my photos" / "hat" / name).write_bytes(b"no image")
    return tmp_path / "my photos"


def test_photos_of_a_phone_are_counted_and_shown(phone):
    found = variables_of(*SETTINGS, *LOOK, PHOTOS=str(phone))
    assert dict(Counter(found["images"].labels)) == {"bag": 1, "hat": 2}  # a broken one is found when it is decoded
    assert {name: picture.size for name, picture in found["pictures"].items()} == {"hat": (20, 40)}
    assert found["NEW_IMAGES"] == found["IMAGES"] == f"'{phone}'"
    assert variables_of(*SETTINGS, *LOOK, PHOTOS=str(phone), NEW_PHOTOS="new")["NEW_IMAGES"] == "new"


def test_heic_is_shown(phone):
    pytest.importorskip("pillow_heif").from_pillow(PIL.Image.new("RGB", (64, 48))).save(phone / "shoe" / "0.heic")
    assert variables_of(*SETTINGS, *LOOK, PHOTOS=str(phone))["pictures"]["shoe"].size == (64, 48)


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
