"""What the tests of several modules share: no network, no leftover random state, tiny students."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before any other import
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run beside each other, on tensors too small for two threads

import gc
import signal
import sysconfig
import time
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.hub_server import HubServer, skip_waits, use_hub
from helpers.runs import COLOURS
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification, hub

# `nohup` has it ignored, and the runs that tests start would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish(session):
    """Accelerate collects garbage as each training starts; what is imported by now need not be walked through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_config():
    """`tiny_config(**overrides)`: two blocks of width 32, 32 pixels in 16 patches, five classes.

    The wide initialisation lets attention, positions and both heads matter in an untrained model.
    """

    def make(**overrides) -> DeiTDistillConfig:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        images = {"image_size": 32, "patch_size": 8, "num_labels": 5}
        return DeiTDistillConfig(**{**sizes, **images, "initializer_range": 0.2, **overrides})

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    """`tiny_model(**overrides)`: a classifier of `tiny_config(**overrides)`, in eval mode, always the same weights."""

    def make(**overrides) -> DeiTDistillForImageClassification:
        torch.manual_seed(0)
        return DeiTDistillForImageClassification(tiny_config(**overrides)).eval()

    return make


@pytest.fixture(scope="session")
def save_photos(tmp_path_factory):
    """`save_photos(colours, count, deviation)`: noisy pictures, wider than high, a folder for each colour."""

    def save(colours: dict[str, tuple[int, int, int]], count: int, deviation: float = 25.0):
        folder, draws = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
        for name, colour in colours.items():
            (folder / name).mkdir()
            for index in range(count):
                pixels = np.clip(draws.normal(colour, deviation, size=(24, 40, 3)), 0, 255).astype(np.uint8)
                PIL.Image.fromarray(pixels).save(folder / name / f"{index}.png")
        return folder

    return save


@pytest.fixture(scope="module")
def photos(save_photos):
    """Sixteen noisy pictures of each of three colours, wider than high."""
    return save_photos(COLOURS, 16)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A Hub on the loopback, to which this process's client talks."""
    with HubServer() as server:
        use_hub(monkeypatch, server, tmp_path / "home")
        yield server


@pytest.fixture
def waits(monkeypatch):
    """The seconds between tries on the Hub, which no test waits."""
    waited = skip_waits(monkeypatch)
    monkeypatch.setattr(hub, "time", SimpleNamespace(sleep=waited.append, monotonic=time.monotonic, time=time.time))
    return waited


@pytest.fixture(scope="session")
def deployers_python(tmp_path_factory) -> Path:
    """The interpreter of a virtual environment with what `pip install torch torchvision transformers pillow` brings."""
    folder = tmp_path_factory.mktemp("deployer")
    venv.create(folder, symlinks=True)
    site_packages = Path(sysconfig.get_path("purelib", "posix_prefix", {"base": str(folder)}))
    for each in _with_all_it_requires("torch", "torchvision", "transformers", "pillow"):
        # Links, as copies would take gigabytes; what lies outside, such as scripts, is not imported.
        for name in {file.parts[0] for file in each.files} - {"..", "__pycache__"}:
            if not (site_packages / name).exists():
                (site_packages / name).symlink_to(each.locate_file(name))
    return folder / "bin" / "python"


def _with_all_it_requires(*names: str) -> list[Distribution]:
    found, wanted = {}, [canonicalize_name(name) for name in names]
    while wanted:
        name = wanted.pop()
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # of a CUDA build, say, which is not this one
            continue
        needed = [Requirement(text) for text in found[name].requires or ()]
        needed = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
        wanted += {canonicalize_name(each.name) for each in needed} - found.keys()
    return list(found.values())
