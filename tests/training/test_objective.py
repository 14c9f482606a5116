"""The terms of the objective and their sum, where views are labelled, not labelled, or mixed of both."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_deit_distill.augmentation.augment import mix_labels
from modeling_deit_distill.data.columns import NO_LABEL
from modeling_deit_distill.training.objective import objective_terms, total_loss

LN2, LN3 = math.log(2), math.log(3)


def settings(kind="hard", **changes):
    args = {"distillation_type": kind, "label_smoothing_factor": 0.0, "distillation_temperature": 1.0}
    return SimpleNamespace(**{**args, "code_compatible": False, "distillation_alpha": 0.25, **changes})


def heads(cls, distillation):
    return SimpleNamespace(cls_logits=cls, distillation_logits=distillation)


def test_a_mixed_pair_of_a_labelled_and_an_unlabelled_image_by_hand():
    # λ = 0.75; the first view's own image is of class 1, the second's has no label. Class head (3/4, 1/4) for the first
    # and (1/2, 1/2) for the second, the distillation head the other way round. The teacher says class 0 of the first
    # mixed view and class 1 of the second.
    labels = mix_labels(torch.tensor([1, NO_LABEL]), np.array([0.75], dtype=np.float32), 2, has_unlabelled=True)
    one, other = torch.tensor([LN3, 0.0]), torch.zeros(2)
    outputs = heads(torch.stack([one, other]), torch.stack([other, one]))
    terms = objective_terms(outputs, labels, torch.tensor([0, 1]), settings(), labelled=labels.sum(-1))
    # 0.75 of -ln 1/4 and 0.25 of -ln 1/2; -ln 1/2 and -ln 1/4; each over two views.
    assert terms["label_loss"].item() == pytest.approx((0.75 * 2 * LN2 + 0.25 * LN2) / 2, abs=1e-6)
    assert terms["teacher_loss"].item() == pytest.approx((LN2 + 2 * LN2) / 2, abs=1e-6)
    expected = 0.75 * 1.75 * LN2 / 2 + 0.25 * 3 * LN2 / 2
    assert total_loss(terms, 0.25).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_of_images_without_labels_the_distillation_head_learns_alone(kind):
    cls, distillation = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    answers = torch.randn(4, 5) if kind == "soft" else torch.randint(5, (4,))
    labels = torch.zeros(4, 5)
    terms = objective_terms(heads(cls, distillation), labels, answers, settings(kind), labelled=labels.sum(-1))
    total_loss(terms, 0.5).backward()
    assert terms["label_loss"].item() == 0 and not cls.grad.any()
    assert distillation.grad.abs().sum(-1).min() > 0


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("one_head", [False, True])
def test_where_all_is_labelled_the_objective_is_the_ordinary_one(kind, one_head):
    outputs = heads(torch.randn(4, 5), None if one_head else torch.randn(4, 5))
    answers = torch.randn(4, 5) if kind == "soft" else torch.randint(5, (4,))
    labels, args = torch.rand(4, 5).softmax(-1), settings(kind, label_smoothing_factor=0.1)
    ordinary = objective_terms(outputs, labels, answers, args)
    assert ordinary.keys() == {"label_loss", "teacher_loss"}
    ours = objective_terms(outputs, labels, answers, args, labelled=torch.ones(4))
    assert ours.keys() == ordinary.keys()
    torch.testing.assert_close(total_loss(ours, 0.25), total_loss(ordinary, 0.25))


def test_a_student_of_one_head_learns_the_teachers_answer_with_its_weight():
    outputs = heads(torch.zeros(2, 2), None)
    labels = torch.zeros(2, 2)
    terms = objective_terms(outputs, labels, torch.tensor([0, 1]), settings(), labelled=labels.sum(-1))
    assert total_loss(terms, 0.25).item() == pytest.approx(0.25 * LN2, abs=1e-6)


def test_a_batch_may_be_split_between_processes():
    outputs = heads(torch.randn(6, 5), torch.randn(6, 5))
    answers, labels = torch.randint(5, (6,)), torch.nn.functional.one_hot(torch.randint(5, (6,)), 5).float()
    labels[[0, 1, 4]] = 0.0
    whole, parts = None, []
    for rows in (slice(0, 6), slice(0, 2), slice(2, 4), slice(4, 6)):
        part = heads(outputs.cls_logits[rows], outputs.distillation_logits[rows])
        terms = objective_terms(part, labels[rows], answers[rows], settings(), labelled=labels[rows].sum(-1))
        parts.append(total_loss(terms, 0.25))
    whole, *parts = parts
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
