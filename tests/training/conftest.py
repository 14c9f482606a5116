"""What runs of `train_deit.py` on blank pictures share."""

import pytest
from helpers.forked_runs import ForkedRuns
from helpers.pictures import draw_blank_pictures
from helpers.runs import COLOURS
from helpers.teachers import save_resnet


@pytest.fixture
def blank_pictures(monkeypatch):
    """Pictures of one colour in this process: drawing them takes longer than a short run."""
    draw_blank_pictures(monkeypatch)


@pytest.fixture(scope="module")
def random_teacher(tmp_path_factory):
    """A teacher with random weights that knows the three colours."""
    folder = tmp_path_factory.mktemp("teacher") / "resnet"
    save_resnet(folder, list(COLOURS))
    return folder


@pytest.fixture(scope="module")
def forked(tmp_path_factory):
    """What starts the runs."""
    runs = ForkedRuns(tmp_path_factory.mktemp("log"))
    yield runs
    runs.close()
