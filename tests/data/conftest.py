"""What the tests of data share: a cache of their own, saved rows, a dataset of views."""

import datasets
import pytest
from datasets import Dataset, DatasetDict
from helpers.drawn import draws
from helpers.views import SETTINGS, by_position, loader, photos

from modeling_deit_distill.data import bad_images
from modeling_deit_distill.data.datasets import ViewDataset
from modeling_deit_distill.data.views import Draws


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(
        datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False
    )  # a sleep after each stream
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def saved(tmp_path_factory):
    """`saved(rows)` or `saved(train=rows, test=rows)`: the folder where `save_to_disk` put them."""

    def save(train: Dataset, **splits) -> str:
        path = tmp_path_factory.mktemp("saved")
        (DatasetDict(train=train, **splits) if splits else train).save_to_disk(path)
        return str(path)

    return save


@pytest.fixture
def warnings(caplog, monkeypatch):
    """`warnings()`: what was logged as a warning so far; none was said before."""
    monkeypatch.setattr(bad_images, "_said", set())
    return lambda: [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.fixture(scope="module")
def dataset() -> ViewDataset:
    return ViewDataset(photos(), SETTINGS, seed=5)


@pytest.fixture(scope="module")
def expected(dataset) -> dict[int, tuple[bytes, ...]]:
    """The second epoch, in one process and batches of 16."""
    return by_position(loader(dataset, 16))


@pytest.fixture(scope="session")
def drawn() -> Draws:
    """The recipe's draws of `NUM_VIEWS` views."""
    return draws()
