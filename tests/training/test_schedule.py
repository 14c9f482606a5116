"""The learning rate at every step, by the paper's rule and by the public code's, and what else that code does."""

import logging
import math

import pytest
import torch
from helpers import trainers
from helpers.paths import ROOT
from helpers.trainers import CountingTeacher, student
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from modeling_deit_distill import (
    DeiTDistillConfig,
    DistillationTrainingArguments,
    InputError,
    report,
    soft_distillation_loss,
)
from modeling_deit_distill.data.views import ViewSampler
from modeling_deit_distill.recipes import parse_arguments
from modeling_deit_distill.summary import average_in_words, code_in_words
from modeling_deit_distill.training.schedule import learning_rate_at, schedule, schedule_in_words, share_of_peak

RECIPES = ROOT / "examples" / "recipes"
IMAGENET_RECIPES = sorted(RECIPES.glob("imagenet_*.yaml"))
IMAGENET = 1_281_167


def trainer(*args, **settings):
    """Rates and weights are compared to the bit, so the precision is the same on every machine."""
    return trainers.trainer(*args, **{"bf16": False, **settings})


@pytest.fixture
def processes(monkeypatch):
    """`processes(n)`: from now on the arguments believe that n processes train."""

    def set_number(number):
        monkeypatch.setattr(DistillationTrainingArguments, "world_size", property(lambda self: number))

    return set_number


def rates_of(args, num_images):
    """Steps of an epoch, and the learning rate as a function of the step."""
    sampler = ViewSampler(num_images, args.effective_batch_size, args.repeated_augmentation)
    steps = len(sampler) // args.effective_batch_size
    args.warmup_steps = round(args.warmup_epochs * steps)  # as the trainer does
    share = schedule(args, int(args.num_train_epochs * steps), steps)
    return steps, lambda step: args.learning_rate * share(step)


def recipes_in_batches_of_1024(processes):
    """The ImageNet recipes, each on one, eight and sixteen processes, as words of a command line."""
    for number, accumulation, per_device in [(1, 8, 128), (8, 1, 128), (16, 1, 64)]:
        processes(number)
        for path in IMAGENET_RECIPES:
            words = ["--gradient_accumulation_steps", str(accumulation)]
            yield [str(path), *words, "--per_device_train_batch_size", str(per_device)]


def test_the_imagenet_recipes_follow_the_papers_rule(processes):
    for words in recipes_in_batches_of_1024(processes):
        assert_the_papers_rule(*rates_of(parse_arguments(words)[2], IMAGENET))


def assert_the_papers_rule(steps, rate):
    assert steps == 1251  # 1,281,024 of 1,281,167 images, 1,024 at a time
    assert rate(0) == 0.0
    assert rate(1) == pytest.approx(1e-3 / 6255)
    assert rate(1251) == pytest.approx(2e-4)  # a fifth of the warm-up
    assert rate(1252) == pytest.approx(2e-4 + 1e-3 / 6255)  # at every step
    assert rate(6255) == pytest.approx(1e-3)  # five epochs: 5e-4 × 1,024 / 512
    assert rate(6255 + 369_045 // 3) == pytest.approx(0.75e-3)  # a third of the cosine: (1 + cos 60°) / 2
    assert rate(6255 + 2 * 369_045 // 3) == pytest.approx(0.25e-3)
    assert 0 < rate(375_299) < 1e-13  # of 375,300 steps the last
    assert rate(375_300) == 0.0


def test_the_imagenet_recipes_follow_the_public_codes_rule_if_asked(processes):
    expected = {
        0: 1e-6,
        1: 2.008e-4,  # 1e-6 + (1e-3 - 1e-6) / 5
        4: 8.002e-4,
        5: 1e-5 + 9.9e-4 * (1 + math.cos(math.pi / 60)) / 2,  # the cosine has run for five epochs already
        100: 7.525e-4,  # 1e-5 + 3/4 × 9.9e-4
        150: 5.05e-4,
        200: 2.575e-4,
        299: 1e-5 + 9.9e-4 * (1 - math.cos(math.pi / 300)) / 2,
        300: 1e-5,
    }
    for words in recipes_in_batches_of_1024(processes):
        args = parse_arguments([*words, "--code_compatible", "true"])[2]
        steps, rate = rates_of(args, IMAGENET)
        for epoch, value in expected.items():
            assert rate(epoch * steps) == pytest.approx(value, rel=1e-9), (words, epoch)
            assert rate(epoch * steps + steps - 1) == rate(epoch * steps)  # the same throughout the epoch


@pytest.mark.parametrize(("number", "steps", "peak"), [(1, 10_009, 1.25e-4), (8, 1251, 1e-3), (16, 625, 2e-3)])
def test_the_peak_grows_with_the_processes_and_the_floors_do_not(processes, number, steps, peak):
    processes(number)  # of 128 images each
    args = parse_arguments([str(RECIPES / "imagenet_deit_base.yaml"), "--code_compatible", "true"])[2]
    found, rate = rates_of(args, IMAGENET)
    assert found == steps and args.learning_rate == pytest.approx(peak)
    assert (rate(0), rate(300 * steps)) == (pytest.approx(1e-6), pytest.approx(1e-5))
    assert rate(150 * steps) == pytest.approx((peak + 1e-5) / 2)


@pytest.mark.parametrize("number", [1, 8, 16])
def test_the_other_recipes_rates(processes, number):
    processes(number)
    fine = ["--gradient_accumulation_steps", str(32 // number)]
    steps, rate = rates_of(parse_arguments([str(RECIPES / "finetune_384.yaml"), *fine])[2], IMAGENET)
    assert steps == 2502
    assert [rate(step) for step in (0, 2502, 12_510, 40_000, 75_059)] == pytest.approx([0, 1e-6, 5e-6, 5e-6, 5e-6])
    fine += ["--code_compatible", "true"]
    _, rate = rates_of(parse_arguments([str(RECIPES / "finetune_384.yaml"), *fine])[2], IMAGENET)
    # 1e-6 + (5e-6 - 1e-6) / 5 in the second epoch; no minimum pulls a constant rate up to 1e-5.
    assert [rate(step) for step in (0, 2502, 12_510, 75_059)] == pytest.approx([1e-6, 1.8e-6, 5e-6, 5e-6])
    for name, peak in (("digits", 2e-3), ("finetune_own_images", 1e-4), ("transfer_cifar10", 0.01)):
        steps, rate = rates_of(parse_arguments([str(RECIPES / f"{name}.yaml")])[2], 50_000)
        assert max(rate(step) for step in range(8 * steps)) == pytest.approx(peak)  # taken as it is, not scaled


@pytest.mark.parametrize(("peak", "warmup"), [(1e-3, 5), (2e-3, 20), (1e-3, 0)])
def test_the_public_codes_rule_is_timms(peak, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    timm = CosineLRScheduler(optimizer, 300, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6, t_in_epochs=True)
    rule = {"num_steps": 2100, "num_warmup_steps": 7 * warmup, "steps_per_epoch": 7}
    for epoch in range(301):
        timm.step(epoch)
        ours = learning_rate_at(7 * epoch + 3, peak=peak, warmup_learning_rate=1e-6, min_learning_rate=1e-5, **rule)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def rates_of_lambda(make, peak=7.3e-4, steps=60):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler, rates = make(optimizer), []
    for _ in range(steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("warmup", [0, 7])
def test_the_papers_rule_is_transformers_to_the_bit(warmup):
    def ours(**rule):
        given = {"peak": 7.3e-4, "num_steps": 60, "num_warmup_steps": warmup, **rule}
        return lambda optimizer: LambdaLR(optimizer, lambda step: share_of_peak(step, **given))

    cosine = rates_of_lambda(lambda optimizer: get_cosine_schedule_with_warmup(optimizer, warmup, 60))
    assert rates_of_lambda(ours()) == cosine
    constant = rates_of_lambda(lambda optimizer: get_constant_schedule_with_warmup(optimizer, warmup))
    assert rates_of_lambda(ours(is_constant=True)) == constant


def test_floors_that_are_given_hold_at_every_step():
    rule = {"peak": 1.0, "num_steps": 14, "num_warmup_steps": 4, "warmup_learning_rate": 0.2, "min_learning_rate": 0.1}
    found = [learning_rate_at(step, **rule) for step in range(16)]
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[9] == pytest.approx(0.55)  # half way down: 0.1 + 0.9 / 2
    assert found[14:] == pytest.approx([0.1, 0.1])  # and no way up again behind the end


def logged_rates(run):
    return [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]


LENGTH = {"max_steps": -1, "num_train_epochs": 5, "warmup_epochs": 2, "learning_rate": 0.5}


def test_the_trainer_changes_the_rate_between_epochs_and_resumes_it(tmp_path):
    settings = {**LENGTH, "code_compatible": True, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    settings |= {"save_strategy": "steps", "save_steps": 7}
    run = trainer(tmp_path / "whole", teacher=CountingTeacher(), **settings)
    run.train()
    cosines = [(1e-5 + (0.5 - 1e-5) * (1 + math.cos(math.pi * epoch / 5)) / 2) for epoch in (2, 3, 4)]
    expected = [rate for rate in (1e-6, (1e-6 + 0.5) / 2, *cosines) for _ in range(4)]  # 32 images, 8 a step
    assert logged_rates(run) == pytest.approx(expected, rel=1e-9)
    again = trainer(tmp_path / "whole", teacher=CountingTeacher(), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    assert logged_rates(again) == logged_rates(run)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_the_trainer_takes_floors_without_the_rest(tmp_path):
    floors = {"warmup_learning_rate": 0.1, "min_learning_rate": 0.05}
    run = trainer(tmp_path, teacher=CountingTeacher(), **LENGTH, **floors)
    run.train()
    rates = logged_rates(run)
    assert rates[:3] == pytest.approx([0.1, 0.15, 0.2]) and rates[8] == pytest.approx(0.5)
    assert rates[14] == pytest.approx(0.05 + 0.45 / 2)  # half of the twelve steps that follow the warm-up
    assert rates[19] == pytest.approx(0.05 + 0.45 * (1 - math.cos(math.pi / 12)) / 2)


def test_schedules_of_transformers_alone_are_left_to_it(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher(), max_steps=4, lr_scheduler_type="linear", learning_rate=0.4)
    run.train()
    assert logged_rates(run) == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_a_scheduler_made_before_training_has_the_same_rates(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher(), **LENGTH)
    run.create_optimizer_and_scheduler(num_training_steps=20)
    run.train()
    rates = logged_rates(run)
    assert rates[:3] == pytest.approx([0.0, 0.0625, 0.125]) and rates[8] == pytest.approx(0.5)


def test_a_warm_up_longer_than_the_run_is_said_before_training(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(report, "_said", set())
    run = trainer(tmp_path, teacher=CountingTeacher(), max_steps=1, warmup_epochs=5)
    with caplog.at_level(logging.WARNING):
        run.train()
    assert "the warm-up takes 20 steps but the run has 1" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, length=8, teacher=CountingTeacher(), max_steps=1, warmup_epochs=1).train()
    assert "warm-up" not in caplog.text


def test_rates_that_make_no_sense_are_refused(tmp_path):
    for arguments, words in [
        ({"min_learning_rate": 1e-2}, ["min_learning_rate 0.01", "0.001"]),
        ({"warmup_learning_rate": 1e-2, "warmup_steps": 5}, ["warmup_learning_rate 0.01", "0.001"]),
        (
            {"code_compatible": True, "learning_rate": 5e-6},
            ["min_learning_rate 1e-05", "5e-06", "constant_with_warmup"],
        ),
        ({"code_compatible": True, "lr_scheduler_type": "linear"}, ["code_compatible", "'linear'", "cosine"]),
        ({"min_learning_rate": 1e-5, "lr_scheduler_kwargs": {"num_cycles": 1}}, ["min_learning_rate", "kwargs"]),
    ]:
        with pytest.raises(InputError) as caught:
            DistillationTrainingArguments(**{"output_dir": str(tmp_path), "learning_rate": 1e-3, **arguments})
        assert [word for word in words if word not in str(caught.value)] == [], arguments


def test_the_summary_says_the_schedule(tmp_path):
    for arguments, words in [
        ({"warmup_epochs": 5}, "cosine, 5 warm-up epochs"),
        ({}, "cosine, 0 warm-up epochs"),
        ({"warmup_steps": 20, "min_learning_rate": 1e-5}, "cosine to 1e-05, 20 warm-up steps"),
        (
            {"warmup_epochs": 5, "code_compatible": True},
            "cosine to 1e-05, 5 warm-up epochs from 1e-06, changed between epochs",
        ),
        (
            {"warmup_epochs": 5, "lr_scheduler_type": "constant_with_warmup"},
            "constant_with_warmup, 5 warm-up epochs",
        ),
    ]:
        args = DistillationTrainingArguments(output_dir=str(tmp_path), learning_rate=1e-3, **arguments)
        assert schedule_in_words(args) == words
        assert average_in_words(args) == {}


@pytest.mark.parametrize(
    ("kind", "token", "words"),
    [
        ("soft", True, "learning-rate schedule, divergence also divided by the classes, distillation token decayed"),
        ("hard", False, "learning-rate schedule"),
    ],
)
def test_the_summary_says_what_is_done_as_the_public_code_does(tmp_path, kind, token, words):
    config = DeiTDistillConfig(use_distillation_token=token)
    given = {"output_dir": str(tmp_path), "distillation_type": kind, "learning_rate": 1e-3}
    assert code_in_words(DistillationTrainingArguments(**given, code_compatible=True), config) == {
        "as the public code": words
    }
    assert code_in_words(DistillationTrainingArguments(**given), config) == {}


# --- what else the public code does -----------------------------------------------------------------------------------


def test_the_public_code_divides_the_divergence_by_the_classes_too():
    # Teacher (1/4, 3/4), student (1/2, 1/2): ¼ ln ½ + ¾ ln 3/2.
    teacher, pupil = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
    divergence = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert soft_distillation_loss(pupil, teacher, 1.0).item() == pytest.approx(divergence)
    assert soft_distillation_loss(pupil, teacher, 1.0, code_compatible=True).item() == pytest.approx(divergence / 2)
    pupil, teacher = torch.randn(6, 10), torch.randn(6, 10)
    paper = soft_distillation_loss(pupil, teacher, 3.0)
    torch.testing.assert_close(soft_distillation_loss(pupil, teacher, 3.0, code_compatible=True), paper / 10)


def test_the_trainer_passes_that_on_and_leaves_weight_and_temperature(tmp_path):
    terms = []
    for code_compatible in (False, True):
        settings = {"distillation_type": "soft", "code_compatible": code_compatible, "max_steps": 1}
        run = trainer(tmp_path, teacher=CountingTeacher(), **settings)
        assert (run.args.distillation_alpha, run.args.distillation_temperature) == (0.1, 3.0)
        run.train()
        terms.append(next(entry["teacher_loss"] for entry in run.state.log_history if "loss" in entry))
    assert terms[0] == pytest.approx(7 * terms[1], rel=1e-5)  # classes


@pytest.mark.parametrize("code_compatible", [False, True])
def test_the_public_code_decays_the_distillation_token(tmp_path, code_compatible):
    run = trainer(tmp_path, student(), CountingTeacher(), code_compatible=code_compatible)
    decayed = run.get_decay_parameter_names(run.model)
    assert ("deit.embeddings.distillation_token" in decayed) == code_compatible
    assert not {"deit.embeddings.cls_token", "deit.embeddings.position_embeddings"} & set(decayed)


def test_gradients_are_clipped_and_losses_hidden_only_if_asked(tmp_path, monkeypatch):
    run, norms = trainer(tmp_path, teacher=CountingTeacher()), []
    assert not run.args.logging_nan_inf_filter
    measure = run.accelerator.clip_grad_norm_
    monkeypatch.setattr(
        run.accelerator,
        "clip_grad_norm_",
        lambda weights, norm, **kw: norms.append(norm) or measure(weights, norm, **kw),
    )
    run.train()
    assert not norms
    run = trainer(tmp_path, teacher=CountingTeacher(), max_grad_norm=2.5, max_steps=1)
    clip = run.accelerator.clip_grad_norm_
    monkeypatch.setattr(
        run.accelerator, "clip_grad_norm_", lambda weights, norm, **kw: norms.append(norm) or clip(weights, norm, **kw)
    )
    run.train()
    assert norms == [2.5]
