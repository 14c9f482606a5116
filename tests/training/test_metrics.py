"""Accuracies against counts made by hand."""

import numpy as np
import torch

from modeling_deit_distill.training.metrics import accuracies, predicted_labels


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
        "accuracy_cls": 0.25,
        "accuracy_distillation": 0.5,
        "accuracy_logit_mean": 1.0,
        "accuracy_softmax_mean": 0.0,
        "teacher_agreement": 0.5,  # images 0 and 3, though both are wrong on the last
    }
    assert all(type(value) is float for value in results.values())  # so that json can write them
    assert "teacher_agreement" not in accuracies(predictions, labels)
