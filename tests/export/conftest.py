"""What the tests of exports share: checkpoints, and what they are exported to."""

import contextlib
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from helpers.exports import ANIMALS

from modeling_deit_distill.data.evaluation import evaluation_processor
from modeling_deit_distill.export.__main__ import main


def save_animals(tiny_model, folder: Path, **overrides):
    """Save a student of five animals with its image processor, the same one for the same overrides."""
    tiny_model(id2label=ANIMALS, **{"num_hidden_layers": 1, **overrides}).save_pretrained(folder)
    evaluation_processor(32).save_pretrained(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_model):
    """`checkpoint(**overrides)`: the folder of a tiny model with its image processor, saved once.

    One block alone: tracing takes most of an export's time, and blocks are traced alike.
    """
    folders = {}

    def save(**overrides) -> Path:
        key = tuple(overrides.items())
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("checkpoint")
            save_animals(tiny_model, folders[key], **overrides)
        return folders[key]

    return save


@pytest.fixture(scope="module")
def exported(tmp_path_factory, checkpoint):
    """`exported(**overrides)`: the folder that such a checkpoint is exported to and what was printed, made once."""
    exports = {}

    def made(**overrides) -> tuple[Path, str]:
        key = tuple(overrides.items())
        if key not in exports:
            folder, printed = tmp_path_factory.mktemp("exports") / "new" / "onnx", io.StringIO()
            with contextlib.redirect_stdout(printed):
                main([str(checkpoint(**overrides)), str(folder), "--batch_size", "2", "--formats", "onnx"])
            exports[key] = folder, printed.getvalue()
        return exports[key]

    return made


@pytest.fixture
def photo() -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def layout(tmp_path_factory, tiny_model):
    """`layout()`: the folder for browsers of a tiny model, compared on six pictures, and what was printed."""
    made = []

    def export() -> tuple[Path, str]:
        if not made:
            place, printed = tmp_path_factory.mktemp("layout"), io.StringIO()
            save_animals(tiny_model, place / "checkpoint", fusion="softmax_mean")
            (place / "images").mkdir()
            for index in range(6):
                pixels = np.random.default_rng(index).integers(0, 256, (40 + index, 60 - index, 3), dtype=np.uint8)
                PIL.Image.fromarray(pixels).save(place / "images" / f"{index}.png")
            words = ["--images", str(place / "images"), "--min_agreement", "0.5"]
            with contextlib.redirect_stdout(printed):
                main([str(place / "checkpoint"), str(place / "animals"), *words])
            made.append((place / "animals", printed.getvalue()))
        return made[0]

    return export
