"""What a program relies on that takes our trainer for one of transformers'."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.trainers import CLASSES, SETTINGS, CountingTeacher, Images, rows, student, trainer, views_trainer
from huggingface_hub import ModelCard
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_utils import HPSearchBackend, get_last_checkpoint

from modeling_deit_distill import (
    DeiTDistillForImageClassification,
    DistillationTrainer,
    DistillationTrainingArguments,
    InputError,
)
from modeling_deit_distill.data.datasets import StreamingViewDataset, ViewDataset
from modeling_deit_distill.data.views import VIEW_ARGUMENTS, AugmentationSettings
from modeling_deit_distill.output_folder import begin_checkpoint, damage


def test_a_prediction_in_bf16_leaves_the_weights_in_fp32(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher(), bf16_full_eval=True)
    run.train()
    run.predict(run.eval_dataset)
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}


def test_a_model_saved_by_hand_moves_no_folder(tmp_path):
    run = trainer(tmp_path / "out", teacher=CountingTeacher(), max_steps=1)
    run.train()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for folder in (f"{tmp_path}/out/", tmp_path / "out", f"{tmp_path}/elsewhere"):
        run.save_model(folder, _internal_call=True)
    assert (tmp_path / "out" / "mine.txt").exists()
    assert not list(tmp_path.glob("_replaced*")) and not (tmp_path / "elsewhere" / "complete.json").exists()


def test_every_other_callback_sees_a_whole_checkpoint(tmp_path):
    seen = []

    class Reporter(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append(damage(tmp_path / f"checkpoint-{state.global_step}"))

    run = views_trainer(tmp_path, rows(26), save_strategy="steps", save_steps=2, max_steps=4)
    run.callback_handler.callbacks.insert(len(run.callback_handler.callbacks) - 1, Reporter())
    run.train()
    assert seen == [None, None]
    own = [type(each).__name__ for each in run.callback_handler.callbacks]
    assert own[:5] == ["SetEpoch", "AverageWeights", "Progress", "Checkpoints", "Publisher"]
    assert own[-1] == "StopAtSignal"


def test_an_unfinished_checkpoint_that_is_named_is_named_as_such(tmp_path):
    views_trainer(tmp_path, rows(26), save_strategy="steps", save_steps=2, max_steps=2).train()
    begin_checkpoint(tmp_path / "checkpoint-4")
    run = views_trainer(tmp_path, rows(26), max_steps=4)
    with pytest.raises(InputError, match="its saving was interrupted; give one, or true for the last"):
        run.train(resume_from_checkpoint=get_last_checkpoint(str(tmp_path)))
    assert run.train(resume_from_checkpoint=True).global_step == 4


def test_the_arguments_are_the_users_own(tmp_path):
    run = views_trainer(tmp_path, rows(26), save_strategy="steps", save_steps=1, max_steps=3, save_total_limit=2)
    run.train()
    assert (run.args.save_total_limit, run.args.hub_strategy) == (2, "every_save")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


def arguments(folder, **more):
    settings = {**SETTINGS, "output_dir": str(folder), "per_device_train_batch_size": 8, "max_steps": 2}
    return DistillationTrainingArguments(**{**settings, **more})


class Renamed(Images):
    """The same images; their labels under another key, or (None) without any."""

    def __init__(self, key: str | None, length: int = 10):
        super().__init__(length)
        self.key = key

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        label = sample.pop("labels")
        return sample if self.key is None else {**sample, self.key: label}


def other_model():
    return DeiTForImageClassification(DeiTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))


# What a program may give Trainer: a word of the line that refuses it.
REFUSED = {
    "plain arguments": ({"args": TrainingArguments(report_to="none", use_cpu=True)}, "args is a TrainingArguments"),
    "another model": ({"model": other_model()}, "the model is a DeiTForImageClassification; the student must be"),
    "no model": ({"model": None}, "there is no model; the student must be"),
    "another made model": ({"model": None, "model_init": other_model}, "the model is a DeiTForImageClassification"),
    "a name as teacher": ({"teacher": "facebook/deit"}, "teacher is a str; give a torch.nn.Module"),
    "a folder as store": ({"teacher_store": "answers"}, "teacher_store is a str; give a TeacherStore"),
    "compute_loss_func": ({"compute_loss_func": print}, "compute_loss_func is refused: the loss is"),
    "preprocess alone": (
        {"preprocess_logits_for_metrics": print},
        "preprocess_logits_for_metrics is given without compute_metrics",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_named_in_one_line(tmp_path, case):
    given, words = REFUSED[case]
    with pytest.raises(InputError, match=words) as caught:
        DistillationTrainer(**{"model": student(), "args": arguments(tmp_path), "teacher": CountingTeacher(), **given})
    assert "\n" not in str(caught.value)


def test_the_sampling_strategy_is_refused(tmp_path):
    with pytest.raises(InputError, match="train_sampling_strategy is 'group_by_length', which is refused"):
        arguments(tmp_path, train_sampling_strategy="group_by_length")


@pytest.mark.parametrize("average", [{}, {"ema_half_life": 1}])
def test_images_without_labels_are_predicted(tmp_path, average):
    run = trainer(tmp_path, teacher=CountingTeacher(), **average)
    run.train()
    unlabelled = Renamed(None)
    prediction = run.predict(unlabelled)
    expected = run.model.eval()(unlabelled.pixel_values).logits
    assert prediction.label_ids is None and not any("accuracy" in name for name in prediction.metrics)
    assert torch.allclose(torch.as_tensor(prediction.predictions), expected, atol=1e-5)
    assert np.array_equal(prediction.decisions["fused"], prediction.predictions.argmax(axis=-1))
    assert "eval_loss" not in run.evaluate(unlabelled)


@pytest.mark.parametrize("argument", [{}, {"eval_do_concat_batches": False}, {"batch_eval_metrics": True}])
def test_a_prediction_has_logits_decisions_and_metrics_and_is_no_evaluation(tmp_path, argument):
    run = trainer(tmp_path, teacher=CountingTeacher(), per_device_eval_batch_size=4, **argument)
    metrics = run.evaluate()
    kept, data = run.metrics.decisions, Images(10)
    logits, labels, figures = output = run.predict(data)
    logits = np.concatenate(logits) if isinstance(logits, list) else logits
    assert logits.shape == (10, CLASSES) and logits.dtype == np.float32
    assert set(output.decisions) >= {"fused", "cls", "distillation", "top5"}
    assert len(output.decisions["cls"]) == 10
    assert np.array_equal(np.concatenate(labels) if isinstance(labels, list) else labels, data.labels)
    assert figures["test_accuracy"] == np.mean(logits.argmax(axis=-1) == data.labels.numpy())
    assert run.metrics.decisions is kept and run.evaluate()["eval_accuracy"] == metrics["eval_accuracy"]


@pytest.mark.parametrize("key", ["label", "label_ids"])
def test_labels_have_the_names_that_trainer_knows(tmp_path, key):
    weights = []
    for data in (Images(16), Renamed(key, 16)):
        for collator in (None, default_data_collator if key == "label" else None):
            run = DistillationTrainer(
                *(student(), arguments(tmp_path), CountingTeacher()),
                **{"train_dataset": data, "eval_dataset": data, "data_collator": collator},
            )
            run.train()
            weights.append(run.model.state_dict())
            assert "eval_accuracy" in run.evaluate()
    assert all(torch.equal(value, each[name]) for name, value in weights[0].items() for each in weights[1:])


SAMPLES = {
    "none has a label": ([{"pixel_values": 0.0}] * 8, "the training set's samples have no labels"),
    "some have one": (
        [{"pixel_values": torch.zeros(3, 16, 16), **({"label": 1} if row else {})} for row in range(8)],
        "1 of 8 samples have no labels",
    ),
    "pairs": ([(torch.zeros(3, 16, 16), 1)] * 8, "a sample is a tuple with no keys; give dictionaries"),
    "other keys": ([{"image": 0, "label": 1}] * 8, "a sample is a dict with the keys image, label; give"),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_samples_that_cannot_be_trained_on_are_named(tmp_path, case):
    samples, words = SAMPLES[case]
    run = DistillationTrainer(student(), arguments(tmp_path), CountingTeacher(), train_dataset=samples)
    with pytest.raises(InputError, match=words):
        run.train()


def test_without_a_training_set_the_error_is_trainers(tmp_path):
    with pytest.raises(ValueError, match="training requires a train_dataset"):
        DistillationTrainer(student(), arguments(tmp_path), CountingTeacher()).train()


def test_without_arguments_they_are_the_defaults(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    run = DistillationTrainer(student(), teacher=CountingTeacher(), eval_dataset=Images(4))
    assert run.args.output_dir == "tmp_trainer" and "no args" in caplog.text
    assert "eval_accuracy" in run.evaluate()


def test_model_init_makes_the_student_of_each_training(tmp_path):
    given, made = trainer(tmp_path, student(), CountingTeacher()), []
    given.train()

    def model_init():
        made.append(student())
        return made[-1]

    run = DistillationTrainer(
        None, given.args, CountingTeacher(), train_dataset=given.train_dataset, model_init=model_init
    )
    for _ in range(2):
        run.train()
        assert run.model is made[-1]
        assert all(torch.equal(value, given.model.state_dict()[name]) for name, value in run.model.state_dict().items())


def search(run, **values):
    """A trial of a hyperparameter search, as Trainer's objective for optuna calls it."""
    run.hp_search_backend, run.hp_space = HPSearchBackend.OPTUNA, lambda trial: trial.params
    run.train(trial=SimpleNamespace(number=0, params=values))


def test_a_trial_of_a_search_trains_with_its_values(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "transformers.integrations.hp_params", lambda trial: trial.params
    )  # asks for optuna's own class
    data, names = Images(), ("learning_rate", "distillation_alpha", "label_smoothing_factor")
    run = DistillationTrainer(
        None, arguments(tmp_path), CountingTeacher(), train_dataset=data, model_init=lambda trial: student()
    )
    values = {"learning_rate": 0.5, "distillation_alpha": 0.9, "label_smoothing_factor": 0.0}
    search(run, **values)
    expected = DistillationTrainer(student(), arguments(tmp_path, **values), CountingTeacher(), train_dataset=data)
    expected.train()
    assert {name: getattr(run.args, name) for name in names} == values
    assert all(torch.equal(value, run.model.state_dict()[name]) for name, value in expected.model.state_dict().items())
    with pytest.raises(InputError, match="mixup_alpha was 0.8 when the trainer was made and is 0.2 now"):
        search(run, mixup_alpha=0.2)
    run.args.mixup_alpha, run.args.save_strategy = 0.8, type(run.args.save_strategy)("steps")
    with pytest.raises(InputError, match="a trial keeps no checkpoint and pushes none, but save_strategy is 'steps'"):
        search(run, **values)


def test_a_later_setting_of_the_views_is_refused(tmp_path):
    run = views_trainer(tmp_path, rows(8))
    for name in VIEW_ARGUMENTS:
        before = getattr(run.args, name)
        setattr(run.args, name, 0.125)
        with pytest.raises(InputError, match=f"{name} was .* when the trainer was made and is 0.125 now"):
            run.train()
        setattr(run.args, name, before)


OTHER_VIEWS = [{"horizontal_flip_prob": 0.0}, {"random_crop_scale": [0.5, 1.0]}, {"scaled_decoding": True}]


@pytest.mark.parametrize("asked", [*OTHER_VIEWS, {"data_seed": 3}])
def test_a_training_set_with_other_views_than_the_arguments_is_refused(tmp_path, asked):
    args, (name,) = arguments(tmp_path, **asked), asked
    other = ViewDataset(rows(8), AugmentationSettings(16), seed=42)
    with pytest.raises(InputError, match=rf"{name} is .* in args .*but .* in the training set, .*give both the same"):
        DistillationTrainer(student(), args, CountingTeacher(), train_dataset=other)
    same = ViewDataset(rows(8), AugmentationSettings.from_arguments(args, 16), args.views_seed)
    DistillationTrainer(student(), args, CountingTeacher(), train_dataset=same)


def test_a_stream_with_other_repeats_or_batches_than_the_arguments_is_refused(tmp_path):
    stream = StreamingViewDataset(rows(8).to_iterable_dataset(), AugmentationSettings(16), 8, repeats=1)
    with pytest.raises(InputError, match="repeated_augmentation is 3 in args .*but 1 in the training set"):
        DistillationTrainer(student(), arguments(tmp_path), CountingTeacher(), train_dataset=stream)
    args = arguments(tmp_path, repeated_augmentation=1, per_device_train_batch_size=4)
    with pytest.raises(InputError, match="train_batch_size is 4 in args .*but 8 in the training set"):
        DistillationTrainer(student(), args, CountingTeacher(), train_dataset=stream)
    args = arguments(tmp_path, repeated_augmentation=1, per_device_train_batch_size=8)
    DistillationTrainer(student(), args, CountingTeacher(), train_dataset=stream)


def test_a_teacher_is_asked_about_each_of_several_evaluation_sets(tmp_path):
    sets = {"near": Images(10), "far": Images(6)}
    run = DistillationTrainer(student(), arguments(tmp_path), CountingTeacher(), eval_dataset=sets)
    asked, metrics = run.evaluate_teacher(), run.evaluate()
    for name, data in sets.items():
        teacher = CountingTeacher().eval()(data.pixel_values).logits.argmax(-1)
        ours = run.model.eval()(data.pixel_values).logits.argmax(-1)
        assert asked[f"teacher_{name}_accuracy"] == pytest.approx((teacher == data.labels).float().mean().item())
        assert metrics[f"eval_{name}_teacher_agreement"] == pytest.approx((teacher == ours).float().mean().item())


def test_another_set_of_the_same_labels_is_another_set(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher())
    run.evaluate_teacher()
    other = Images()
    other.pixel_values = -other.pixel_values
    assert "eval_teacher_agreement" not in run.evaluate(other)
    assert "test_teacher_agreement" in run.predict(run.eval_dataset).metrics


def test_a_teacher_cannot_be_right_on_images_without_labels(tmp_path):
    run = DistillationTrainer(student(), arguments(tmp_path), CountingTeacher(), eval_dataset=Renamed(None))
    with pytest.raises(InputError, match="the evaluation set has no labels"):
        run.evaluate_teacher()


def test_arguments_that_trained_can_be_replaced(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher(), max_steps=-1, num_train_epochs=1, warmup_epochs=1)
    run.train()
    again = dataclasses.replace(run.args, seed=3)
    assert (again.seed, again.warmup_epochs, again.warmup_steps) == (3, 1, 0)


def test_a_model_is_saved_by_place_as_transformers_saves_it(tmp_path):
    student().save_pretrained(tmp_path, True)
    assert DeiTDistillForImageClassification.from_pretrained(tmp_path).num_parameters() == student().num_parameters()


def test_the_card_says_what_create_model_card_was_given(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher())
    run.save_model()
    words = {"language": "de", "license": "mit", "tags": "flowers", "tasks": "image-classification"}
    run.create_model_card(**words, finetuned_from="mine/start", dataset_tags=["mine/flowers"])
    run.create_model_card()  # what was said stays
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.language, data.license, data.base_model) == ("de", "mit", "mine/start")
    assert "flowers" in data.tags and "deit" in data.tags and data.datasets == ["mine/flowers"]
    with pytest.raises(InputError, match="tasks is 'text-generation'; the model's task is 'image-classification'"):
        run.create_model_card(tasks="text-generation")
    with pytest.raises(InputError, match="dataset_args has no place"):
        run.create_model_card(dataset_args="train")
    with pytest.raises(TypeError, match="unexpected keyword argument 'licence'"):
        run.create_model_card(licence="mit")
