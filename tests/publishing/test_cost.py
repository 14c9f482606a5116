"""What an answer costs: of student and teacher, or of the student alone."""

import torch
from helpers.teachers import SMALL
from transformers import ResNetConfig, ResNetForImageClassification

from modeling_deit_distill.publishing import cost
from modeling_deit_distill.publishing.cost import measure_costs
from modeling_deit_distill.teachers.ensemble import Ensemble
from modeling_deit_distill.teachers.teacher import InputView, Teacher


def test_student_and_teacher_answer_one_image_at_a_time_at_their_own_size(tiny_model, tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path)
    model = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=3))
    teacher, shapes, forward = Teacher(model, InputView(40), InputView(32)), set(), model.forward

    def seen(pixel_values):
        shapes.add(tuple(pixel_values.shape))
        return forward(pixel_values=pixel_values)

    monkeypatch.setattr(model, "forward", seen)
    costs = measure_costs(tmp_path, teacher, torch.device("cpu"))
    assert costs.keys() == {"milliseconds_per_image", "teacher_milliseconds_per_image", "teacher_num_parameters"}
    assert costs["teacher_num_parameters"] == sum(weights.numel() for weights in model.parameters())
    assert shapes == {(1, 3, 40, 40)}  # its own size, whatever it was shown in training
    assert min(costs.values()) > 0


def test_the_fastest_round_counts(monkeypatch):
    """Another program makes a round slower, never faster; by hand: 2 and 5 ms at best."""
    clock, taken = [0.0], {"fast": iter([9, 3, 2, 40] * 20), "slow": iter([900, 5, 7, 6] * 20)}

    def pass_time(name):
        clock[0] += next(taken[name]) / 1000

    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    calls = [lambda: pass_time("fast"), lambda: pass_time("slow")]
    assert cost._milliseconds(calls, torch.device("cpu")) == [2.0, 5.0]


def test_several_teachers_cost_the_sum(tiny_model, tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path)
    models = [ResNetForImageClassification(ResNetConfig(**SMALL, num_labels=labels)) for labels in (3, 5)]
    members = [Teacher(model, InputView(size), InputView(32)) for model, size in zip(models, (40, 48), strict=True)]
    monkeypatch.setattr("modeling_deit_distill.publishing.cost._milliseconds", lambda calls, device: [1.5, 2.25, 4.0])
    assert measure_costs(tmp_path, Ensemble(members), torch.device("cpu")) == {
        "milliseconds_per_image": 1.5,
        "teacher_milliseconds_per_image": 6.25,
        "teacher_num_parameters": sum(weights.numel() for model in models for weights in model.parameters()),
    }


def test_a_teacher_that_is_not_there_costs_nothing_known(tiny_model, tmp_path):
    tiny_model(image_size=(16, 32)).save_pretrained(tmp_path)
    assert measure_costs(tmp_path, None, torch.device("cpu")).keys() == {"milliseconds_per_image"}
