"""The script from end to end on images of the reader's own: what it does, says and leaves behind."""

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
from transformers import AutoModel, AutoModelForImageClassification, pipeline

import train_deit
from modeling_deit_distill import DeiTDistillForImageClassification, InputError
from modeling_deit_distill.data import decode_image, evaluation_transform, load_image_data

ROOT = Path(__file__).parent.parent
COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40)}
STUDENT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
RECIPE = {
    **{key: str(value) for key, value in STUDENT.items()},
    "image_size": "16",
    "patch_size": "4",
    "train_teacher": "true",
    "teacher_config_name": "resnet",
    "teacher_config_overrides": json.dumps(
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    ),
    "teacher_num_train_epochs": "8",
    "teacher_learning_rate": "1e-2",
    "num_train_epochs": "8",
    "learning_rate": "1e-2",
    "repeated_augmentation": "1",
    "per_device_train_batch_size": "8",
    "rand_augment_magnitude": "0",
    "random_erasing_prob": "0",
    "mixup_alpha": "0.2",
    "cutmix_alpha": "0",
    "logging_steps": "2",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "report_to": "none",
    "use_cpu": "true",
    "disable_tqdm": "true",
    "bf16": "false",
}


def arguments(**changes):
    return [word for key, value in {**RECIPE, **changes}.items() for word in (f"--{key}", str(value))]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Sixteen noisy pictures of each of three colours, wider than high."""
    folder, draws = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for index in range(16):
            pixels = np.clip(draws.normal(colour, 25, size=(24, 40, 3)), 0, 255).astype(np.uint8)
            PIL.Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A finished run: its folder and results."""
    folder = tmp_path_factory.mktemp("run") / "colours"
    train_deit.main(arguments(train_dir=photos, validation_fraction=0.25, output_dir=folder))
    return folder, json.loads((folder / "all_results.json").read_text())


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_it_learns_and_reports_shares(run):
    _, results = run
    assert results["teacher_accuracy"] >= 0.9
    assert results["eval_accuracy"] >= 0.8
    heads = ("_cls", "_distillation", "_logit_mean", "_softmax_mean")
    expected = {"teacher_accuracy", "eval_accuracy", "eval_teacher_agreement", *("eval_accuracy" + h for h in heads)}
    assert expected <= results.keys()
    assert all(0.0 <= results[key] <= 1.0 for key in expected)
    assert "eval_top5_accuracy" not in results  # three classes
    assert results["eval_accuracy"] == results["eval_accuracy_logit_mean"]


def test_it_leaves_everything_behind(run):
    folder, _ = run
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md", "trainer_state.json"} < names
    assert {"all_results.json", "training_curves.png", "teacher"} < names
    assert {"configuration_deit_distill.py", "modeling_deit_distill.py"} < names
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "blue", "1": "green", "2": "red"}
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForImageClassification"}
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 18}  # 16 / 0.875
    assert processor["crop_size"] == {"height": 16, "width": 16}
    assert PIL.Image.open(folder / "training_curves.png").width > 300


def test_the_losses_fall(run):
    folder, _ = run
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0]
    assert all({"label_loss", "teacher_loss", "teacher_agreement"} <= entry.keys() for entry in log if "loss" in entry)


def test_the_pipeline_answers_as_the_trainers_evaluation(run, photos):
    folder, results = run
    data = load_image_data(train_dir=str(photos), validation_fraction=0.25)
    model = DeiTDistillForImageClassification.from_pretrained(folder).eval()
    classify = pipeline("image-classification", model=str(folder))
    transform, right = evaluation_transform(classify.image_processor), 0
    for row in data.validation:
        image = decode_image(row["image"])
        probabilities = model(transform(image)[None]).logits.softmax(-1)[0]
        answer = {entry["label"]: entry["score"] for entry in classify(image, top_k=3)}
        assert answer == pytest.approx(
            {name: probabilities[index].item() for index, name in enumerate(COLOURS)}, abs=1e-6
        )
        right += max(answer, key=answer.get) == data.class_names[row["label"]]
    assert results["eval_accuracy"] == pytest.approx(right / len(data.validation))


def test_auto_classes_load_it_with_the_package(run):
    folder, _ = run
    assert type(AutoModelForImageClassification.from_pretrained(folder)) is DeiTDistillForImageClassification
    assert AutoModel.from_pretrained(folder)(torch.zeros(1, 3, 16, 16)).last_hidden_state.shape == (1, 18, 16)


STRANGER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_deit_distill":
            raise ImportError("the package is not here")
sys.meta_path.insert(0, Blocked())
import json, torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, pipeline
folder, image = sys.argv[1:]
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
classify = pipeline("image-classification", model=folder, trust_remote_code=True)
print(json.dumps({
    "tokens": base(torch.zeros(1, 3, 16, 16)).last_hidden_state.shape[1],
    "heads": [model(torch.zeros(1, 3, 16, 16)).distillation_logits is not None],
    "answer": {entry["label"]: entry["score"] for entry in classify(Image.open(image), top_k=3)},
}))
"""


def test_a_stranger_without_the_package_loads_it(run, photos, tmp_path):
    folder, _ = run
    image = photos / "green" / "3.png"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", STRANGER, str(folder), str(image)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    here = pipeline("image-classification", model=str(folder))(PIL.Image.open(image), top_k=3)
    assert told["tokens"] == 18
    assert told["heads"] == [True]
    assert told["answer"] == pytest.approx({entry["label"]: entry["score"] for entry in here}, abs=1e-6)


def test_again_on_a_finished_folder_says_so_and_touches_nothing(run, photos, capsys):
    folder, results = run
    before = files(folder)
    train_deit.main(arguments(train_dir=photos, validation_fraction=0.25, output_dir=folder))
    printed = capsys.readouterr().out
    assert "finished" in printed
    assert "--overwrite_output_dir true" in printed
    assert f"{100 * results['eval_accuracy']:.2f} %" in printed
    assert files(folder) == before


def test_a_dry_run_stops_after_the_summary(photos, tmp_path, capsys):
    train_deit.main(arguments(train_dir=photos, output_dir=tmp_path / "out", dry_run="true"))
    printed = capsys.readouterr().out
    for words in ("images", "3: blue, green, red", "a new resnet", "hidden 16", "0.01", "hard"):
        assert words in printed
    assert not (tmp_path / "out").exists()


def one_run(photos, folder, teacher, **changes):
    """A short run with a teacher that exists already."""
    settings = {"train_dir": photos, "output_dir": folder, "max_steps": 3, "eval_strategy": "no", **changes}
    if teacher is not None:
        settings |= {"teacher_name_or_path": teacher, "train_teacher": "false"}
    chosen = {key: value for key, value in RECIPE.items() if teacher is None or not key.startswith("teacher_")}
    train_deit.main([word for key, value in {**chosen, **settings}.items() for word in (f"--{key}", str(value))])
    return json.loads((folder / "all_results.json").read_text())


@pytest.mark.parametrize(
    ("changes", "heads", "asked"),
    [
        ({"distillation_type": "soft"}, 2, True),
        ({"use_distillation_token": "false"}, 1, True),
        ({"distillation_type": "soft", "use_distillation_token": "false"}, 1, True),
        ({"distillation_type": "none"}, 1, False),
        ({"fusion": "softmax_mean"}, 2, True),
        ({"save_strategy": "no", "gradient_accumulation_steps": 2}, 2, True),
        ({"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 1}, 2, True),
    ],
)
def test_every_kind_of_distillation_runs(run, photos, tmp_path, changes, heads, asked):
    results = one_run(photos, tmp_path / "out", run[0] / "teacher", **changes)
    assert ("teacher_accuracy" in results) == ("eval_teacher_agreement" in results) == asked
    assert ("eval_accuracy_distillation" in results) == (heads == 2)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert (model.distillation_classifier is not None) == (heads == 2)
    if "fusion" in changes:
        assert results["eval_accuracy"] == results["eval_accuracy_softmax_mean"]


def test_the_student_depends_on_the_seed_alone_not_on_a_teacher_trained_before(photos, tmp_path):
    one_run(photos, tmp_path / "trained", None)
    one_run(photos, tmp_path / "loaded", tmp_path / "trained" / "teacher")
    one_run(photos, tmp_path / "other", tmp_path / "trained" / "teacher", seed=1)
    trained, loaded, other = (
        DeiTDistillForImageClassification.from_pretrained(tmp_path / name).state_dict()
        for name in ("trained", "loaded", "other")
    )
    assert all(torch.equal(value, loaded[name]) for name, value in trained.items())
    assert not torch.equal(trained["deit.embeddings.cls_token"], other["deit.embeddings.cls_token"])


def test_a_student_starts_from_a_checkpoint_at_another_size(run, photos, tmp_path):
    folder, _ = run
    chosen = {key: value for key, value in RECIPE.items() if key not in STUDENT and not key.startswith("teacher_")}
    settings = {
        "model_name_or_path": folder,
        "image_size": 24,
        "max_steps": 1,
        "learning_rate": 0,
        "eval_strategy": "no",
    }
    settings |= {"train_dir": photos, "output_dir": tmp_path / "out", "train_teacher": "false"}
    settings |= {"teacher_name_or_path": folder / "teacher"}
    train_deit.main([word for key, value in {**chosen, **settings}.items() for word in (f"--{key}", str(value))])
    expected = DeiTDistillForImageClassification.from_pretrained(folder, image_size=24).state_dict()
    found = DeiTDistillForImageClassification.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_checkpoints_of_an_unfinished_run_are_not_lost(run, photos, tmp_path, capsys):
    folder, teacher = tmp_path / "out", run[0] / "teacher"
    one_run(photos, folder, teacher, save_strategy="steps", save_steps=2)
    (folder / "all_results.json").unlink()  # as if killed before the end
    with pytest.raises(InputError, match="--resume_from_checkpoint true.*--overwrite_output_dir true"):
        one_run(photos, folder, teacher)
    assert (folder / "checkpoint-2").is_dir()
    one_run(photos, folder, teacher, resume_from_checkpoint="true")
    assert f"resuming from {folder / 'checkpoint-3'}" in capsys.readouterr().out
    one_run(photos, folder, teacher, overwrite_output_dir="true", save_strategy="no")
    assert not list(folder.glob("checkpoint-*"))


def test_a_cut_off_checkpoint_is_passed_over_and_a_missing_one_named(run, photos, tmp_path, capsys):
    folder, teacher = tmp_path / "out", run[0] / "teacher"
    one_run(photos, folder, teacher, save_strategy="steps", save_steps=2)
    (folder / "all_results.json").unlink()
    (folder / "checkpoint-3" / "optimizer.pt").unlink()
    one_run(photos, folder, teacher, resume_from_checkpoint="true")
    printed = capsys.readouterr().out
    assert f"passing over {folder / 'checkpoint-3'}" in printed
    assert f"resuming from {folder / 'checkpoint-2'}" in printed
    with pytest.raises(InputError, match="'nowhere' is no complete checkpoint"):
        one_run(photos, tmp_path / "other", teacher, resume_from_checkpoint="nowhere")


def test_nothing_is_cleared_before_everything_else_is_right(run, photos, tmp_path):
    folder, teacher = tmp_path / "out", run[0] / "teacher"
    one_run(photos, folder, teacher, save_strategy="steps", save_steps=2)
    before = files(folder)
    with pytest.raises(InputError):
        one_run(photos, folder, teacher, overwrite_output_dir="true", attn_implementation="fast")
    assert files(folder) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_dir": "nowhere"}, ["train_dir", "'nowhere'", "not a folder"]),
        ({"image_size": 18}, ["image_size 18", "patch_size 4", "nearest image_size is 16"]),
        ({"hidden_size": 15}, ["hidden_size 15", "num_attention_heads 2"]),
        ({"num_channels": 1}, ["num_channels", "RGB"]),
        ({"distillation_type": "none", "use_distillation_token": "true"}, ["use_distillation_token", "none"]),
        ({"distillation_type": "none", "fusion": "distillation"}, ["fusion", "use_distillation_token"]),
        ({"hiden_size": 16}, ["'hiden_size'", "did you mean 'hidden_size'"]),
        ({"learning_rate": "fast"}, ["learning_rate", "'fast'"]),
        ({"per_device_train_batch_size": 7}, ["per_device_train_batch_size is 7", "odd"]),
        ({"gradient_accumulation_steps": 0}, ["gradient_accumulation_steps is 0", "at least 1"]),
        ({"attn_implementation": "fast"}, ["student", "fast"]),
        ({"teacher_config_name": "bert", "teacher_config_overrides": "{}"}, ["bert", "no image classifier"]),
        ({"teacher_config_overrides": '{"depths": "x"}'}, ["teacher_config_overrides", "depths"]),
        ({"base_learning_rate": "1e-3"}, ["learning_rate 0.01", "base_learning_rate 0.001"]),
    ],
)
def test_wrong_input_gets_one_clear_message(photos, tmp_path, changes, words):
    with pytest.raises(InputError) as caught:
        train_deit.main(arguments(**{"train_dir": photos, "output_dir": tmp_path / "out", **changes}))
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []
    assert not (tmp_path / "out").exists()


def test_one_class_only_is_refused(photos, tmp_path):
    shutil.copytree(photos / "red", tmp_path / "photos" / "red")
    with pytest.raises(InputError, match="one class only"):
        train_deit.main(arguments(train_dir=tmp_path / "photos", output_dir=tmp_path / "out"))


def test_a_teacher_of_other_classes_is_refused(run, tmp_path):
    with pytest.raises(InputError) as caught:
        one_run("unused", tmp_path / "out", run[0] / "teacher", train_dir=make_other_classes(tmp_path))
    assert "3 classes (blue, green, red)" in str(caught.value)
    assert "2 (day, night)" in str(caught.value)


def make_other_classes(folder):
    for name in ("day", "night"):
        (folder / "other" / name).mkdir(parents=True)
        for index in range(3):
            PIL.Image.new("RGB", (20, 20)).save(folder / "other" / name / f"{index}.png")
    return folder / "other"


def test_the_command_line_prints_one_line_and_fails(tmp_path):
    command = [sys.executable, "train_deit.py", "examples/recipes/digits.yaml", "--tempreature", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: unknown argument 'tempreature'")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_digits_recipe_trains_for_a_few_steps(tmp_path):
    changes = ["--max_steps", "5", "--teacher_num_train_epochs", "1", "--output_dir", str(tmp_path / "out")]
    changes += ["--report_to", "none", "--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "no"]
    train_deit.main([str(ROOT / "examples" / "recipes" / "digits.yaml"), *changes])
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_top5_accuracy"] > 0
