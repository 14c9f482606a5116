"""The examples run as their first lines say."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from test_teacher import save_resnet

from modeling_deit_distill import InputError

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


def run_benchmark(monkeypatch, tmp_path, name, *words) -> dict:
    """The figures that a benchmark writes."""
    path, figures = EXAMPLES / "benchmarks" / f"{name}.py", tmp_path / "figures.json"
    monkeypatch.syspath_prepend(path.parent)  # as where a script lies is the first place that it imports from
    monkeypatch.setattr(sys, "argv", [path.name, *words, "--json", str(figures)])
    load(path).main()
    return json.loads(figures.read_text())


@pytest.mark.slow
def test_the_students_benchmark_measures_all_four(tmp_path, monkeypatch, capsys):
    words = ["--device", "cpu", "--precisions", "fp32", "--image_size", "32", "--batch_size", "2", "--rounds", "1"]
    words += ["--no_memory", "--plot", str(tmp_path / "plot.png")]
    figures = run_benchmark(monkeypatch, tmp_path, "student_speed", *words)
    ratios, tables = figures["ratios"], figures["figures"]
    assert set(ratios) == {"train_fp32", "infer_fp32", "infer_best", "pipeline_1", "pipeline_64"}
    for name in ("train_fp32", "infer_fp32"):
        rates = {who: row["images_per_second"] for who, row in tables[name].items()}
        faster = max(rates[who] for who in ("transformers", "timm", "public"))
        assert ratios[name] == pytest.approx(rates["ours"] / faster, abs=1e-3)
        assert all(0 < row["share_of_peak"] < 1 for row in tables[name].values())
    assert {"compiled", "onnx_fp32", "onnx_int8"} <= tables["shipped"].keys()
    assert (tmp_path / "plot.png").stat().st_size > 5000
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"ratios": ratios}


@pytest.mark.slow
def test_the_students_memory_is_that_of_its_training(monkeypatch):
    path = EXAMPLES / "benchmarks" / "student_speed.py"
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [path.name, "--image_size", "32", "--batch_size", "2", "--device", "cpu"])
    script = load(path)
    found = script.memory_elsewhere("ours", script.parse_options())["MB"]
    assert 4 * 4 * 5.9 < found < 400  # weights, gradients and Adam's two of 5.9 M numbers, and little else


@pytest.mark.slow
def test_the_end_to_end_benchmark_says_where_the_time_goes(photos, tmp_path, monkeypatch):
    words = ["--image_size", "32", "--batch_size", "4", "--steps", "2", "--rounds", "1", "--device", "cpu"]
    figures = run_benchmark(monkeypatch, tmp_path, "end_to_end", str(photos), *words)
    parts, milliseconds, ratios = (figures[name] for name in ("parts", "milliseconds", "ratios"))
    assert set(ratios) == {"fraction_of_bare_step", "over_timm", "trainer_overhead"}
    assert sum(parts.values()) == pytest.approx(milliseconds["ours"]["step"])
    assert all(parts[name] > 0 for name in ("waiting for the batch", "augmentation", "bare step"))
    expected = milliseconds["timm"]["step"] / milliseconds["ours"]["step"]
    assert ratios["over_timm"] == pytest.approx(expected, abs=1e-3)


def test_operations_are_counted_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    script = load(EXAMPLES / "benchmarks" / "count_operations.py")
    one, other = torch.ones(10), torch.ones(2, 5)
    with script.Operations("cpu") as operations:
        one.view(2, 5).t() + other.t()  # 10 floats read, 10 read, 10 written
        other.expand(7, 2, 5).clone()  # 10 read, for no more lie there, 70 written
    assert operations.calls == {"add": 1, "clone": 1}
    assert operations.bytes == {"add": 120, "clone": 320}
    assert operations.summary() == {"operations": 2, "transfers": 0, "GB": 440 / 1e9}


def test_a_step_of_ours_takes_the_fewest_operations_and_bytes(tmp_path, monkeypatch):
    words = ["--size", "tiny", "--image_size", "32", "--batch_size", "12"]
    counts = run_benchmark(monkeypatch, tmp_path, "count_operations", *words)["figures"]
    assert counts["ours"]["operations"] < counts["timm"]["operations"] < counts["transformers"]["operations"]
    assert counts["ours"]["GB"] < min(counts[name]["GB"] for name in ("timm", "transformers"))
    assert counts["augmentation"]["transfers"] > 1


LABEL = EXAMPLES / "label_with_teacher.py"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A new teacher of the digits."""
    folder = tmp_path_factory.mktemp("teacher")
    save_resnet(folder)
    return folder


def words_to_label(teacher, store, *words) -> list[str]:
    """Two epochs of digits; 1,616 of 1,617 images fill whole batches."""
    sizes = ["--image_size", "16", "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2"]
    data = ["--dataset_name", "digits", "--teacher_name_or_path", str(teacher), "--teacher_store", str(store)]
    schedule = ["--num_train_epochs", "2", "--repeated_augmentation", "1", "--distillation_type", "hard"]
    weak = ["--allow_weak_teacher", "true"]  # its weights are random
    return [*data, *sizes, *schedule, *weak, "--output_dir", str(store.parent / "out"), "--report_to", "none", *words]


def launch(*command) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=300)


def epochs_of(store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.glob("epoch-*.bin"))}


def test_labelling_fills_a_range_and_asks_nothing_again(teacher, tmp_path, capsys, monkeypatch):
    label, store = load(LABEL), tmp_path / "answers"
    label.main(words_to_label(teacher, store, "--epochs", "1-1"))
    assert "1,616 of 1,616 views known, epochs 1 to 1" in capsys.readouterr().out
    first = epochs_of(store)
    assert first.keys() == {"epoch-00001.bin"}
    label.main(words_to_label(teacher, store))  # the rest
    assert "3,232 of 3,232 views known, epochs 0 to 1" in capsys.readouterr().out
    filled = epochs_of(store)
    assert filled.keys() == {"epoch-00000.bin", "epoch-00001.bin"}
    assert filled["epoch-00001.bin"] == first["epoch-00001.bin"]
    monkeypatch.setattr("modeling_deit_distill.labelling.ask", None)
    capsys.readouterr()
    label.main(words_to_label(teacher, store, "--epochs=0-1"))
    assert "all views known, epochs 0 to 1; nothing to ask" in capsys.readouterr().out
    assert epochs_of(store) == filled
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_two_processes_label_as_one(teacher, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    load(LABEL).main(words_to_label(teacher, alone))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = words_to_label(teacher, together, "--gradient_accumulation_steps", "1")
    run = launch(*torchrun, str(LABEL), *words)
    assert run.returncode == 0, run.stderr
    assert f"{together}: 3,232 of 3,232 views known" in run.stdout
    assert epochs_of(together) == epochs_of(alone)
    descriptions = [json.loads((store / "store.json").read_text())["fingerprint"] for store in (alone, together)]
    assert descriptions[0] == descriptions[1]


@pytest.mark.parametrize("epochs", ["three", "5-3", "1-2-3", "-2", ""])
def test_epochs_that_are_no_range_are_refused(epochs):
    with pytest.raises(InputError, match="--epochs"):
        load(LABEL).take_epochs(["--epochs", epochs])
    with pytest.raises(InputError, match="--epochs"):
        load(LABEL).take_epochs(["--epochs"])


def test_what_is_to_be_labelled_must_be_said(teacher, tmp_path):
    words = words_to_label(teacher, tmp_path / "answers")
    place = words.index("--teacher_store")
    for wrong in (words[:place] + words[place + 2 :], [*words, "--distillation_type", "none"]):
        with pytest.raises(InputError, match="give --teacher_store FOLDER, --distillation_type hard or soft"):
            load(LABEL).main(wrong)


@pytest.mark.slow
def test_a_labelling_error_is_one_line():
    run = launch(str(LABEL), "--dataset_name", "digits", "--distillation_type", "hard")
    assert run.returncode == 2
    assert re.fullmatch(r"error: give --teacher_store .*\n", run.stderr)
    assert run.stdout == ""
