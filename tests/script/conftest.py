"""A finished run of `train_deit.py`, and pictures that cost no time."""

import json

import pytest
from helpers.pictures import draw_blank_pictures
from helpers.runs import arguments

import train_deit


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A finished run: its folder and results."""
    folder = tmp_path_factory.mktemp("run") / "colours"
    train_deit.main(arguments(train_dir=photos, validation_fraction=0.25, output_dir=folder))
    return folder, json.loads((folder / "all_results.json").read_text())


@pytest.fixture(autouse=True)
def blank_pictures(monkeypatch):
    """Pictures of one colour: drawing them takes longer than a short run. The module's fixtures draw real ones."""
    draw_blank_pictures(monkeypatch)
