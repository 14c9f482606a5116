"""Several teachers as one: each in its own view and its own classes, and their mean probability is the answer."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..arguments import NO_MAP, ModelArguments
from ..errors import InputError
from .teacher import Teacher, load_teacher


class Ensemble(nn.Module):
    """Several frozen teachers that are asked as one; see [`mean_logits`].

    Args:
        members: at least two, in the order of their names, all on one device and of one precision.
    """

    def __init__(self, members: Sequence[Teacher]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.precision = self.members[0].precision

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.members[0].device

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) for `pixel_values` (batch, 3, height, width) normalised for the student."""
        return mean_logits(self.each(pixel_values))

    def each(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """The logits (batch, classes) of each member."""
        return [member(pixel_values) for member in self.members]


def mean_logits(each: Sequence[torch.Tensor]) -> torch.Tensor:
    """The logarithm (..., classes) of the mean probability by several logits (..., classes) of the same classes.

    Its softmax is the mean of their softmaxes, and its argmax that of the mean; of equal ones the first class.
    """
    log_probs = torch.stack([F.log_softmax(logits.float(), dim=-1) for logits in each])
    return torch.logsumexp(log_probs, dim=0) - math.log(len(each))


def ask_each(teacher: nn.Module, pixel_values: torch.Tensor) -> tuple[object, list[torch.Tensor]]:
    """What a teacher answers, and the logits (batch, classes) of each member; none of a teacher that has no members."""
    if not isinstance(teacher, Ensemble):
        return teacher(pixel_values), []
    each = teacher.each(pixel_values)
    return mean_logits(each), each


def load_teachers(model_args: ModelArguments, class_names: list[str], student_image_size: int) -> Teacher | Ensemble:
    """The teacher that is named, see [`load_teacher`]; of several an ensemble.

    Raises:
        InputError: a teacher that cannot be read, or classes that it has not.
    """
    members = []
    for place, each in enumerate(model_args.teachers):
        with naming_teacher(model_args, place):
            members.append(load_teacher(each, class_names, student_image_size))
    return members[0] if len(members) == 1 else Ensemble(members)


@contextlib.contextmanager
def naming_teacher(model_args: ModelArguments, place: int) -> Iterator[None]:
    """What is wrong with one of several teachers is said with its name, and with the label maps of all.

    Raises:
        InputError: as it came, of a teacher that is alone.
    """
    names = model_args.teacher_names
    try:
        yield
    except InputError as error:
        if len(names) < 2:
            raise
        maps = [str(each.teacher_label_map or NO_MAP) for each in model_args.teachers]
        maps[place] = "FILE"
        message = str(error).replace("--teacher_label_map FILE", f"--teacher_label_map {' '.join(maps)}")
        raise type(error)(f"teacher {place + 1} of {len(names)}, {names[place]!r}: {message}") from error
