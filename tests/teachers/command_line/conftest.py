"""A store of hard answers with its teacher and photos."""

import shutil

import numpy as np
import PIL.Image
import pytest
from helpers.labelling import content
from helpers.store_commands import NAMES, VIEW, Place, save_undecided_resnet

from modeling_deit_distill.teachers.store import TeacherStore


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    place, draws = Place(tmp_path_factory.mktemp("filled")), np.random.default_rng(0)
    for name in NAMES:
        (place.photos / name).mkdir(parents=True)
        for index in range(10):
            pixels = draws.integers(0, 256, (20, 24, 3), dtype=np.uint8) // (1 + index % 3)
            PIL.Image.fromarray(pixels).save(place.photos / name / f"{index}.png")
    save_undecided_resnet(place.teacher)
    place.fill("0-1")
    assert len(set(content(TeacherStore(place.answers))[:16])) == 2
    TeacherStore(place.answers).write_validation(VIEW, 0.75, np.array([0, 1]), np.array([0, 1]))
    return place


@pytest.fixture
def place(filled, tmp_path):
    """A copy of the store, to be changed; teacher and photos stay where they are."""
    shutil.copytree(filled.answers, tmp_path / "answers")
    copy = Place(tmp_path)
    copy.teacher, copy.photos = filled.teacher, filled.photos
    return copy
