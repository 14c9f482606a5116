"""Why a step is not finite: the one place that decides it, and the remedy that follows.

It looks at what a step is made of in the order in which that is computed: the student's weights, the pixels, the
teacher's answers, the student's, the losses, the gradient. The first that is not finite is the cause.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

from ..output_folder import last_complete
from ..weights import first_not_finite

# In the order in which a step computes them.
KINDS = ("weights", "pixels", "teacher", "student", "loss", "gradient")


class Cause(NamedTuple):
    """What is not finite first, of `KINDS`, in words, and what to do about it."""

    kind: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Evidence:
    """What is left of a step: nothing has changed since.

    Attributes:
        student: the model, with the weights from before the step and its gradients.
        pixel_values: (batch, channels, height, width), those of the last backward pass.
        losses: by name, means over the step.
        is_first: whether no step before was finite.
    """

    student: nn.Module
    pixel_values: torch.Tensor | None
    losses: Mapping[str, float]
    is_first: bool


def explain(args, teacher: nn.Module | None, gather: Callable[[list], list], evidence: Evidence) -> str:
    """The cause, the remedy and which checkpoint is kept, in words; all processes call it, and it says the same."""
    cause = find_cause(args, teacher, evidence, gather)
    return f"{cause.what}: {cause.remedy}; {_kept_checkpoint(args)}"


def explain_weights(args, is_first: bool) -> str:
    """What to do about weights that are not finite, and which checkpoint is kept, in words; see [`Evidence`]."""
    return f"{_remedy_for_weights(args, is_first)}; {_kept_checkpoint(args)}"


def find_cause(args, teacher: nn.Module | None, evidence: Evidence, gather: Callable[[list], list] = list) -> Cause:
    """The first part of a step that is not finite, on any process: where one's views are bad, all gradients are.

    Args:
        args: the [`DistillationTrainingArguments`].
        teacher: that is asked; None without one, or where a store answers.
        evidence: the step.
        gather: from a list of each process to that of all.
    """
    student = extract_model_from_parallel(evidence.student, keep_torch_compile=False)
    # A sharded student is asked by all processes together: so they first agree that none of them has an earlier cause.
    for look in (_before_the_student, _from_the_student_on):
        causes = [each for each in gather([look(args, teacher, student, evidence)]) if each is not None]
        if causes:
            return min(causes, key=lambda each: KINDS.index(each.kind))
    raise AssertionError("the gradient is a cause where nothing else is")


def _before_the_student(args, teacher: nn.Module | None, student: nn.Module, evidence: Evidence) -> Cause | None:
    pixel_values = evidence.pixel_values
    if (name := first_not_finite(student.named_parameters())) is not None:
        return Cause(
            "weights",
            f"the student's weights are not finite before the step, first {name}",
            _remedy_for_weights(args, evidence.is_first),
        )
    if pixel_values is not None and not pixel_values.isfinite().all():
        remedy = "look at the samples, and at the image processor's image_std"
        return Cause("pixels", "the pixels are not finite", remedy)
    if pixel_values is not None and teacher is not None and (layer := first_layer(teacher, pixel_values)) is not None:
        return _of_teacher(teacher, layer)
    return None


def _from_the_student_on(args, teacher: nn.Module | None, student: nn.Module, evidence: Evidence) -> Cause:
    pixel_values, losses = evidence.pixel_values, evidence.losses
    # Taken before the student is asked, which may put whole weights in the place of shares.
    gradients = [(name, each.grad) for name, each in reversed(list(student.named_parameters()))]
    if pixel_values is not None and (layer := first_layer(student, pixel_values)) is not None:
        return Cause("student", f"the student overflows, first in {layer}", _remedy_for_rate(args))
    bad = [name for name, value in losses.items() if not abs(value) < float("inf")]  # NaN is below nothing
    if bad == ["teacher_loss"] and teacher is None:
        return Cause("teacher", "the stored answers are not finite", "run store_cli verify, or label into a new store")
    if bad:
        remedy = "look at the labels and at class_weights" if "label_loss" in bad else _remedy_for_rate(args)
        return Cause("loss", f"{bad[0]} is not finite, though the answers are", remedy)
    name = first_not_finite((name, grad) for name, grad in gradients if grad is not None)
    where = "" if name is None else f", first at {name}"
    return Cause("gradient", f"the gradient is not finite{where}", f"{_remedy_for_rate(args)}, or --max_grad_norm 1")


@torch.no_grad()
def first_layer(module: nn.Module, pixel_values: torch.Tensor) -> str | None:
    """The first layer of a model whose output for some pixels is not finite; None if all are, "its output" for its own.

    Args:
        module: from `pixel_values` to a tensor or an output of transformers'.
        pixel_values: (batch, channels, height, width).
    """
    found: list[str] = []

    def hook(name):
        """What is run after the layer of this name."""

        def look(_, inputs, output):
            """Keep the name if it is the first whose output is not finite."""
            named = [(name, each) for each in _tensors_of(output)]
            if not found and first_not_finite(named) is not None:
                found.append(name or "its output")

        return look

    handles = [each.register_forward_hook(hook(name)) for name, each in module.named_modules()]
    try:
        module(pixel_values)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _tensors_of(output) -> list[torch.Tensor]:
    """The tensors of a layer's output, or of what a teacher returns."""
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output
    values = values if isinstance(values, Iterable) else [getattr(output, "logits", None)]
    return [each for each in values if isinstance(each, torch.Tensor)]


def _of_teacher(teacher: nn.Module, layer: str) -> Cause:
    name = first_not_finite(teacher.state_dict().items())
    if name is not None:
        return Cause("teacher", f"the teacher's weights are not finite, first {name}", "take another teacher")
    precision = getattr(teacher, "precision", "fp32")
    remedy = "take another teacher" if precision == "fp32" else f"add --teacher_precision fp32 (now {precision})"
    return Cause("teacher", f"the teacher's answers are not finite, first in {layer}", remedy)


def _remedy_for_weights(args, is_first: bool) -> str:
    if is_first:
        return "they were so before the first step, so start from other weights (model_name_or_path)"
    return f"an update was too large, so {_remedy_for_rate(args)}"


def _remedy_for_rate(args) -> str:
    precision = "--bf16 true instead of fp16 and " if args.fp16 else ""
    return f"try {precision}a lower learning_rate (now {args.learning_rate:g})"


def _kept_checkpoint(args) -> str:
    checkpoint, _ = last_complete(args.output_dir, contents=False)
    if checkpoint is None:
        return "no checkpoint was saved yet"
    start = f"--model_name_or_path {shlex.quote(str(checkpoint))}, and another --output_dir"
    return (
        f"the last checkpoint, {checkpoint}, is kept; a run with another learning rate, precision or teacher does not "
        f"go on from it, but can start from its weights ({start})"
    )
