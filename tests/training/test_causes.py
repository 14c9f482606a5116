"""Why a step is not finite, and what is advised: each cause by a trainer that meets it."""

import re
from types import SimpleNamespace

import pytest
import torch
from helpers.trainers import CLASSES, student, trainer

from modeling_deit_distill import InputError
from modeling_deit_distill.training.causes import Evidence, explain, find_cause, first_layer

NAN = float("nan")


def message_of(run) -> str:
    with pytest.raises(InputError) as caught:
        run.train()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def bad_start(run):
    run.model.deit.layers[1].mlp.fc1.weight.data[0, 0] = NAN


def bad_pixels(run):
    views = run.views
    run.views = lambda inputs: (views(inputs)[0] * NAN, inputs["labels"], None)
    run.views.class_weights = None


def bad_teacher(run):
    run.answers.teacher.head.weight.data[0, 0] = NAN


def overflowing_teacher(run):
    run.answers.teacher.head.weight.data.fill_(3e38)


def overflowing_student(run):
    run.model.deit.layers[0].mlp.fc2.weight.data.fill_(3e38)


def bad_labels(run):
    views = run.views
    probabilities = lambda inputs: torch.full((len(inputs["labels"]), CLASSES), NAN)  # noqa: E731
    run.views = lambda inputs: (views(inputs)[0], probabilities(inputs), None)
    run.views.class_weights = None


def bad_gradient(run):
    run.model.deit.layers[1].attention.proj.weight.register_hook(lambda gradient: gradient * NAN)


LOWER = "a lower learning_rate"
MEETINGS = {
    "start": (
        bad_start,
        "the student's weights are not finite before the step, first deit.layers.1.mlp.fc1.weight: they were so before "
        "the first step, so start from other weights (model_name_or_path)",
    ),
    "pixels": (bad_pixels, "the pixels are not finite: look at the samples, and at the image processor's image_std"),
    "teacher": (bad_teacher, "the teacher's weights are not finite, first head.weight: take another teacher"),
    "teacher overflows": (overflowing_teacher, "the teacher's answers are not finite, first in head: take another"),
    "student overflows": (overflowing_student, f"the student overflows, first in deit.layers.1.norm1: try {LOWER}"),
    "labels": (bad_labels, "label_loss is not finite, though the answers are: look at the labels and at class_weights"),
    "gradient": (
        bad_gradient,
        f"the gradient is not finite, first at deit.layers.1.attention.proj.weight: try {LOWER}",
    ),
}


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
@pytest.mark.parametrize("met", MEETINGS)
def test_the_cause_is_named_with_its_remedy(tmp_path, met, optim):
    meet, expected = MEETINGS[met]
    run = trainer(tmp_path, teacher=Linear(), max_steps=9, max_nonfinite_steps=2, optim=optim, distillation_type="soft")
    meet(run)
    message = message_of(run)
    assert re.search(rf"none of them changed a weight; {re.escape(expected)}", message), message
    assert message.endswith("no checkpoint was saved yet")
    assert ("learning_rate" in message) == (LOWER in expected)


class Linear(torch.nn.Module):
    """A teacher with a layer."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, CLASSES)

    def forward(self, pixel_values):
        return self.head(100 * pixel_values.mean(dim=(2, 3)))


def evidence(**changes) -> Evidence:
    found = {"student": student(), "pixel_values": torch.rand(2, 3, 16, 16), "losses": {}, "is_first": False}
    return Evidence(**{**found, **changes})


@pytest.fixture
def args(tmp_path):
    return SimpleNamespace(output_dir=str(tmp_path), learning_rate=1e-3, fp16=False)


def test_weights_that_an_update_spoiled_ask_for_a_lower_rate(args):
    model = student()
    model.cls_classifier.bias.data[0] = NAN
    cause = find_cause(args, None, evidence(student=model))
    assert cause.kind == "weights" and cause.remedy.endswith(f"so try {LOWER} (now 0.001)")
    args.fp16 = True
    assert "try --bf16 true instead of fp16 and" in find_cause(args, None, evidence(student=model)).remedy


def test_answers_of_a_store_are_named(args):
    cause = find_cause(args, None, evidence(losses={"label_loss": 1.0, "teacher_loss": NAN}))
    assert (cause.kind, cause.what) == ("teacher", "the stored answers are not finite")


def test_a_teacher_in_low_precision_may_be_asked_in_fp32(args):
    teacher = Linear()
    teacher.head.weight.data.fill_(3e38)
    teacher.precision = "fp16"
    assert find_cause(args, teacher, evidence()).remedy == "add --teacher_precision fp32 (now fp16)"


def test_of_several_processes_the_first_cause_counts(args):
    others = [find_cause(args, None, evidence(pixel_values=torch.full((2, 3, 16, 16), NAN)))]
    words = explain(args, None, lambda own: own + others, evidence())  # here it is the gradient of all
    assert words.startswith("the pixels are not finite: ")


def test_the_first_layer_is_the_innermost_that_is_not_finite_and_nothing_is_left_behind():
    model = student()
    pixel_values = torch.rand(2, 3, 16, 16)
    assert first_layer(model, pixel_values) is None
    model.deit.layers[1].attention.proj.bias.data[0] = torch.inf
    assert first_layer(model, pixel_values) == "deit.layers.1.attention.proj"
    assert first_layer(torch.nn.Identity(), pixel_values * NAN) == "its output"
    assert not any(module._forward_hooks for module in model.modules())
