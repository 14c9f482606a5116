"""The examples run as their first lines say."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.examples import load_example
from helpers.paths import ROOT
from helpers.teachers import save_resnet
from hypothesis import given
from hypothesis import strategies as st

import train_deit
from modeling_deit_distill import DistillationTrainingArguments, InputError, model_card, store_cli
from modeling_deit_distill.conversion import __main__ as conversion
from modeling_deit_distill.precision import multiplies_bf16
from modeling_deit_distill.script import run_script

EXAMPLES = ROOT / "examples"


@pytest.fixture
def photos(tmp_path):
    draws = np.random.default_rng(0)
    for name in ("day", "night"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(6):
            pixels = draws.integers(0, 256, (40, 60, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.jpg")
    return tmp_path / "photos"


def drawn(photos, folder, *words):
    """The picture that `show_augmentations.py` writes."""
    words = ["--train_dir", str(photos), "--output_dir", str(folder), "--image_size", "32", *words]
    load_example("show_augmentations").main(words)
    return np.asarray(PIL.Image.open(folder / "augmentations.png"))


def test_show_augmentations_draws_a_grid(photos, tmp_path, capsys):
    grid = drawn(photos, tmp_path / "out")
    assert Path(capsys.readouterr().out.strip().splitlines()[-1]) == tmp_path / "out" / "augmentations.png"
    assert grid.shape == (6 * 164 - 4, 5 * 164 - 4, 3)
    assert grid.std() > 10  # something is drawn
    unmixed = drawn(photos, tmp_path / "out", "--mixup_alpha", "0", "--cutmix_alpha", "0")
    assert unmixed.shape == (6 * 164 - 4, 4 * 164 - 4, 3)


def test_show_augmentations_draws_by_the_seed_of_the_data(photos, tmp_path):
    by_seed = drawn(photos, tmp_path / "out", "--seed", "5")
    by_data_seed = drawn(photos, tmp_path / "out", "--seed", "1", "--data_seed", "5")
    np.testing.assert_array_equal(by_data_seed, by_seed)
    assert (drawn(photos, tmp_path / "out", "--seed", "1") != by_seed).any()


def test_show_augmentations_needs_no_gpu(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr(DistillationTrainingArguments, "n_gpu", property(lambda args: 0 if args.use_cpu else 8))
    assert drawn(photos, tmp_path / "out", "--fp16", "true").std() > 10


def test_show_augmentations_draws_classes_as_the_run_does(photos, tmp_path):
    for path in (photos / "night").iterdir():
        PIL.Image.open(path).point(lambda level: level // 8).save(path)
    for path in [*(photos / "day").iterdir()][2:]:
        path.unlink()
    grid = drawn(photos, tmp_path / "out", "--balanced_views", "true")
    levels = [grid[164 * row + 60 : 164 * row + 100, 60:100].mean() for row in range(6)]
    assert [np.ptp(levels[row : row + 2]) > 60 for row in (0, 2, 4)] == [True] * 3  # a day and a night in each round


def test_show_augmentations_draws_images_that_can_be_read(photos, tmp_path):
    whole = drawn(photos, tmp_path / "out")
    held_out = ["--validation_dir", str(shutil.copytree(photos, tmp_path / "held_out"))]
    for path in [*photos.glob("*/*.jpg")][:-1]:
        path.write_bytes(b"\xff\xd8\xff broken")
    one = drawn(photos, tmp_path / "out", *held_out)
    assert one.shape == whole.shape and (one[:160, :160] == one[164:324, :160]).all()
    for path in photos.glob("*/*.jpg"):
        path.write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(
        InputError, match=r"none of 12 training .* can be read; the first, .*.jpg: .*; repair or remove"
    ):
        drawn(photos, tmp_path / "out", *held_out)


def test_every_program_ends_with_one_line_after_an_input_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)  # as where a script lies is the first place that it imports from
    nowhere, tables = str(tmp_path / "nowhere"), ["--profile", "cpu", "--prepare", "--dataset", "digits"]
    programs = [
        (train_deit, ["--tempreature", "2"], "unknown argument 'tempreature'"),
        (load_example("label_with_teacher"), ["--epochs", "5-3"], "--epochs 5-3 is empty"),
        (load_example("show_augmentations"), ["--train_dir", nowhere, "--output_dir", "out"], "train_dir"),
        (load_example("evaluate_checkpoint"), [nowhere], "no data: give --dataset_name"),
        (load_example("export_onnx"), [nowhere, "new"], f"'{nowhere}'"),
        (load_example("reproduce_tables"), [*tables, "--output_dir", str(tmp_path)], "1,000 images of each class"),
        (conversion, ["nowhere.pth", "new"], "'nowhere.pth' is no file"),
        (store_cli, ["info", nowhere], f"teacher_store '{nowhere}' is no store: it has no store.json"),
        (model_card, [nowhere], f"'{nowhere}' holds no config.json"),
    ]
    for program, words, message in programs:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_script(program.main, words)
        said = capsys.readouterr()
        assert (ended.value.code, said.out) == (2, ""), program
        assert said.err.startswith("error: ") and said.err.count("\n") == 1, program
        assert message in said.err, program


@pytest.mark.slow
def test_an_input_error_of_a_process_is_one_line_and_exit_code_two(tmp_path):
    for program in ("train_deit.py", "examples/label_with_teacher.py"):
        done = launch(str(ROOT / program), "--dataset_name", "digits", "--tempreature", "2")
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr.startswith("error: unknown argument 'tempreature'") and done.stderr.count("\n") == 1


@pytest.fixture
def lone_photos(photos):
    """One image a class, as in a small sample of many classes: none of them can be held out."""
    for path in photos.glob("*/[1-9].jpg"):
        path.unlink()
    return photos


@pytest.mark.slow
def test_the_data_benchmark_writes_its_ratios(lone_photos, tmp_path):
    words = [str(lone_photos), "--against", "timm", "--views", "12", "--rounds", "1", "--batch_size", "6"]
    words += ["--workers", "1"]
    load_example("benchmarks/data_pipeline").main([*words, "--json", str(tmp_path / "figures.json")])
    ratios = json.loads((tmp_path / "figures.json").read_text())["ratios"]
    names = {f"{stage}_repeats{repeats}" for stage in ("uint8", "ready") for repeats in (1, 3)}
    assert set(ratios) - {"gpu_share_of_step"} == names | {"loader"}
    assert all(ratio > 0 for ratio in ratios.values())


def run_benchmark(monkeypatch, tmp_path, name, *words) -> dict:
    """The figures that a benchmark writes."""
    path, figures = EXAMPLES / "benchmarks" / f"{name}.py", tmp_path / "figures.json"
    monkeypatch.syspath_prepend(path.parent)  # as where a script lies is the first place that it imports from
    load_example(f"benchmarks/{name}").main([*words, "--json", str(figures)])
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
    script = load_example("benchmarks/student_speed")
    options = script.parse_options(["--image_size", "32", "--batch_size", "2", "--device", "cpu"])
    found = script.memory_elsewhere("ours", options)["MB"]
    assert 4 * 4 * 5.9 < found < 400  # weights, gradients and Adam's two of 5.9 M numbers, and little else


@pytest.mark.slow
def test_the_end_to_end_benchmark_says_where_the_time_goes(lone_photos, tmp_path, monkeypatch):
    words = ["--image_size", "32", "--batch_size", "4", "--steps", "2", "--rounds", "1", "--device", "cpu"]
    figures = run_benchmark(monkeypatch, tmp_path, "end_to_end", str(lone_photos), *words)
    parts, milliseconds, ratios = (figures[name] for name in ("parts", "milliseconds", "ratios"))
    assert set(ratios) == {"fraction_of_bare_step", "over_timm", "trainer_overhead"}
    assert sum(parts.values()) == pytest.approx(milliseconds["ours"]["step"])
    assert all(parts[name] > 0 for name in ("waiting for the batch", "augmentation", "bare step"))
    expected = milliseconds["timm"]["step"] / milliseconds["ours"]["step"]
    assert ratios["over_timm"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_the_benchmark_of_exports_measures_each_precision(tmp_path, monkeypatch, capsys):
    figures = run_benchmark(monkeypatch, tmp_path, "export_speed", "--image_size", "32", "--rounds", "1")
    eager = figures["milliseconds"]["pytorch"]["eager"]
    for precision in ("fp32", "fp16", "int8"):
        times = figures["milliseconds"][precision]
        assert "python, 1 thread" in times and len(times) == 2
        for name, milliseconds in times.items():
            assert figures["ratios"][f"{precision}, {name}"] == pytest.approx(eager / milliseconds, abs=1e-3)
    megabytes = figures["megabytes"]
    assert megabytes["int8"] < megabytes["fp16"] < megabytes["fp32"]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"ratios": figures["ratios"]}
    nowhere = ["--runtime", str(tmp_path), "--image_size", "32", "--rounds", "1"]
    with pytest.raises(InputError, match="is no folder, or there is no chromium"):
        run_benchmark(monkeypatch, tmp_path, "export_speed", *nowhere)


def test_operations_are_counted_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    script = load_example("benchmarks/count_operations")
    one, other = torch.ones(10), torch.ones(2, 5)
    with script.Operations("cpu") as operations:
        one.view(2, 5).t() + other.t()  # 10 floats read, 10 read, 10 written
        other.expand(7, 2, 5).clone()  # 10 read, for no more lie there, 70 written
    assert operations.calls == {"add": 1, "clone": 1}
    assert operations.bytes == {"add": 120, "clone": 320}
    assert operations.summary() == {"operations": 2, "transfers": 0, "GB": 440 / 1e9}


@pytest.mark.slow
def test_a_step_of_ours_takes_the_fewest_operations_and_bytes(tmp_path, monkeypatch):
    words = ["--size", "tiny", "--image_size", "32", "--batch_size", "12"]
    counts = run_benchmark(monkeypatch, tmp_path, "count_operations", *words)["figures"]
    assert counts["ours"]["operations"] < counts["timm"]["operations"] < counts["transformers"]["operations"]
    assert counts["ours"]["GB"] < min(counts[name]["GB"] for name in ("timm", "transformers"))
    assert counts["augmentation"]["transfers"] > 1


@pytest.fixture(scope="module")
def to_label(save_photos, tmp_path_factory):
    """Eleven pictures of each of ten colours, and a new teacher of as many classes, in the words of a command."""
    folder = tmp_path_factory.mktemp("teacher")
    save_resnet(folder)
    levels = range(0, 250, 25)
    colours = {str(number): (level, 225 - level, 9 * level % 256) for number, level in enumerate(levels)}
    return ["--train_dir", str(save_photos(colours, 11, deviation=60)), "--teacher_name_or_path", str(folder)]


def words_to_label(to_label, store, *words) -> list[str]:
    """Two epochs of 88 images."""
    sizes = ["--image_size", "16", "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2"]
    data = [*to_label, "--validation_fraction", "0.2", "--teacher_store", str(store), "--bf16", "false"]
    schedule = ["--num_train_epochs", "2", "--repeated_augmentation", "1", "--distillation_type", "hard"]
    weak = ["--allow_weak_teacher", "true"]  # its weights are random
    return [*data, *sizes, *schedule, *weak, "--output_dir", str(store.parent / "out"), "--report_to", "none", *words]


def launch(*command) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=300)


def epochs_of(store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.glob("epoch-*.bin"))}


def test_labelling_fills_a_range_and_asks_nothing_again(to_label, tmp_path, capsys, monkeypatch):
    label, store = load_example("label_with_teacher"), tmp_path / "answers"
    label.main(words_to_label(to_label, store, "--epochs", "1-1"))
    assert "88 of 88 views known, epochs 1 to 1" in capsys.readouterr().out
    first = epochs_of(store)
    assert first.keys() == {"epoch-00001.bin"}
    label.main(words_to_label(to_label, store))  # the rest
    assert "176 of 176 views known, epochs 0 to 1" in capsys.readouterr().out
    filled = epochs_of(store)
    assert filled.keys() == {"epoch-00000.bin", "epoch-00001.bin"}
    assert filled["epoch-00001.bin"] == first["epoch-00001.bin"]
    monkeypatch.setattr("modeling_deit_distill.teachers.labelling.ask", None)
    capsys.readouterr()
    label.main(words_to_label(to_label, store, "--epochs=0-1"))
    assert "all views known, epochs 0 to 1; nothing to ask" in capsys.readouterr().out
    assert epochs_of(store) == filled
    assert not (tmp_path / "out" / "model.safetensors").exists()


BF16 = pytest.param(
    "true", marks=pytest.mark.skipif(not multiplies_bf16("cpu"), reason="this processor has no bf16 units"), id="bf16"
)


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [pytest.param("false", id="fp32"), BF16])
def test_two_processes_label_as_one(to_label, tmp_path, bf16):
    alone, together = tmp_path / "alone", tmp_path / "together"
    logits = ["--bf16", bf16, "--distillation_type", "soft", "--teacher_store_top_k", "3"]
    load_example("label_with_teacher").main(words_to_label(to_label, alone, *logits))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = words_to_label(to_label, together, "--gradient_accumulation_steps", "1", *logits)
    run = launch(*torchrun, str(EXAMPLES / "label_with_teacher.py"), *words)
    assert run.returncode == 0, run.stderr
    assert f"{together}: 176 of 176 views known" in run.stdout
    assert epochs_of(together) == epochs_of(alone)
    fingerprints = [json.loads((store / "store.json").read_text())["fingerprint"] for store in (alone, together)]
    assert fingerprints[0] == fingerprints[1]
    assert fingerprints[0]["teacher_precision"] == ("bf16" if bf16 == "true" else "fp32")


def test_epochs_that_are_no_range_are_refused():
    take_epochs = load_example("label_with_teacher").take_epochs
    for words in (["three"], ["5-3"], ["1-2-3"], ["-2"], [""], []):
        with pytest.raises(InputError, match="--epochs"):
            take_epochs(["--epochs", *words])


@given(first=st.integers(0, 999), length=st.integers(1, 99))
def test_a_range_of_epochs_holds_both_its_ends(first, length):
    take_epochs, last = load_example("label_with_teacher").take_epochs, first + length - 1
    for words in (["--epochs", f"{first}-{last}"], [f"--epochs={first}-{last}"]):
        assert take_epochs(["a", *words, "b"]) == (range(first, last + 1), ["a", "b"])
    assert take_epochs(["--epochs", str(first)]) == (range(first, first + 1), [])


def test_what_is_to_be_labelled_must_be_said(to_label, tmp_path):
    words = words_to_label(to_label, tmp_path / "answers")
    place = words.index("--teacher_store")
    for wrong in (words[:place] + words[place + 2 :], [*words, "--distillation_type", "none"]):
        with pytest.raises(InputError, match="give --teacher_store FOLDER, --distillation_type hard or soft"):
            load_example("label_with_teacher").main(wrong)
    with pytest.raises(InputError, match="teacher_batch_size is 7, which is odd; .* give an even one"):
        load_example("label_with_teacher").main([*words, "--teacher_batch_size", "7"])


@pytest.mark.slow
def test_how_many_are_labelled_at_once_changes_no_label(to_label, tmp_path):
    label = load_example("label_with_teacher")
    for size in ("6", "64"):
        label.main(words_to_label(to_label, tmp_path / size, "--bf16", "false", "--teacher_batch_size", size))
    assert epochs_of(tmp_path / "6") == epochs_of(tmp_path / "64")


def test_what_a_run_costs_whose_views_repeat(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    cost = load_example("benchmarks/distillation_cost").live_over_none
    # 50 epochs of 5.4 steps without a teacher, 250 of 1.02: 270 + 255 of 300.
    assert cost(live=5.4, stored=1.02, none=1.0) == pytest.approx(1.75)
    assert cost(live=2.0, stored=2.0, none=2.0) == pytest.approx(1.0)
