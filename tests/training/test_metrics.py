"""Accuracies against counts made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_deit_distill import InputError
from modeling_deit_distill.training.metrics import HeldOutMetrics, accuracies, check_metric, decide, predicted_labels


def test_decisions_of_heads_and_fusions_by_hand():
    # Mean of the logits: (-5, 0.25, 0), class 1. The class head gives class 0 all but e⁻¹⁰ of its probability, the
    # other head splits its own between 1 and 2 (0.62, 0.38): the mean is (0.50, 0.31, 0.19), class 0.
    cls = torch.tensor([[10.0, 0.0, 0.0], [0.0, 0.0, 9.0]])
    distillation = torch.tensor([[-20.0, 0.5, 0.0], [0.0, 0.0, 9.0]])
    configured = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])  # whatever the model answers is taken as it is
    decisions = predicted_labels(configured, cls, distillation)
    assert {name: labels.tolist() for name, labels in decisions.items()} == {
        "fused": [2, 1],
        "cls": [0, 2],
        "distillation": [1, 2],
        "logit_mean": [1, 2],
        "softmax_mean": [0, 2],
    }


def test_a_student_with_one_head():
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    decisions = predicted_labels(logits, logits)
    assert {name: labels.tolist() for name, labels in decisions.items()} == {"fused": [1, 0], "cls": [1, 0]}
    assert accuracies({name: labels.numpy() for name, labels in decisions.items()}, np.array([1, 1])) == {
        "accuracy": 0.5,
        "balanced_accuracy": 0.5,  # all of one class: its recall
        "macro_f1": 1 / 3,  # of this class 2/3, of the other, which has no image, 0
        "accuracy_cls": 0.5,
    }


def test_top5_is_reported_above_five_classes():
    for classes, has_top5 in ((2, False), (5, False), (6, True)):
        logits = torch.randn(3, classes)
        assert ("top5" in predicted_labels(logits, logits)) == has_top5


def test_top5_by_hand():
    # Scores fall with the class in the first image and rise in the second; the least of six is the one left out.
    logits = torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    decisions = predicted_labels(logits, logits)
    assert decisions["top5"].tolist() == [[0, 1, 2, 3, 4], [5, 4, 3, 2, 1]]
    predictions = {name: labels.numpy() for name, labels in decisions.items()}
    assert accuracies(predictions, np.array([5, 5]))["top5_accuracy"] == 0.5
    assert accuracies(predictions, np.array([4, 1]))["top5_accuracy"] == 1.0


def test_accuracies_by_hand():
    labels = np.array([0, 1, 2, 1])
    predictions = {
        "fused": np.array([0, 1, 2, 0]),
        "cls": np.array([0, 0, 0, 2]),
        "distillation": np.array([1, 1, 1, 1]),
        "logit_mean": np.array([0, 1, 2, 1]),
        "softmax_mean": np.array([2, 2, 0, 0]),
    }
    results = accuracies(predictions, labels, teacher_labels=np.array([0, 2, 1, 0]))
    assert results == {
        "accuracy": 0.75,
        "balanced_accuracy": (1 + 0.5 + 1) / 3,
        "macro_f1": pytest.approx((2 / 3 + 2 / 3 + 1) / 3),
        "accuracy_cls": 0.25,
        "accuracy_distillation": 0.5,
        "accuracy_logit_mean": 1.0,
        "accuracy_softmax_mean": 0.0,
        "teacher_agreement": 0.5,  # images 0 and 3, though both are wrong on the last
    }
    assert all(type(value) is float for value in results.values())  # so that json can write them
    assert "teacher_agreement" not in accuracies(predictions, labels)


def test_the_confidence_is_the_probability_of_the_answer_and_is_kept():
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]]))
    labels, metrics = torch.tensor([0, 1]), HeldOutMetrics()
    metrics(SimpleNamespace(predictions=decide((logits, logits), labels), label_ids=labels))
    assert metrics.decisions["confidence"].tolist() == pytest.approx([0.7, 0.9])
    kept = metrics.kept_decisions()
    assert (kept["fused"], kept["confidence"]) == ([0, 2], [0.7, 0.9])


def test_the_teacher_has_the_same_figures():
    metrics = HeldOutMetrics()
    held_out = object()
    assert metrics.ask_teacher(held_out, lambda *about: None) == {}
    about = {"accuracy": 0.75, "answers": np.array([0, 1, 2, 0]), "labels": np.array([0, 1, 2, 1])}
    assert metrics.ask_teacher(held_out, lambda *_: about) == {
        "teacher_accuracy": 0.75,
        "teacher_balanced_accuracy": (1 + 0.5 + 1) / 3,
        "teacher_macro_f1": pytest.approx((2 / 3 + 2 / 3 + 1) / 3),
    }


def test_the_best_model_may_be_chosen_by_what_is_measured(tiny_config):
    def check(metric, decay=None):
        args = {"metric_for_best_model": metric, "weight_average_decay": decay, "distillation_type": "hard"}
        check_metric(SimpleNamespace(**args), tiny_config())

    for metric in ("macro_f1", "balanced_accuracy", "eval_macro_f1", "accuracy_cls", "loss", None):
        check(metric)
    check("ema_macro_f1", decay=0.9)
    with pytest.raises(InputError, match="'macro_f2'; choose from: loss, accuracy, balanced_accuracy, macro_f1,"):
        check("macro_f2")
