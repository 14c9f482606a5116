"""The examples run as their first lines say."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photos(tmp_path):
    draws = np.random.default_rng(0)
    for name in ("day", "night"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(6):
            pixels = draws.integers(0, 256, (40, 60, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.jpg")
    return tmp_path / "photos"


@pytest.mark.parametrize(("arguments", "columns"), [([], 5), (["--mixup_alpha", "0", "--cutmix_alpha", "0"], 4)])
def test_show_augmentations_draws_a_grid(photos, tmp_path, capsys, arguments, columns):
    words = ["--train_dir", str(photos), "--output_dir", str(tmp_path / "out"), "--image_size", "32"]
    load(EXAMPLES / "show_augmentations.py").main([*words, *arguments])
    path = Path(capsys.readouterr().out.strip().splitlines()[-1])
    grid = np.asarray(PIL.Image.open(path))
    assert path == tmp_path / "out" / "augmentations.png"
    assert grid.shape == (6 * 164 - 4, columns * 164 - 4, 3)
    assert grid.std() > 10  # something is drawn


@pytest.mark.slow
def test_the_data_benchmark_writes_its_ratios(photos, tmp_path, monkeypatch):
    words = [str(photos), "--against", "timm", "--views", "12", "--rounds", "1", "--batch_size", "6", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["data_pipeline.py", *words, "--json", str(tmp_path / "figures.json")])
    load(EXAMPLES / "benchmarks" / "data_pipeline.py").main()
    ratios = json.loads((tmp_path / "figures.json").read_text())["ratios"]
    names = {f"{stage}_repeats{repeats}" for stage in ("uint8", "ready") for repeats in (1, 3)}
    assert set(ratios) - {"gpu_share_of_step"} == names | {"loader"}
    assert all(ratio > 0 for ratio in ratios.values())
