"""The script from end to end on images of the reader's own: what it does, says and leaves behind."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.paths import ROOT
from helpers.runs import COLOURS, RECIPE, STUDENT, arguments, files, one_run, without_teacher, words_of
from helpers.strangers import WITHOUT_THE_PACKAGE
from helpers.teachers import save_resnet
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    pipeline,
)

import train_deit
from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification, InputError
from modeling_deit_distill.conversion.checkpoint import PretrainedStudent
from modeling_deit_distill.conversion.saving import save_checkpoint, save_native, save_timm
from modeling_deit_distill.conversion.weight_names import ours_to_public
from modeling_deit_distill.data.decoding import decode_image
from modeling_deit_distill.data.evaluation import evaluation_processor, evaluation_transform
from modeling_deit_distill.data.sources import load_image_data


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
    assert {"all_results.json", "training_curves.png", "tokens.json", "teacher"} < names
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
    transform, scores_of_truth, decided = evaluation_transform(classify.image_processor), [], []
    for row in data.validation:
        image = decode_image(row["image"])
        probabilities = model(transform(image)[None]).logits.softmax(-1)[0]
        answer = {entry["label"]: entry["score"] for entry in classify(image, top_k=3)}
        assert answer == pytest.approx(
            {name: probabilities[index].item() for index, name in enumerate(COLOURS)}, abs=1e-6
        )
        scores_of_truth.append(answer[data.class_names[row["label"]]])
        decided.append(data.class_names.index(max(answer, key=answer.get)))
    # What the trainer's evaluation kept: each decision, and the cross-entropy, which every score of the truth enters.
    kept = json.loads((folder / "predictions.json").read_text())
    assert (kept["fused"], kept["labels"]) == (decided, data.validation["label"][:])
    assert results["eval_loss"] == pytest.approx(-torch.tensor(scores_of_truth).log().mean().item(), abs=1e-5)
    assert results["eval_accuracy"] == pytest.approx(np.mean(np.equal(decided, kept["labels"])))


def test_auto_classes_load_it_with_the_package(run):
    folder, _ = run
    assert type(AutoModelForImageClassification.from_pretrained(folder)) is DeiTDistillForImageClassification
    assert AutoModel.from_pretrained(folder)(torch.zeros(1, 3, 16, 16)).last_hidden_state.shape == (1, 18, 16)


STRANGER = (
    WITHOUT_THE_PACKAGE
    + """
import json, torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    pipeline,
)
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
)


@pytest.mark.slow
def test_a_stranger_without_the_package_loads_it(run, photos, tmp_path):
    folder, _ = run
    image = photos / "green" / "3.png"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", STRANGER, str(folder), str(image)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    here = pipeline("image-classification", model=str(folder))(PIL.Image.open(image), top_k=3)
    assert printed["tokens"] == 18
    assert printed["heads"] == [True]
    assert printed["answer"] == pytest.approx({entry["label"]: entry["score"] for entry in here}, abs=1e-6)


def test_again_on_a_finished_folder_says_so_and_touches_nothing(run, photos, capsys):
    folder, results = run
    before = files(folder)
    train_deit.main(arguments(train_dir=photos, validation_fraction=0.25, output_dir=folder))
    printed = capsys.readouterr().out
    assert "finished" in printed
    assert "--overwrite_output_dir true" in printed
    assert f"{100 * results['eval_accuracy']:.2f} %" in printed
    assert files(folder) == before


def test_again_with_other_arguments_says_which(run, photos, capsys):
    folder, _ = run
    train_deit.main(arguments(train_dir=photos, validation_fraction=0.25, output_dir=folder))
    assert "differs" not in capsys.readouterr().out
    train_deit.main(arguments(train_dir=photos, validation_fraction=0.25, output_dir=folder, seed=7, image_size=24))
    assert "it differs in image_size, seed." in capsys.readouterr().out


@pytest.mark.slow
def test_a_log_without_a_terminal_reads_well(photos, tmp_path):
    words = arguments(train_dir=photos, output_dir=tmp_path / "out", disable_tqdm="false", num_train_epochs=2)
    command = [sys.executable, "train_deit.py", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert b"\r" not in done.stdout + done.stderr
    lines = done.stdout.decode().splitlines()
    assert not [line for line in lines if line.startswith("{")]
    first, second = (
        lines.index("1 of 2: teacher, 4 epochs, 20 steps"),
        lines.index("2 of 2: student, 2 epochs, 10 steps"),
    )
    assert [line.split()[0] for line in lines[first + 2 : first + 6]] == ["1", "2", "3", "4"]
    assert [line.split()[0] for line in lines[second + 2 : second + 4]] == ["1", "2"]


@pytest.mark.parametrize(
    ("changes", "heads", "asked"),
    [
        ({"distillation_type": "soft", "fusion": "softmax_mean"}, 2, True),
        ({"use_distillation_token": "false", "save_strategy": "no", "gradient_accumulation_steps": 2}, 1, True),
        ({"distillation_type": "soft", "use_distillation_token": "false", "max_steps": 1}, 1, True),
        ({"distillation_type": "none", "eval_strategy": "steps", "eval_steps": 1}, 1, False),
    ],
)
@pytest.mark.slow
def test_every_kind_of_distillation_runs(run, photos, tmp_path, changes, heads, asked):
    results = one_run(photos, tmp_path / "out", run[0] / "teacher", **changes)
    assert ("teacher_accuracy" in results) == ("eval_teacher_agreement" in results) == asked
    assert ("eval_accuracy_distillation" in results) == (heads == 2)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert (model.distillation_classifier is not None) == (heads == 2)
    if "fusion" in changes:
        assert results["eval_accuracy"] == results["eval_accuracy_softmax_mean"]


@pytest.mark.slow
def test_the_student_depends_on_the_seed_alone_not_on_a_teacher_trained_before(photos, tmp_path):
    short = {"max_steps": 1, "save_strategy": "no"}
    one_run(photos, tmp_path / "trained", None, teacher_num_train_epochs=1, allow_weak_teacher="true", **short)
    teacher = tmp_path / "trained" / "teacher"
    one_run(photos, tmp_path / "loaded", teacher, allow_weak_teacher="true", **short)
    one_run(photos, tmp_path / "other", teacher, allow_weak_teacher="true", seed=1, **short)
    trained, loaded, other = (
        DeiTDistillForImageClassification.from_pretrained(tmp_path / name).state_dict()
        for name in ("trained", "loaded", "other")
    )
    assert all(torch.equal(value, loaded[name]) for name, value in trained.items())
    assert not torch.equal(trained["deit.embeddings.cls_token"], other["deit.embeddings.cls_token"])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A DeiT that knows one colour more, as each format keeps it: `published[format]` is what to start from."""
    folder, colours = tmp_path_factory.mktemp("published"), ["red", "yellow", "blue", "green"]
    torch.manual_seed(0)
    config = DeiTDistillConfig(
        **{**STUDENT, "hidden_size": 64, "num_attention_heads": 1},
        image_size=16,
        patch_size=4,
        id2label=dict(enumerate(colours)),
        label2id={name: index for index, name in enumerate(colours)},
        initializer_range=0.2,
    )
    model = DeiTDistillForImageClassification(config)
    checkpoint = PretrainedStudent(config, model.state_dict(), evaluation_processor(16), "deit_distill")
    for save, name in ((save_checkpoint, "ours"), (save_native, "native"), (save_timm, "timm")):
        save(checkpoint, folder / name)
    torch.save({"model": ours_to_public(model.state_dict())}, folder / "public.pth")
    places = {name: folder / name for name in ("ours", "native", "timm")} | {"public": folder / "public.pth"}
    return model.state_dict(), places


@pytest.mark.parametrize("kind", ("ours", "native", "timm", "public"))
@pytest.mark.slow
def test_fine_tuning_starts_from_every_format_at_a_finer_resolution(published, run, photos, tmp_path, kind, capsys):
    weights, places = published
    chosen = {key: value for key, value in RECIPE.items() if key not in STUDENT and not key.startswith("teacher_")}
    settings = {"model_name_or_path": places[kind], "image_size": 24, "teacher_image_size": 24, "max_steps": 1}
    settings |= {"learning_rate": 0, "eval_strategy": "no", "train_dir": photos, "output_dir": tmp_path / "out"}
    settings |= {"teacher_name_or_path": run[0] / "teacher", "train_teacher": "false"}
    train_deit.main(words_of({**chosen, **settings}))
    printed = capsys.readouterr().out
    assert "kept: patches, tokens and 2 blocks" in printed
    assert "resized bicubically: position embeddings, from 16 to 24 pixels" in printed
    found = DeiTDistillForImageClassification.from_pretrained(tmp_path / "out")
    kept = {name: value for name, value in found.state_dict().items() if name.startswith("deit.")}
    positions = kept.pop("deit.embeddings.position_embeddings")
    assert positions.shape == (1, 2 + 6 * 6, 64)
    resized = DeiTDistillForImageClassification.from_pretrained(places["ours"], image_size=24)
    assert torch.equal(positions, resized.deit.embeddings.position_embeddings)
    assert torch.equal(positions[:, :2], weights["deit.embeddings.position_embeddings"][:, :2])
    assert all(torch.equal(value, weights[name]) for name, value in kept.items())
    blue_green_red = found.cls_classifier.weight
    if kind == "public":  # names no classes
        assert "new: both heads, for 3 classes" in printed
        assert not torch.equal(blue_green_red, weights["cls_classifier.weight"][[2, 3, 0]])
    else:
        assert "of both heads the rows of 3 of 4 classes" in printed
        assert torch.equal(blue_green_red, weights["cls_classifier.weight"][[2, 3, 0]])
    answer = pipeline("image-classification", model=str(tmp_path / "out"))(str(photos / "red" / "1.png"))
    assert {entry["label"] for entry in answer} == set(COLOURS)


@pytest.mark.parametrize("recipe", ("finetune_384", "finetune_own_images", "transfer_cifar10"))
@pytest.mark.slow
def test_the_fine_tuning_recipes_run(published, run, photos, tmp_path, recipe):
    small = {
        "model_name_or_path": published[1]["ours"],
        "teacher_name_or_path": run[0] / "teacher",
        "teacher_image_size": 24,
        "image_size": 24,
        "train_dir": photos,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "dataloader_num_workers": 0,
        "dataloader_persistent_workers": "false",
        "bf16": "false",
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": "true",
        "disable_tqdm": "true",
        "output_dir": tmp_path / "out",
    }
    words = words_of(small)
    if recipe != "finetune_384":
        words += ["--train_teacher", "true", "--teacher_num_train_epochs", "1"]
    train_deit.main([str(ROOT / "examples" / "recipes" / f"{recipe}.yaml"), *words])
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert {"teacher_accuracy", "eval_accuracy", "eval_teacher_agreement"} < results.keys()


@pytest.fixture(scope="module")
def unfinished(run, photos, tmp_path_factory):
    """A run with checkpoints of steps 2 and 3, as if it was killed before its end, and what its results were."""
    folder = tmp_path_factory.mktemp("unfinished") / "out"
    whole = one_run(photos, folder, run[0] / "teacher", save_strategy="steps", save_steps=2)
    (folder / "all_results.json").unlink()
    return folder, whole


def test_checkpoints_of_an_unfinished_run_are_not_lost(unfinished, run, photos, tmp_path, capsys):
    folder, teacher = shutil.copytree(unfinished[0], tmp_path / "out"), run[0] / "teacher"
    with pytest.raises(InputError, match="--resume_from_checkpoint true.*--overwrite_output_dir true"):
        one_run(photos, folder, teacher)
    assert (folder / "checkpoint-2").is_dir()
    one_run(photos, folder, teacher, resume_from_checkpoint="true")
    printed = capsys.readouterr().out
    assert f"resuming from {folder / 'checkpoint-3'}" in printed
    assert (
        "\nstudent: all 3 steps were taken before; nothing is left to train\n" in printed and "time left" not in printed
    )
    one_run(photos, folder, teacher, overwrite_output_dir="true", save_strategy="no", max_steps=1)
    assert not list(folder.glob("checkpoint-*"))


def test_figures_of_a_resumed_run_are_of_all_of_it(unfinished, run, photos, tmp_path):
    folder, teacher, whole = shutil.copytree(unfinished[0], tmp_path / "out"), run[0] / "teacher", unfinished[1]
    kept = json.loads((folder / "checkpoint-2" / "counts_0.json").read_text())
    assert 0 < kept["teacher_views"] < whole["teacher_views_asked"] and kept["bad_rows"] == []
    (folder / "checkpoint-2" / "complete.json").unlink()  # it would tell of the change
    (folder / "checkpoint-2" / "counts_0.json").write_text(json.dumps({**kept, "seconds": 2.0, "bad_rows": [5]}))
    with pytest.raises(InputError, match="is of step 2, but .* holds checkpoint-3"):
        one_run(photos, folder, teacher, resume_from_checkpoint=folder / "checkpoint-2")
    shutil.rmtree(folder / "checkpoint-3")
    resumed = one_run(photos, folder, teacher, resume_from_checkpoint=folder / "checkpoint-2")
    assert resumed["teacher_views_asked"] == whole["teacher_views_asked"]
    assert resumed["bad_images"] == 1 and resumed["train_runtime"] > 2.0
    # Three steps of eight images, of which one step came after the checkpoint.
    rates = {name: resumed[f"train_{name}_per_second"] for name in ("steps", "samples")}
    assert rates["steps"] == pytest.approx(3 / resumed["train_runtime"], abs=1e-3)
    assert rates["samples"] == pytest.approx(3 * 8 / resumed["train_runtime"], abs=1e-3)


def test_another_teacher_is_refused_and_changes_no_file(unfinished, run, photos, tmp_path):
    folder = shutil.copytree(unfinished[0], tmp_path / "out")
    save_resnet(tmp_path / "other", [*COLOURS])
    before, resume = files(folder), {"resume_from_checkpoint": "true", "allow_weak_teacher": "true", "max_steps": 4}
    words = (
        r"checkpoint-3 was made with the teacher teacher \(teacher_weights .*\), this run has other \(teacher_weights"
    )
    for more in ({}, {"teacher_store": tmp_path / "answers"}, {"dry_run": "true"}):
        with pytest.raises(InputError, match=f"{words}.* give the same to go on, or --overwrite_output_dir true"):
            one_run(photos, folder, tmp_path / "other", **resume, **more)
    assert files(folder) == before and not (tmp_path / "answers").exists()
    shutil.copytree(run[0] / "teacher", tmp_path / "moved")
    one_run(photos, folder, tmp_path / "moved", **resume)


def test_the_hubs_last_checkpoint_is_gone_on_from(unfinished, run, photos, tmp_path):
    teacher, whole, folder = run[0] / "teacher", unfinished[1], tmp_path / "out"
    kept = shutil.copytree(unfinished[0] / "checkpoint-2", tmp_path / "hub" / "last-checkpoint")
    assert one_run(photos, folder, teacher, resume_from_checkpoint=kept)["eval_loss"] == whole["eval_loss"]
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_cut_off_checkpoint_is_passed_over_and_a_missing_one_named(unfinished, run, photos, tmp_path, capsys):
    folder, teacher = shutil.copytree(unfinished[0], tmp_path / "out"), run[0] / "teacher"
    (folder / "checkpoint-3" / "optimizer.pt").unlink()
    one_run(photos, folder, teacher, resume_from_checkpoint="true")
    printed = capsys.readouterr().out
    assert f"passing over {folder / 'checkpoint-3'}" in printed
    assert f"resuming from {folder / 'checkpoint-2'}" in printed
    with pytest.raises(InputError, match="'nowhere' is no complete checkpoint"):
        one_run(photos, tmp_path / "other", teacher, resume_from_checkpoint="nowhere")


def test_nothing_is_cleared_before_everything_else_is_right(unfinished, run, photos):
    folder, _ = unfinished
    before = files(folder)
    with pytest.raises(InputError, match="fast"):
        one_run(photos, folder, run[0] / "teacher", overwrite_output_dir="true", attn_implementation="fast")
    assert files(folder) == before


WRONG_INPUT = [
    ({"train_dir": "nowhere"}, ["train_dir", "'nowhere'", "not a folder"]),
    ({"image_size": 18}, ["image_size 18", "patch_size 4", "nearest image_size is 16 or 20"]),
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
]


def test_wrong_input_gets_one_clear_message(photos, tmp_path):
    for changes, words in WRONG_INPUT:
        with pytest.raises(InputError) as caught:
            train_deit.main(arguments(**{"train_dir": photos, "output_dir": tmp_path / "out", **changes}))
        message = str(caught.value)
        assert "\n" not in message, changes
        assert [word for word in words if word not in message] == [], changes
        assert not (tmp_path / "out").exists(), changes


def test_one_class_only_is_refused(photos, tmp_path):
    shutil.copytree(photos / "red", tmp_path / "photos" / "red")
    with pytest.raises(InputError, match="one class only"):
        train_deit.main(arguments(train_dir=tmp_path / "photos", output_dir=tmp_path / "out"))


def test_a_teacher_of_other_classes_is_refused(run, tmp_path):
    with pytest.raises(InputError) as caught:
        one_run("unused", tmp_path / "out", run[0] / "teacher", train_dir=make_other_classes(tmp_path))
    assert "the teacher's 3: 'day', 'night'" in str(caught.value)


def make_other_classes(folder):
    for name in ("day", "night"):
        (folder / "other" / name).mkdir(parents=True)
        for index in range(3):
            PIL.Image.new("RGB", (20, 20)).save(folder / "other" / name / f"{index}.png")
    return folder / "other"


@pytest.mark.slow
def test_the_digits_recipe_trains_for_a_few_steps(tmp_path):
    changes = ["--max_steps", "5", "--teacher_num_train_epochs", "1", "--output_dir", str(tmp_path / "out")]
    changes += ["--report_to", "none", "--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "no"]
    train_deit.main([str(ROOT / "examples" / "recipes" / "digits.yaml"), *changes])
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_top5_accuracy"] > 0


def test_a_teacher_at_chance_is_refused_before_training(tmp_path):
    names = {str(digit): digit for digit in range(10)}
    config = ResNetConfig(
        **json.loads(RECIPE["teacher_config_overrides"]), label2id=names, id2label={v: k for k, v in names.items()}
    )
    torch.manual_seed(0)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "teacher")
    words = {"dataset_name": "digits", "teacher_name_or_path": tmp_path / "teacher", "output_dir": tmp_path / "out"}
    recipe = {**without_teacher(), **words, "teacher_store": tmp_path / "answers"}
    with pytest.raises(InputError, match="chance would be about.*--allow_weak_teacher true"):
        train_deit.main(words_of(recipe))
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert not (tmp_path / "answers").exists()  # the mended teacher will want a store of its own
