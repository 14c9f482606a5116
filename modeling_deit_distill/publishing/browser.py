"""A run's export for browsers, in its folder, and the Space that shows it."""

import logging
import shutil
from pathlib import Path

import numpy as np
import yaml
from huggingface_hub import RepoCard
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

from ..conversion.saving import new_folder
from ..data.evaluation import EvaluationDataset
from ..data.unlabelled import RowImages
from ..errors import one_line
from ..export.agreement import MAX_IMAGES
from ..export.browser import RECORD, write_browser
from ..export.checkpoint import load_model
from ..export.onnx import check_packages
from ..export.page import EXAMPLES, write_demo
from ..export.precisions import Source
from ..files import crc32, write_json
from ..output_folder import BROWSER, RUN_RECORD, read_run_file
from .record import note_exports

logger = logging.getLogger(__name__)

# A page may use several threads only where it is isolated from other origins.
ISOLATION = {
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "cross-origin",
}


def export_for_browsers(output_dir: str | Path, held_out: EvaluationDataset | None = None) -> Path:
    """Export the model in a run's folder to its folder `browser`, in place of what is there.

    A precision that decides otherwise too often is left out, with a warning.

    Args:
        output_dir: the run's folder.
        held_out: images that decisions are compared on; noise without them.

    Raises:
        InputError: a package that is missing, or a model that cannot be exported.
    """
    check_packages()
    folder, images, rows = Path(output_dir, BROWSER), (), ()
    if held_out is not None:
        images = RowImages(held_out.rows)
        rows = np.unique(np.linspace(0, len(images) - 1, MAX_IMAGES).astype(int)).tolist()
    source = Source(*load_model(str(output_dir)), images, rows)
    shutil.rmtree(folder, ignore_errors=True)
    with new_folder(folder) as new:
        name = name_of(output_dir)
        write_demo(source, new, name, write_browser(source, new, name, leave_out=_warn))
        record = read_run_file(new / RECORD)
        write_json(new / RECORD, {**record, "made_from": _made_from(output_dir)})
    note_exports(output_dir, record["files"])
    return folder


def browser_export_of(output_dir: str | Path) -> Path:
    """The folder of a run's export for browsers; made, without images, unless one of this very model is there."""
    folder = Path(output_dir, BROWSER)
    if read_run_file(folder / RECORD).get("made_from") == _made_from(output_dir):
        return folder
    return export_for_browsers(output_dir)


def name_of(output_dir: str | Path) -> str:
    """The model's name on the Hub, or that of its folder."""
    return read_run_file(Path(output_dir, RUN_RECORD)).get("name") or Path(output_dir).resolve().name


def write_space_card(folder: Path, model: str):
    """Write the `README.md` by which the Hub serves a folder as a static page."""
    fields = {
        "title": model.rsplit("/", 1)[-1],
        "sdk": "static",
        "app_file": "index.html",
        "models": [model],
        "custom_headers": ISOLATION,
    }
    head = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    words = f"Classify photographs in this browser with {model}. No photograph leaves it."
    if (folder / EXAMPLES).is_dir():
        words += f" The examples are images of the data that {model} was measured on, held out of its training."
    RepoCard(f"---\n{head}---\n\n{words}\n").save(folder / "README.md")


def _made_from(output_dir: str | Path) -> dict[str, str]:
    """What an export was made from: the weights, and what says which classes, fusion and image processor they have."""
    described = [path for name in (CONFIG_NAME, IMAGE_PROCESSOR_NAME) if (path := Path(output_dir, name)).exists()]
    return {path.name: crc32(path) for path in [*sorted(Path(output_dir).glob("model*.safetensors")), *described]}


def _warn(error):
    logger.warning("the export for browsers is made without this file: %s", one_line(error))
