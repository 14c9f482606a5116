"""The trainer: what is learned, from whom, and what evaluation says."""

import io
import math
from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from modeling_deit_distill import (
    DeiTDistillConfig,
    DeiTDistillForImageClassification,
    DistillationTrainer,
    DistillationTrainingArguments,
    InputError,
)
from modeling_deit_distill.augmentation import augment, mix_labels
from modeling_deit_distill.data import ViewDataset, collate
from modeling_deit_distill.views import AugmentationSettings, View

CLASSES = 7


class Images(torch.utils.data.Dataset):
    """Fixed random images with fixed labels."""

    def __init__(self, length=32):
        generator = torch.Generator().manual_seed(1)
        self.pixel_values = torch.randn(length, 3, 16, 16, generator=generator)
        self.labels = torch.randint(CLASSES, (length,), generator=generator)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixel_values[index], "labels": int(self.labels[index])}


class CountingTeacher(torch.nn.Module):
    """A convnet with batch statistics and dropout, so that a mistake in freezing shows; counts the images it sees."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 4, 4),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.5),
            torch.nn.Flatten(),
            torch.nn.Linear(8 * 16, CLASSES),
        )
        self.asked = 0

    def forward(self, pixel_values):
        self.asked += len(pixel_values)
        return SimpleNamespace(logits=self.net(pixel_values))


def student(**overrides):
    torch.manual_seed(3)
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    settings |= {"image_size": 16, "patch_size": 8, "num_labels": CLASSES, "drop_path_rate": 0.0}
    return DeiTDistillForImageClassification(DeiTDistillConfig(**{**settings, **overrides}))


def trainer(tmp_path, model=None, teacher=None, length=32, **arguments):
    settings = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    settings |= {"per_device_train_batch_size": 8, "max_steps": 2, "save_strategy": "no", "learning_rate": 1e-2}
    settings |= {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "logging_steps": 1}
    args = DistillationTrainingArguments(**{**settings, **arguments})
    data = Images(length)
    return DistillationTrainer(model or student(), args, teacher, train_dataset=data, eval_dataset=data)


def rows(length=64, bad=()):
    """Encoded random images with labels; those in `bad` cannot be read."""
    draws, encoded = np.random.default_rng(4), []
    for row in range(length):
        buffer = io.BytesIO()
        PIL.Image.fromarray(draws.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
        encoded.append({"bytes": b"no image" if row in bad else buffer.getvalue(), "path": f"{row}.png"})
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(CLASSES)})
    labels = draws.integers(CLASSES, size=length).tolist()
    return datasets.Dataset.from_dict({"image": encoded, "label": labels}, features=features)


def views_trainer(tmp_path, rows, **arguments):
    """A trainer on views, with what `compute_loss` was given kept under `seen`."""
    settings = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    settings |= {"per_device_train_batch_size": 4, "num_train_epochs": 2, "save_strategy": "no", "learning_rate": 1e-2}
    args = DistillationTrainingArguments(**{**settings, **arguments})
    views = AugmentationSettings(16, mixup_alpha=args.mixup_alpha, cutmix_alpha=args.cutmix_alpha)
    dataset = ViewDataset(rows, views, args.seed)
    run = DistillationTrainer(student(drop_path_rate=0.2), args, CountingTeacher(), train_dataset=dataset)
    run.seen = []
    original = run.compute_loss

    def remember(model, inputs, **kwargs):
        run.seen += [(int(epoch), int(place)) for epoch, place in zip(inputs["epoch"], inputs["position"], strict=True)]
        return original(model, inputs, **kwargs)

    run.compute_loss = remember
    return run


class Gradients(TrainerCallback):
    """The length of all gradients as one vector, before each step of the optimiser."""

    def __init__(self):
        self.norms = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        squares = [weight.grad.double().square().sum() for weight in model.parameters()]
        self.norms.append(sum(squares).sqrt().item())


@pytest.mark.parametrize("clipped", [{}, {"max_grad_norm": 0.01}])
def test_the_gradients_norm_is_logged_and_unscaled_once(tmp_path, monkeypatch, clipped):
    run, gradients, unscaled = trainer(tmp_path, teacher=CountingTeacher(), **clipped), Gradients(), []
    run.add_callback(gradients)
    monkeypatch.setattr(run.accelerator, "unscale_gradients", lambda *args, **kwargs: unscaled.append(1))
    run.train()
    logged = [entry["grad_norm"] for entry in run.state.log_history if "grad_norm" in entry]
    assert len(logged) == len(gradients.norms) == len(unscaled) == 2
    if clipped:
        assert gradients.norms == pytest.approx([0.01] * 2, rel=1e-4) and min(logged) > 0.01
    else:
        assert logged == pytest.approx(gradients.norms, rel=1e-5)


def test_a_steps_operations_are_counted_by_tokens(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher())
    run.model.deit.embeddings.position_embeddings.data = torch.empty(0)  # as a shard may be
    weights = sum(weight.numel() for weight in student().parameters())
    assert run.floating_point_ops(batch(6)) == 6 * 6 * weights * (2 + 4)  # views, 6, weights, tokens


def test_operations_are_summed_over_a_resumption(tmp_path):
    alone = trainer(tmp_path / "alone", teacher=CountingTeacher(), max_steps=4)
    alone.train()
    trainer(tmp_path / "run", teacher=CountingTeacher(), save_strategy="steps", save_steps=2).train()
    resumed = trainer(tmp_path / "run", teacher=CountingTeacher(), max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.state.total_flos == alone.state.total_flos == 4 * alone.floating_point_ops(batch(8))


def snapshot(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def batch(size=6):
    samples = [Images()[index] for index in range(size)]
    return {
        "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        "labels": torch.tensor([sample["labels"] for sample in samples]),
    }


@pytest.mark.parametrize("distillation_type", ["hard", "soft"])
def test_two_steps_change_every_student_parameter_and_no_teacher_bit(tmp_path, distillation_type):
    teacher = CountingTeacher()
    run = trainer(tmp_path, teacher=teacher, distillation_type=distillation_type)
    student_before, teacher_before = snapshot(run.model), snapshot(teacher)
    run.train()
    unchanged = [name for name, value in run.model.state_dict().items() if torch.equal(value, student_before[name])]
    assert unchanged == []
    assert all(torch.equal(value, teacher_before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert teacher.asked == 2 * 8


def test_evaluation_never_asks_the_teacher(tmp_path):
    teacher = CountingTeacher()
    run = trainer(tmp_path, teacher=teacher)
    metrics = run.evaluate()
    assert teacher.asked == 0
    assert "eval_teacher_agreement" not in metrics


def test_the_teacher_is_asked_once_about_the_evaluation_set_and_agreement_uses_its_answers(tmp_path):
    teacher, data = CountingTeacher(), Images()
    run = trainer(tmp_path, teacher=teacher)
    results = run.evaluate_teacher()
    assert teacher.asked == len(data)
    with torch.no_grad():
        answers = teacher.net.eval()(data.pixel_values).argmax(-1)
        decisions = run.model.eval()(data.pixel_values).logits.argmax(-1)
    assert results == {"teacher_accuracy": pytest.approx((answers == data.labels).float().mean().item())}
    metrics = run.evaluate()
    assert metrics["eval_teacher_agreement"] == pytest.approx((answers == decisions).float().mean().item())
    assert teacher.asked == len(data)


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("distillation_type", ["hard", "soft"])
def test_the_loss_is_the_papers(tmp_path, token, distillation_type):
    teacher = CountingTeacher()
    run = trainer(
        tmp_path,
        student(use_distillation_token=token),
        teacher,
        distillation_type=distillation_type,
        distillation_alpha=0.3,
        distillation_temperature=2.0,
        label_smoothing_factor=0.1,
    )
    inputs = batch()
    run.model.train()
    loss = run.compute_loss(run.model, inputs)
    outputs = run.model(inputs["pixel_values"])
    pupil = outputs.distillation_logits if token else outputs.cls_logits
    answers = teacher.net(inputs["pixel_values"]).detach()
    log_probs = outputs.cls_logits.log_softmax(-1)
    target = 0.9 * F.one_hot(inputs["labels"], CLASSES) + 0.1 / CLASSES
    label_term = -(target * log_probs).sum(-1).mean()
    if distillation_type == "hard":
        teacher_term = -pupil.log_softmax(-1)[range(6), answers.argmax(-1)].mean()
    else:
        p = (answers / 2).softmax(-1)
        teacher_term = 4 * (p * (p.log() - (pupil / 2).log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(loss, 0.7 * label_term + 0.3 * teacher_term)


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


def test_student_and_teacher_see_the_same_augmented_and_mixed_views(tmp_path):
    run, seen = views_trainer(tmp_path, rows()), {}
    batch = collate(run.train_dataset.__getitems__([View(image, 0, image) for image in range(4)]))
    expected = augment(batch["pixel_values"], batch["draws"], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    run.teacher.register_forward_pre_hook(lambda module, inputs: seen.update(teacher=inputs[0].clone()))
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


@pytest.mark.parametrize("stop", [3, 8])  # in the middle of the first and of the second epoch of 6 steps
def test_resuming_goes_on_at_the_right_view_and_decodes_no_skipped_one(tmp_path, monkeypatch, stop):
    from modeling_deit_distill import data

    whole = views_trainer(tmp_path / "whole", rows(26), eval_strategy="no")
    whole.train()
    first = views_trainer(tmp_path / "cut", rows(26), save_strategy="steps", save_steps=stop)
    first.train()
    decoded, original = [], data.decode_pixels
    monkeypatch.setattr(data, "decode_pixels", lambda image: decoded.append(image["path"]) or original(image))
    resumed = views_trainer(tmp_path / "cut", rows(26))
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{stop}"))
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
    assert run.count_bad_images() == 2
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


@pytest.mark.parametrize(("length", "images"), [(32, 32), (37, 32), (5, 5)])
def test_an_epoch_is_whole_steps_and_evaluation_counts_every_image(tmp_path, length, images):
    teacher = CountingTeacher()
    run = trainer(tmp_path, teacher=teacher, length=length, max_steps=-1, num_train_epochs=1)
    run.train()
    assert teacher.asked == images
    right = (run.model.eval()(Images(length).pixel_values).logits.argmax(-1) == Images(length).labels).sum().item()
    assert run.evaluate()["eval_accuracy"] == pytest.approx(right / length)


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


@pytest.mark.parametrize(
    ("arguments", "token", "teacher", "words"),
    [
        ({"distillation_type": "none"}, True, None, ["none", "use_distillation_token"]),
        ({"distillation_type": "none"}, False, CountingTeacher(), ["none", "teacher"]),
        ({"distillation_type": "hard"}, True, None, ["hard", "teacher_name_or_path"]),
    ],
)
def test_contradictions_are_refused(tmp_path, arguments, token, teacher, words):
    with pytest.raises(InputError) as caught:
        trainer(tmp_path, student(use_distillation_token=token), teacher, **arguments)
    assert all(word in str(caught.value) for word in words)


def test_several_classes_at_once_are_refused(tmp_path):
    with pytest.raises(InputError, match="problem_type is 'multi_label_classification'"):
        trainer(tmp_path, student(problem_type="multi_label_classification"), CountingTeacher())


def test_a_teacher_of_another_number_of_classes_is_refused(tmp_path):
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, CLASSES - 2))
    with pytest.raises(InputError, match="the teacher has 5 classes, the student 7"):
        trainer(tmp_path, teacher=teacher).train()


def test_agreement_is_told_for_the_set_that_the_teacher_was_asked_about_alone(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher())
    run.evaluate_teacher()
    other = Images()
    other.labels = other.labels.roll(1)
    assert "eval_teacher_agreement" in run.evaluate()
    assert "eval_teacher_agreement" not in run.evaluate(other)


def test_a_users_own_metrics_see_logits(tmp_path):
    settings = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    run = DistillationTrainer(
        student(),
        DistillationTrainingArguments(**settings),
        CountingTeacher(),
        eval_dataset=Images(),
        compute_metrics=lambda evaluated: {"width": evaluated.predictions[0].shape[-1]},
    )
    assert run.evaluate()["eval_width"] == CLASSES


def test_a_compiled_run_is_one_graph_without_recompiling(tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    run = trainer(tmp_path, student(drop_path_rate=0.2), CountingTeacher(), max_steps=5, **compiled)
    run.train()
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
