"""A teacher that is trained first, or found where it was trained."""

import itertools
import json
import re
import resource
import shutil
import signal

import numpy as np
import pytest
import torch
from helpers.teachers import SMALL, describe, save_resnet, teacher_in
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, ViTImageProcessor

from modeling_deit_distill import DistillationTrainingArguments, InputError
from modeling_deit_distill.arguments import ModelArguments
from modeling_deit_distill.data.evaluation import EvaluationDataset, evaluation_processor, evaluation_transform
from modeling_deit_distill.data.sources import load_image_data
from modeling_deit_distill.signals import Interrupted
from modeling_deit_distill.teachers import training
from modeling_deit_distill.teachers.description import describe_teachers
from modeling_deit_distill.teachers.teacher import InputView, load_teacher
from modeling_deit_distill.teachers.training import RECORDED_LATER, TeacherTraining, find_or_train_teacher
from modeling_deit_distill.teachers.trial import decisions_of


@pytest.fixture(scope="module")
def digits():
    data = load_image_data("digits")
    data.train, data.validation = data.train.select(range(64)), data.validation.select(range(20))
    return data


# The precision is always said: where nobody says it, the processor decides.
SETTINGS = {
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "per_device_train_batch_size": 32,
    "bf16": False,
    "horizontal_flip_prob": 0.0,
    "rand_augment_magnitude": 0.0,
    "eval_strategy": "steps",
    "eval_steps": 1,
}


def train(tmp_path, data, image_size=16, asked=None, **changes):
    args = DistillationTrainingArguments(
        output_dir=str(tmp_path),
        # What the student's schedule says must not reach the teacher's.
        max_steps=1,
        save_strategy="steps",
        save_steps=1,
        **{**SETTINGS, **(asked or {})},
    )
    fields = {"teacher_num_train_epochs": 1, "teacher_learning_rate": 1e-2, "train_teacher": True, **changes}
    model_args = ModelArguments(**{"teacher_config_name": "resnet", "teacher_config_overrides": SMALL, **fields})
    config = describe_teachers(model_args, args, data.class_names)[0]
    return find_or_train_teacher(TeacherTraining(config, data, model_args, args, image_size), 1.0, data.validation)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """The output_dir in which a teacher was trained; never changed."""
    folder = tmp_path_factory.mktemp("trained")
    assert train(folder, digits) == folder / "teacher"
    return folder


def test_training_saves_a_teacher_that_is_found_next_time(trained, digits, monkeypatch):
    folder = trained / "teacher"
    assert sorted(path.name for path in trained.iterdir()) == [
        "teacher",
        "train_log.jsonl",
    ]  # no leftovers, no student checkpoints
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} < before.keys()
    monkeypatch.setattr(
        "modeling_deit_distill.teachers.training.Trainer.train", lambda self: pytest.fail("trained again")
    )
    assert train(trained, digits) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert load_teacher(ModelArguments(teacher_name_or_path=str(folder)), digits.class_names, 16).view.image_size == 16


def test_the_teacher_trains_for_its_own_epochs(tmp_path, digits, monkeypatch):
    seen = {}

    def remember(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        seen.update(steps=self.state.global_step, args=self.args, log=self.state.log_history)
        return result

    original = __import__("transformers").Trainer.train
    monkeypatch.setattr("modeling_deit_distill.teachers.training.Trainer.train", remember)
    train(tmp_path, digits, teacher_num_train_epochs=3)
    assert seen["steps"] == 3 * 2  # 64 images, 32 a step
    assert type(seen["args"]) is TrainingArguments
    losses = [entry["loss"] for entry in seen["log"] if "loss" in entry]
    assert len(losses) == 3 and losses[0] > losses[2]


def test_the_teacher_is_judged_after_each_epoch(tmp_path, digits, capsys):
    train(tmp_path, digits, teacher_num_train_epochs=2)
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "1 of 2: teacher, 2 epochs, 4 steps"
    assert lines[1].split() == ["epoch", "loss", "held", "out", "time", "left"]
    log = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    shares = [entry["eval_accuracy"] for entry in log if "eval_accuracy" in entry]
    shown = [line.split()[2] for line in lines[2:]]
    assert len(shares) == 2 and shown == [f"{100 * share:.2f}" for share in shares]
    teacher = teacher_in(tmp_path / "teacher").eval()
    dataset = EvaluationDataset(digits.validation, evaluation_transform(evaluation_processor(16, 1.0)))
    answers, labels, _ = decisions_of(teacher, dataset, 32)
    assert shares[-1] == pytest.approx(np.mean(answers == labels))


def test_judging_it_changes_nothing_in_its_training(tmp_path, digits, monkeypatch):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    sizes |= {"image_size": 16, "patch_size": 8, "hidden_dropout_prob": 0.5}
    settings = {"teacher_config_name": "vit", "teacher_config_overrides": sizes, "teacher_num_train_epochs": 2}
    train(tmp_path / "judged", digits, **settings)
    monkeypatch.setattr("modeling_deit_distill.teachers.training.Trainer.evaluate", lambda *args, **kwargs: {})
    train(tmp_path / "not", digits, **settings)
    weights = [(tmp_path / name / "teacher" / "model.safetensors").read_bytes() for name in ("judged", "not")]
    assert weights[0] == weights[1]


def test_a_teacher_of_another_configuration_is_refused(trained, digits):
    before = (trained / "teacher" / "model.safetensors").read_bytes()
    for changes in ({"teacher_learning_rate": 2e-2}, {"teacher_num_train_epochs": 2}, {"image_size": 8}):
        field = next(iter(changes)).removeprefix("teacher_")
        with pytest.raises(InputError, match=f"{field}.*add --overwrite_output_dir true to train it again"):
            train(trained, digits, **changes)
    assert (trained / "teacher" / "model.safetensors").read_bytes() == before


# What a teacher's training depends on beside its own arguments: another value of each.
OTHERS = {
    "seed": 7,
    "random_crop_scale": [0.05, 1.0],
    "rand_augment_magnitude": 9.0,
    "horizontal_flip_prob": 0.5,
    "per_device_train_batch_size": 16,
    "bf16": True,
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_teacher_of_another_training_is_refused_and_trained_again_where_it_may_be_overwritten(
    trained, digits, tmp_path, capsys, name
):
    folder = shutil.copytree(trained / "teacher", tmp_path / "teacher")
    asked, before = {name: OTHERS[name]}, (folder / "model.safetensors").read_bytes()
    field = {"per_device_train_batch_size": "effective_batch_size", "bf16": "precision"}.get(name, name)
    words = f"holds a teacher trained with another {field} (.*, now .*)"
    with pytest.raises(InputError, match=f"{words}; add --overwrite_output_dir true to train it again"):
        train(tmp_path, digits, asked=asked)
    with pytest.raises(InputError, match="--overwrite_output_dir true without --resume_from_checkpoint to train"):
        train(tmp_path, digits, asked={**asked, "resume_from_checkpoint": "true"})
    assert (folder / "model.safetensors").read_bytes() == before
    train(tmp_path, digits, asked={**asked, "overwrite_output_dir": True})
    assert re.search(f"{words}: another is trained in its place", capsys.readouterr().out)
    assert (folder / "model.safetensors").read_bytes() != before
    assert not list(tmp_path.glob("teacher.*"))
    now = (folder / "model.safetensors").read_bytes()
    train(tmp_path, digits, asked={**asked, "overwrite_output_dir": True})  # which fits now
    assert (folder / "model.safetensors").read_bytes() == now and "another" not in capsys.readouterr().out


def test_a_teacher_of_an_earlier_version_is_taken_and_that_is_said(trained, digits, tmp_path, capsys):
    folder = shutil.copytree(trained / "teacher", tmp_path / "teacher")
    record = json.loads((folder / "teacher_training.json").read_text())
    earlier = {name: value for name, value in record.items() if name not in RECORDED_LATER}
    (folder / "teacher_training.json").write_text(json.dumps(earlier))
    assert train(tmp_path, digits, asked={"seed": 7}) == folder
    assert "is of an earlier version: its seed, effective_batch_size, precision" in capsys.readouterr().out
    with pytest.raises(InputError, match="another num_train_epochs"):
        train(tmp_path, digits, teacher_num_train_epochs=2)


def test_how_a_teacher_saw_large_photographs_is_recorded_where_they_were_scaled(trained, digits, tmp_path):
    assert "scaled_decoding" not in json.loads((trained / "teacher" / "teacher_training.json").read_text())
    with pytest.raises(InputError, match=r"trained with another scaled_decoding \(None, now True\)"):
        train(trained, digits, asked={"scaled_decoding": True})


def test_a_teacher_trained_on_other_pixels_is_refused(trained, digits, monkeypatch):
    version = training.AUGMENTATION_VERSION
    monkeypatch.setattr(training, "AUGMENTATION_VERSION", version + 1)
    with pytest.raises(InputError, match=rf"another augmentation_version \({version}, now {version + 1}\); add --over"):
        train(trained, digits)


def test_rare_classes_count_more_for_the_teacher_too(trained, digits, tmp_path):
    weights = {"plain": load_file(trained / "teacher" / "model.safetensors")}
    for name, asked in (("weighted", {"class_weights": "balanced"}), ("balanced", {"balanced_views": True})):
        folder = train(tmp_path / name, digits, asked=asked)
        record = json.loads((folder / "teacher_training.json").read_text())
        assert asked.keys() < record.keys()
        weights[name] = load_file(folder / "model.safetensors")
        assert train(tmp_path / name, digits, asked=asked) == folder
        with pytest.raises(InputError, match=f"trained with another {next(iter(asked))} .*, now None"):
            train(tmp_path / name, digits)
        with pytest.raises(InputError, match=f"trained with another {next(iter(asked))} \\(None, now "):
            train(trained, digits, asked=asked)
    heads = [each["classifier.1.weight"] for each in weights.values()]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(heads, 2))


def test_a_teachers_training_stops_early_with_its_best_weights(digits, tmp_path, monkeypatch, capsys):
    scores = iter([0.2, 0.5, 0.4, 0.5, 0.9])
    monkeypatch.setattr(
        "modeling_deit_distill.teachers.training._figures", lambda evaluated: {"macro_f1": next(scores)}
    )
    kept, save = {}, Trainer.save_model

    def save_model(self, *args, **how):
        kept[self.state.global_step] = self.model.classifier[1].weight.detach().clone()
        save(self, *args, **how)

    monkeypatch.setattr(Trainer, "save_model", save_model)
    asked = {"early_stopping_patience": 2, "load_best_model_at_end": True, "metric_for_best_model": "macro_f1"}
    folder = train(tmp_path, digits, asked=asked, teacher_num_train_epochs=9)
    words = (
        "the teacher's training stopped early: after epoch 4 of 9; the weights of epoch 2 are kept, with macro_f1 0.5"
    )
    assert words in capsys.readouterr().out
    assert [*kept] == [2, 4, 6, 8]
    weight = load_file(folder / "model.safetensors")["classifier.1.weight"]
    assert torch.equal(weight, kept[4]) and not torch.equal(weight, kept[2])
    assert not list(folder.glob("checkpoint-*"))
    record = json.loads((folder / "teacher_training.json").read_text())
    assert (record["early_stopping_patience"], record["judged_by"]) == (2, "macro_f1")
    assert train(tmp_path, digits, asked=asked, teacher_num_train_epochs=9) == folder
    with pytest.raises(InputError, match="trained with another early_stopping_patience"):
        train(tmp_path, digits, teacher_num_train_epochs=9)


def test_a_teacher_of_other_data_is_refused(trained, tmp_path, digits):
    folder = shutil.copytree(trained / "teacher", tmp_path / "teacher")
    record = json.loads((folder / "teacher_training.json").read_text())
    (folder / "teacher_training.json").write_text(json.dumps({**record, "dataset": "another"}))
    with pytest.raises(InputError, match="another dataset.*choose another --output_dir"):
        train(tmp_path, digits)


DROPPING = {  # what it drops comes from torch's own stream, which must go on where it was
    "teacher_config_name": "vit",
    "teacher_config_overrides": json.dumps(
        {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "image_size": 16,
            "patch_size": 8,
            "hidden_dropout_prob": 0.2,
        }
    ),
    "teacher_num_train_epochs": 3,
}


def interrupted(monkeypatch, step, *args, **kwargs):
    """Train until a signal comes in that step; what the end says."""
    compute_loss, calls = training._TeacherTrainer.compute_loss, []

    def signalled(self, model, *inputs, **how):
        calls.append(model.training)
        if model.training and sum(calls) == step:
            signal.raise_signal(signal.SIGTERM)
        return compute_loss(self, model, *inputs, **how)

    with monkeypatch.context() as patched:
        patched.setattr(training._TeacherTrainer, "compute_loss", signalled)
        with pytest.raises(Interrupted) as raised:
            train(*args, **kwargs)
    return str(raised.value)


@pytest.fixture(scope="module")
def dropping(digits, tmp_path_factory):
    """The weights of an uninterrupted training with dropout."""
    folder = tmp_path_factory.mktemp("dropping")
    return (train(folder, digits, **DROPPING) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("steps", [(1,), (2, 1), (6,)], ids=["mid_epoch", "end_of_an_epoch_and_again", "last_step"])
def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path, digits, dropping, monkeypatch, capsys, steps):
    for count, step in enumerate(steps):
        said, place = interrupted(monkeypatch, step, tmp_path, digits, **DROPPING), sum(steps[: count + 1])
        assert said.startswith(
            f"interrupted by SIGTERM: {tmp_path / 'teacher.partial' / f'checkpoint-{place}'} is whole"
        )
        assert not (tmp_path / "teacher").exists()
    folder = train(tmp_path, digits, **DROPPING)
    assert (
        f"the teacher's training goes on from {tmp_path}/teacher.partial/checkpoint-{place}" in capsys.readouterr().out
    )
    assert (folder / "model.safetensors").read_bytes() == dropping
    assert sorted(path.name for path in tmp_path.iterdir()) == ["teacher", "train_log.jsonl"]
    assert not list(folder.glob("checkpoint-*")) and not (folder / "interrupted.json").exists()


def test_a_training_that_overwrites_a_teacher_goes_on_though_only_the_first_command_said_so(
    tmp_path, digits, dropping, monkeypatch
):
    shorter = {**DROPPING, "teacher_num_train_epochs": 1}
    train(tmp_path, digits, **shorter)
    before = (tmp_path / "teacher" / "model.safetensors").read_bytes()
    interrupted(monkeypatch, 3, tmp_path, digits, asked={"overwrite_output_dir": True}, **DROPPING)
    assert (tmp_path / "teacher" / "model.safetensors").read_bytes() == before
    go_on = {"resume_from_checkpoint": "true"}  # as the interrupted run says
    with monkeypatch.context() as patched, pytest.raises(InputError, match="holds a teacher trained with another num"):
        patched.setattr(training, "list_checkpoints", lambda folder: ["a student's, with the earlier teacher"])
        train(tmp_path, digits, asked=go_on, **DROPPING)
    folder = train(tmp_path, digits, asked=go_on, **DROPPING)
    assert (folder / "model.safetensors").read_bytes() == dropping
    assert sorted(path.name for path in tmp_path.iterdir()) == ["teacher", "train_log.jsonl"]


def test_a_failed_training_goes_on_after_its_last_epoch(tmp_path, digits, dropping, monkeypatch):
    save = training._TeacherTrainer.save_model

    def fail(self, folder, **how):
        if self.state.global_step == 4:
            raise MemoryError
        save(self, folder, **how)

    with monkeypatch.context() as patched:
        patched.setattr(training._TeacherTrainer, "save_model", fail)
        with pytest.raises(MemoryError):
            train(tmp_path, digits, **DROPPING)
    assert [path.name for path in (tmp_path / "teacher.partial").glob("checkpoint-*")] == ["checkpoint-2"]
    assert (train(tmp_path, digits, **DROPPING) / "model.safetensors").read_bytes() == dropping


def test_a_training_that_may_stop_early_goes_on_to_the_same_end(tmp_path, digits, monkeypatch, capsys):
    scores = {2: 0.2, 4: 0.5, 6: 0.4, 8: 0.5, 10: 0.9}
    evaluate = training._TeacherTrainer.evaluation_loop

    def scored(self, *args, **kwargs):
        output = evaluate(self, *args, **kwargs)
        output.metrics["eval_macro_f1"] = scores[self.state.global_step]
        return output

    monkeypatch.setattr(training._TeacherTrainer, "evaluation_loop", scored)
    asked = {"early_stopping_patience": 2, "load_best_model_at_end": True, "metric_for_best_model": "macro_f1"}
    arguments = {"asked": asked, **DROPPING, "teacher_num_train_epochs": 9}
    whole = train(tmp_path / "whole", digits, **arguments) / "model.safetensors"
    for step in (5, 3):  # in the third epoch, and in the fourth, after which it stops
        interrupted(monkeypatch, step, tmp_path / "run", digits, **arguments)
    capsys.readouterr()
    folder = train(tmp_path / "run", digits, **arguments)
    assert "stopped early: after epoch 4 of 9; the weights of epoch 2 are kept" in capsys.readouterr().out
    assert (folder / "model.safetensors").read_bytes() == whole.read_bytes()


def test_a_checkpoint_of_another_training_is_named_and_not_gone_on_from(tmp_path, digits, monkeypatch, capsys):
    interrupted(monkeypatch, 1, tmp_path, digits, **DROPPING)
    train(tmp_path, digits)
    said = capsys.readouterr().out
    assert "teacher.partial has checkpoint-1, of another training: the teacher is trained from the beginning" in said


def test_a_full_disk_is_one_line(tmp_path, digits):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, before[1]))
    try:
        with pytest.raises(InputError, match="^the teacher cannot be written to .*disk may be full.*make room"):
            train(tmp_path, digits)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "teacher").exists()
    assert train(tmp_path, digits).is_dir()


def test_a_pretrained_teacher_is_fine_tuned_with_a_new_head(tmp_path, digits):
    source = tmp_path / "source"
    model = save_resnet(source, ["cat", "dog"], ViTImageProcessor(size={"height": 24, "width": 24}))
    args = DistillationTrainingArguments(output_dir=str(tmp_path), **SETTINGS)
    # At this rate nothing moves but batch statistics: the body must be the source's.
    schedule = {"teacher_num_train_epochs": 1, "teacher_learning_rate": 0.0}
    model_args = ModelArguments(teacher_name_or_path=str(source), train_teacher=True, **schedule)
    config = describe_teachers(model_args, args, digits.class_names)[0]
    folder = find_or_train_teacher(TeacherTraining(config, digits, model_args, args, 16), 1.0, digits.validation)
    tuned = AutoModelForImageClassification.from_pretrained(folder)
    assert [tuned.config.id2label[index] for index in range(10)] == digits.class_names
    weight = "resnet.embedder.embedder.convolution.weight"
    np.testing.assert_array_equal(tuned.state_dict()[weight], model.state_dict()[weight])
    assert teacher_in(folder).view == InputView(24, (0.5,) * 3, (0.5,) * 3)


def test_a_folder_that_is_no_teacher_of_ours_is_left_alone(tmp_path, digits):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists but holds no teacher"):
        train(tmp_path, digits)
    assert (tmp_path / "teacher" / "notes.txt").read_text() == "mine"


def test_names_that_a_dataset_had_to_make_unique_match(tmp_path):
    save_resnet(tmp_path, ["crane", "owl", "crane"])
    assert teacher_in(tmp_path, ["crane", "owl", "crane2"]).classes is None  # the same, in the same order
    with pytest.raises(InputError, match="eagle"):
        describe(["crane", "eagle", "crane2"], teacher_name_or_path=str(tmp_path))
