"""The trainer: what is learned, from whom, and what evaluation says."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.trainers import CLASSES, SETTINGS, CountingTeacher, Images, rows, snapshot, student, trainer, views_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainerCallback

from modeling_deit_distill import (
    DeiTDistillForImageClassification,
    DistillationTrainer,
    DistillationTrainingArguments,
    InputError,
)
from modeling_deit_distill.augmentation.augment import augment, mix_labels
from modeling_deit_distill.data.datasets import collate
from modeling_deit_distill.data.views import View


class Gradients(TrainerCallback):
    """The length of all gradients as one vector, before each step of the optimiser."""

    def __init__(self):
        self.norms = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        squares = [weight.grad.double().square().sum() for weight in model.parameters()]
        self.norms.append(sum(squares).sqrt().item())


def norms_of(run, monkeypatch):
    """Train: the gradients' norms that were logged, those that the optimiser saw, and how often they were unscaled."""
    gradients, unscaled = Gradients(), []
    run.add_callback(gradients)
    monkeypatch.setattr(run.accelerator, "unscale_gradients", lambda *args, **kwargs: unscaled.append(1))
    run.train()
    logged = [entry["grad_norm"] for entry in run.state.log_history if "grad_norm" in entry]
    return logged, gradients.norms, len(unscaled)


def test_the_gradients_norm_is_logged_and_unscaled_once(tmp_path, monkeypatch):
    logged, seen, num_unscaled = norms_of(trainer(tmp_path, teacher=CountingTeacher()), monkeypatch)
    assert len(logged) == num_unscaled == 2
    assert logged == pytest.approx(seen, rel=1e-5)


def test_clipped_gradients_are_logged_as_they_were(tmp_path, monkeypatch):
    run = trainer(tmp_path, teacher=CountingTeacher(), max_grad_norm=0.01)
    logged, seen, num_unscaled = norms_of(run, monkeypatch)
    assert len(logged) == num_unscaled == 2
    assert seen == pytest.approx([0.01] * 2, rel=1e-4) and min(logged) > 0.01


def test_a_steps_operations_are_counted_by_tokens(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher())
    run.model.deit.embeddings.position_embeddings.data = torch.empty(0)  # as a shard may be
    weights = sum(weight.numel() for weight in student().parameters())
    assert run.floating_point_ops(batch(6)) == 6 * 6 * weights * (2 + 4)  # views, 6, weights, tokens


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run of four steps that went on after two, and what its `train` returned."""
    folder = tmp_path_factory.mktemp("resumed")
    trainer(folder, teacher=CountingTeacher(), save_strategy="steps", save_steps=2).train()
    run = trainer(folder, teacher=CountingTeacher(), max_steps=4)
    return run, run.train(resume_from_checkpoint=str(folder / "checkpoint-2"))


def test_operations_are_summed_over_a_resumption(resumed):
    run, _ = resumed
    assert run.state.total_flos == 4 * run.floating_point_ops(batch(8))


def test_the_figures_of_a_resumed_run_are_those_of_the_whole_run(resumed):
    _, result = resumed
    seconds = result.metrics["train_runtime"]
    assert result.metrics["train_steps_per_second"] * seconds == pytest.approx(4, rel=1e-2)
    assert result.metrics["train_samples_per_second"] * seconds == pytest.approx(4 * 8, rel=1e-2)


def batch(size=6):
    samples = [Images()[index] for index in range(size)]
    return {
        "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        "labels": torch.tensor([sample["labels"] for sample in samples]),
    }


def test_two_steps_change_every_student_parameter_and_no_teacher_bit(tmp_path):
    for distillation_type in ("hard", "soft"):
        teacher = CountingTeacher()
        run = trainer(tmp_path, teacher=teacher, distillation_type=distillation_type)
        student_before, teacher_before = snapshot(run.model), snapshot(teacher)
        run.train()
        unchanged = [name for name, value in run.model.state_dict().items() if torch.equal(value, student_before[name])]
        assert unchanged == []
        assert all(torch.equal(value, teacher_before[name]) for name, value in teacher.state_dict().items())
        assert all(parameter.grad is None for parameter in teacher.parameters())
        assert teacher.asked == 2 * 8


def test_the_teacher_is_asked_once_about_the_evaluation_set_and_agreement_uses_its_answers(tmp_path):
    teacher, data = CountingTeacher(), Images()
    run = trainer(tmp_path, teacher=teacher)
    assert "eval_teacher_agreement" not in run.evaluate() and teacher.asked == 0
    results = run.evaluate_teacher()
    assert teacher.asked == len(data)
    with torch.no_grad():
        answers = teacher.net.eval()(data.pixel_values).argmax(-1)
        decisions = run.model.eval()(data.pixel_values).logits.argmax(-1)
    assert results.keys() == {"teacher_accuracy", "teacher_balanced_accuracy", "teacher_macro_f1"}
    assert results["teacher_accuracy"] == pytest.approx((answers == data.labels).float().mean().item())
    metrics = run.evaluate()
    assert metrics["eval_teacher_agreement"] == pytest.approx((answers == decisions).float().mean().item())
    assert teacher.asked == len(data)


@pytest.fixture(scope="module")
def runs_by_kind(tmp_path_factory):
    """A trainer with each number of heads and each kind of distillation; `compute_loss` reads the rest anew."""
    folder = tmp_path_factory.mktemp("kinds")
    return {
        (token, kind): trainer(folder, student(use_distillation_token=token), CountingTeacher(), distillation_type=kind)
        for token in (True, False)
        for kind in ("hard", "soft")
    }


def papers_loss(outputs, labels, answers, kind, alpha, temperature, smoothing):
    """The paper's objective, written out: smoothed cross-entropy, and cross-entropy or Kullback-Leibler divergence."""
    pupil = outputs.cls_logits if outputs.distillation_logits is None else outputs.distillation_logits
    target = (1 - smoothing) * F.one_hot(labels, CLASSES) + smoothing / CLASSES
    label_term = -(target * outputs.cls_logits.log_softmax(-1)).sum(-1).mean()
    if kind == "hard":
        teacher_term = -pupil.log_softmax(-1)[range(len(labels)), answers.argmax(-1)].mean()
    else:
        p = (answers / temperature).softmax(-1)
        divergence = (p * (p.log() - (pupil / temperature).log_softmax(-1))).sum(-1).mean()
        teacher_term = temperature**2 * divergence
    return (1 - alpha) * label_term + alpha * teacher_term


@settings(max_examples=40, deadline=None)
@given(
    token=st.booleans(),
    kind=st.sampled_from(["hard", "soft"]),
    alpha=st.floats(0, 1),
    temperature=st.floats(0.5, 10),
    smoothing=st.floats(0, 0.5),
    size=st.integers(1, 6),
)
def test_the_loss_is_the_papers(runs_by_kind, token, kind, alpha, temperature, smoothing, size):
    run, inputs = runs_by_kind[token, kind], batch(size)
    run.args.distillation_alpha, run.args.distillation_temperature = alpha, temperature
    run.args.label_smoothing_factor = smoothing
    run.model.train()
    outputs, answers = run.model(inputs["pixel_values"]), run.answers.teacher.net(inputs["pixel_values"]).detach()
    expected = papers_loss(outputs, inputs["labels"], answers, kind, alpha, temperature, smoothing)
    torch.testing.assert_close(run.compute_loss(run.model, inputs), expected, rtol=1e-4, atol=1e-5)


def test_without_distillation_the_loss_is_the_label_term_alone(tmp_path):
    run = trainer(tmp_path, student(use_distillation_token=False), distillation_type="none")
    inputs = batch()
    run.model.train()
    expected = F.cross_entropy(run.model(inputs["pixel_values"]).logits, inputs["labels"], label_smoothing=0.1)
    torch.testing.assert_close(run.compute_loss(run.model, inputs), expected)


def test_the_loss_takes_soft_labels(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher(), distillation_alpha=0.0, label_smoothing_factor=0.0)
    inputs = batch()
    inputs["labels"] = 0.5 * F.one_hot(inputs["labels"], CLASSES) + 0.5 * F.one_hot(inputs["labels"].flip(0), CLASSES)
    run.model.train()
    log_probs = run.model(inputs["pixel_values"]).cls_logits.log_softmax(-1)
    torch.testing.assert_close(run.compute_loss(run.model, inputs), -(inputs["labels"] * log_probs).sum(-1).mean())


def test_the_label_term_of_training_alone_is_weighted(tmp_path):
    counts = np.array([1, 1, 2, 2, 4, 8, 10])
    images = rows(28).remove_columns("label").add_column("label", np.repeat(np.arange(7), counts).tolist())
    run = views_trainer(tmp_path, images, class_weights="balanced")
    run.model = student(drop_path_rate=0.0).train()
    inputs, weights = batch(5), torch.tensor(28 / (7 * counts), dtype=torch.float32)
    outputs, answers = run.model(inputs["pixel_values"]), run.answers.teacher.net(inputs["pixel_values"]).argmax(-1)
    target = 0.9 * F.one_hot(inputs["labels"], 7) + 0.1 / 7
    label_term = -(weights * target * outputs.cls_logits.log_softmax(-1)).sum(-1).mean()
    teacher_term = F.cross_entropy(outputs.distillation_logits, answers)
    loss = type(run).compute_loss(run, run.model, inputs)
    torch.testing.assert_close(loss, 0.5 * label_term + 0.5 * teacher_term)
    loss = type(run).compute_loss(run, run.model.eval(), inputs)
    torch.testing.assert_close(loss, F.cross_entropy(outputs.logits, inputs["labels"]))


def test_student_and_teacher_see_the_same_augmented_and_mixed_views(tmp_path):
    run, seen = views_trainer(tmp_path, rows()), {}
    batch = collate(run.train_dataset.__getitems__([View(image, 0, image) for image in range(4)]))
    expected = augment(batch["pixel_values"], batch["draws"], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    run.answers.teacher.register_forward_pre_hook(lambda module, inputs: seen.update(teacher=inputs[0].clone()))
    run.model.register_forward_pre_hook(lambda module, inputs: seen.update(student=inputs[0].clone()))
    run.model.train()
    loss = DistillationTrainer.compute_loss(run, run.model, batch)
    assert torch.equal(seen["teacher"], seen["student"])
    assert torch.equal(seen["student"], expected)
    torch.manual_seed(9)  # the student's own dropped paths
    labels = mix_labels(batch["labels"], batch["draws"].mix_ratio, CLASSES)
    plain = {"pixel_values": expected, "labels": labels}
    assert loss.isfinite() and DistillationTrainer.compute_loss(run, run.model, plain).isfinite()
    assert (labels.sum(dim=1) - 1).abs().max() < 1e-6 and (labels.max(dim=1).values < 1).any()


def test_an_epoch_shows_each_position_once_and_a_third_of_the_images(tmp_path):
    run = views_trainer(tmp_path, rows(26))
    run.train()
    assert run.seen == [(epoch, place) for epoch in range(2) for place in range(24)]
    assert len({view.image for view in run.view_sampler}) == 8


@pytest.fixture(scope="module")
def whole_and_cut(tmp_path_factory):
    """A run of two epochs of six steps, and the folder of the same run with a checkpoint after each step."""
    folder = tmp_path_factory.mktemp("cut")
    whole = views_trainer(folder / "whole", rows(26), eval_strategy="no")
    whole.train()
    views_trainer(folder, rows(26), save_strategy="steps", save_steps=1).train()
    return whole, folder


@pytest.mark.parametrize("stop", [3, 8])  # in the middle of the first and of the second epoch
def test_resuming_goes_on_at_the_right_view_and_decodes_no_skipped_one(whole_and_cut, monkeypatch, stop):
    from modeling_deit_distill.data import datasets as data

    whole, folder = whole_and_cut
    decoded, original = [], data.decode_pixels
    monkeypatch.setattr(data, "decode_pixels", lambda image: decoded.append(image["path"]) or original(image))
    resumed = views_trainer(folder, rows(26))
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{stop}"))
    assert resumed.seen == whole.seen[4 * stop :]
    shown = set()
    for epoch, place in resumed.seen:
        resumed.view_sampler.set_epoch(epoch)
        shown.add(f"{list(resumed.view_sampler)[place].image}.png")
    assert set(decoded) == shown
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_bad_images_are_counted_and_do_not_stop_the_run(tmp_path):
    run = views_trainer(tmp_path, rows(26, bad=(3, 11)), repeated_augmentation=1, max_bad_image_fraction=0.2)
    run.train()
    assert run.seen[-1] == (1, 23)
    assert run.progress.counts()["bad_images"] == 2
    stopping = views_trainer(tmp_path, rows(26, bad=(3, 11)), repeated_augmentation=1, on_bad_image="error")
    with pytest.raises(InputError, match=r"row (3 \(3.png\)|11 \(11.png\)) is a bad image"):
        stopping.train()


def test_an_odd_batch_cannot_be_mixed_in_pairs(tmp_path):
    with pytest.raises(InputError, match="per_device_train_batch_size is 5, which is odd"):
        views_trainer(tmp_path, rows(26), per_device_train_batch_size=5).train()
    views_trainer(tmp_path, rows(26), per_device_train_batch_size=5, mixup_alpha=0, cutmix_alpha=0, max_steps=1).train()


def test_evaluation_mixes_nothing_and_smooths_nothing(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher(), mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing_factor=0.1)
    data = Images()
    with torch.no_grad():
        logits = run.model.eval()(data.pixel_values).logits
    assert run.evaluate()["eval_loss"] == pytest.approx(F.cross_entropy(logits, data.labels).item(), rel=1e-5)


def test_one_times_eight_equals_four_times_two_accumulation(tmp_path):
    weights = []
    for size, steps in ((8, 1), (2, 4)):
        run = trainer(
            tmp_path / str(size),
            teacher=CountingTeacher(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=3,
        )
        result = run.train()
        weights.append((snapshot(run.model), result.training_loss))
    for name, value in weights[0][0].items():
        torch.testing.assert_close(value, weights[1][0][name], rtol=1e-3, atol=2e-5)
    assert weights[0][1] == pytest.approx(weights[1][1], rel=1e-4)


def test_logits_are_the_same_fusion_in_training_and_evaluation(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher())
    inputs = batch()
    _, training = run.compute_loss(run.model.train(), inputs, return_outputs=True)
    _, evaluation = run.compute_loss(run.model.eval(), inputs, return_outputs=True)
    torch.testing.assert_close(training.logits, (training.cls_logits + training.distillation_logits) / 2)
    torch.testing.assert_close(training.logits, evaluation.logits)


def test_the_log_tells_both_terms_and_the_agreement_apart(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher(), logging_steps=2, distillation_alpha=0.25)
    run.train()
    entry = next(entry for entry in run.state.log_history if "loss" in entry)
    assert entry["loss"] == pytest.approx(0.75 * entry["label_loss"] + 0.25 * entry["teacher_loss"], rel=1e-4)
    assert 0.0 <= entry["teacher_agreement"] <= 1.0


def test_accumulated_terms_are_logged_as_means(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher(), per_device_train_batch_size=2, gradient_accumulation_steps=4)
    run.train()
    for entry in run.state.log_history:
        if "loss" in entry:
            assert entry["loss"] == pytest.approx((entry["label_loss"] + entry["teacher_loss"]) / 2, rel=1e-4)


def test_weight_decay_spares_biases_norms_tokens_and_positions(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher())
    decayed = set(run.get_decay_parameter_names(run.model))
    spared = {name for name, _ in run.model.named_parameters()} - decayed
    matrices = {name for name, value in run.model.named_parameters() if value.dim() in (2, 4)}
    assert decayed == matrices
    assert {"deit.embeddings." + name for name in ("cls_token", "distillation_token", "position_embeddings")} < spared
    groups = run.create_optimizer().param_groups
    assert {group["weight_decay"]: len(group["params"]) for group in groups} == {0.05: len(decayed), 0.0: len(spared)}


def test_an_evaluation_counts_every_image_whatever_the_arguments_were_set_to(tmp_path):
    args = DistillationTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, bf16=False)
    args.set_dataloader(eval_batch_size=4, drop_last=True)
    run = DistillationTrainer(student(), args, CountingTeacher(), eval_dataset=Images(10))
    run.evaluate()
    assert len(run.metrics.decisions["labels"]) == 10


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_is_whole_steps_and_evaluation_counts_every_image(tmp_path, drop_last):
    for length, images in ((32, 32), (37, 32), (5, 5)):
        teacher = CountingTeacher()
        settings = {"max_steps": -1, "num_train_epochs": 1, "dataloader_drop_last": drop_last}
        run = trainer(tmp_path, teacher=teacher, length=length, **settings)
        run.train()
        assert teacher.asked == images
        right = (run.model.eval()(Images(length).pixel_values).logits.argmax(-1) == Images(length).labels).sum().item()
        assert run.evaluate()["eval_accuracy"] == pytest.approx(right / length)
        assert len(run.metrics.decisions["labels"]) == length


@pytest.mark.parametrize("average", [{}, {"ema_half_life": 1}])
def test_an_evaluation_in_bf16_leaves_the_weights_in_fp32_with_the_same_bits(tmp_path, average):
    run = trainer(tmp_path, teacher=CountingTeacher(), bf16_full_eval=True, **average)
    run.train()
    before, averaged = snapshot(run.model), dict(run.average.average.weights) if average else {}
    metrics = run.evaluate()
    after = run.model.state_dict()
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert all(torch.equal(value, run.average.average.weights[name]) for name, value in averaged.items())
    assert {f"eval_{name}" for name in ("loss", "accuracy", "accuracy_cls", "top5_accuracy")} <= metrics.keys()
    assert ("eval_ema_accuracy" in metrics) == bool(average)


def evaluated(tmp_path, **arguments):
    """Metrics and decisions about seven images, of which a batch has five; nothing that depends on the clock."""
    run = trainer(tmp_path, teacher=CountingTeacher(), length=7, per_device_eval_batch_size=5, **arguments)
    run.train()
    run.evaluate_teacher()
    metrics = run.evaluate()
    return {name: value for name, value in metrics.items() if "second" not in name and "time" not in name}, run


@pytest.mark.parametrize("average", [{}, {"ema_half_life": 1}])
def test_metrics_and_decisions_are_the_same_batch_by_batch(tmp_path, average):
    expected, whole = evaluated(tmp_path, **average)
    assert "eval_teacher_agreement" in expected and ("eval_ema_loss" in expected) == bool(average)
    for argument in ({"eval_do_concat_batches": False}, {"batch_eval_metrics": True}):
        metrics, run = evaluated(tmp_path, **argument, **average)
        assert metrics == pytest.approx(expected, rel=1e-6)
        assert run.metrics.decisions.keys() == whole.metrics.decisions.keys()
        for name, decided in whole.metrics.decisions.items():
            assert run.metrics.decisions[name].tolist() == decided.tolist()
        assert len(run.metrics.decisions["labels"]) == 7


def test_warm_up_epochs_become_steps(tmp_path):
    run = trainer(
        tmp_path, teacher=CountingTeacher(), max_steps=-1, num_train_epochs=4, warmup_epochs=2, learning_rate=0.8
    )
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
    warm_up, whole = 8, 16  # four steps an epoch
    expected = [0.8 * step / warm_up for step in range(warm_up)]
    expected += [0.4 * (1 + math.cos(math.pi * step / (whole - warm_up))) for step in range(whole - warm_up)]
    assert rates == pytest.approx(expected)


def test_draws_depend_on_the_seed_alone(tmp_path):
    weights = []
    for disturbance in (0, 1000):
        run = views_trainer(tmp_path / str(disturbance), rows(), max_steps=3)
        torch.rand(disturbance)
        np.random.rand(disturbance)
        run.train()
        weights.append(snapshot(run.model))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_teacher_is_not_saved(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher())
    run.save_model()
    loaded = DeiTDistillForImageClassification.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == student().state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in run.model.state_dict().items())


def test_contradictions_are_refused(tmp_path):
    for kind, token, teacher, words in (
        ("none", True, None, "'none' but use_distillation_token is true"),
        ("none", False, CountingTeacher(), "'none' but a teacher was given"),
        ("hard", True, None, "'hard' but there is no teacher; give --teacher_name_or_path"),
    ):
        with pytest.raises(InputError, match=words):
            trainer(tmp_path, student(use_distillation_token=token), teacher, distillation_type=kind)


def test_several_classes_at_once_are_refused(tmp_path):
    with pytest.raises(InputError, match="problem_type is 'multi_label_classification'"):
        trainer(tmp_path, student(problem_type="multi_label_classification"), CountingTeacher())


def test_a_teacher_of_another_number_of_classes_is_refused(tmp_path):
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, CLASSES - 2))
    with pytest.raises(InputError, match="the teacher has 5 classes, the student 7"):
        trainer(tmp_path, teacher=teacher).train()


def test_agreement_is_measured_on_the_set_that_the_teacher_was_asked_about_alone(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher())
    run.evaluate_teacher()
    other = Images()
    other.labels = other.labels.roll(1)
    assert "eval_teacher_agreement" in run.evaluate()
    assert "eval_teacher_agreement" not in run.evaluate(other)


def test_a_users_own_metrics_see_logits(tmp_path):
    run = DistillationTrainer(
        student(),
        DistillationTrainingArguments(output_dir=str(tmp_path), **SETTINGS),
        CountingTeacher(),
        eval_dataset=Images(),
        compute_metrics=lambda evaluated: {"width": evaluated.predictions[0].shape[-1]},
    )
    assert run.evaluate()["eval_width"] == CLASSES


@pytest.mark.slow
def test_a_compiled_run_is_one_graph_without_recompiling(tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    run = trainer(tmp_path, student(drop_path_rate=0.2), CountingTeacher(), max_steps=5, **compiled)
    run.train()
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
