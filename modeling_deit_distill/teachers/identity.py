"""Which teacher a checkpoint was made with: a run does not go on from it with another one.

A full store needs no live teacher, and compares what it was made with itself: see `agreement.py`.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from ..files import without_folders
from ..output_folder import agreed_in
from ..weights import unwrapped_names
from .ensemble import Ensemble
from .store import in_words, short
from .teacher import Teacher

TEACHER = "teacher"  # of what a run and its checkpoint must agree about
NAME = "name"  # which may change: a folder may move


def identity_of(teacher: nn.Module | None) -> list[dict[str, object]] | None:
    """What tells a live teacher from others, for each of several: its name, and what decides its answers.

    None without one. The precision is not part of it: another one may be the remedy for answers that are not finite.
    """
    if teacher is None:
        return None
    if isinstance(teacher, Teacher | Ensemble):
        return [_of_member(member) for member in teacher.members]
    return [{NAME: _name(teacher), "teacher_weights": weights_digest(teacher)}]


def teacher_going_on(checkpoint: str | Path | None, teacher: nn.Module | None) -> Callable[[], list[dict] | None]:
    """Refuse to go on from a checkpoint with another live teacher than the one that it was made with.

    Args:
        checkpoint: its folder; None if the run starts from the beginning.
        teacher: the live one, if there is one.

    Returns:
        What tells the [`identity_of`] the run's teacher, for its own checkpoints, and computes it once. Where a store
        answers alone, it is that of the checkpoint.

    Raises:
        InputError: the first difference, with both names and the remedy.
    """
    known = None if checkpoint is None else agreed_in(Path(checkpoint)).get(TEACHER)  # earlier versions kept none
    identity = functools.cache(lambda: identity_of(teacher) or known)
    found = None if known is None else _difference(known, identity())
    if found is not None:
        field, theirs, ours = found
        before, now = (in_words([each[NAME] for each in teachers]) for teachers in (known, identity()))
        raise InputError(
            f"{checkpoint} was made with the teacher {before} ({field} {short(theirs)}), this run has {now} "
            f"({field} {short(ours)}); give the same to go on, or --overwrite_output_dir true without "
            "--resume_from_checkpoint, or another --output_dir, to start again"
        )
    return identity


def weights_digest(module: nn.Module) -> str:
    """A hash of a module's weights and buffers, 16 digits, on whatever device, and without the names of wrappers.

    84 million parameters take half a second. Of a tensor that is not a plain one, only type and shape count.
    """
    digest, state = hashlib.sha256(), module.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    for name, new in unwrapped_names(tensors).items():
        value = tensors[name]
        digest.update(f"{new} {value.dtype} {tuple(value.shape)}\n".encode())
        if type(value) is torch.Tensor and value.layout == torch.strided and not value.is_quantized:
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _difference(known: list[dict], identity: list[dict]) -> tuple[str, object, object] | None:
    if len(known) != len(identity):
        return "number of teachers", len(known), len(identity)
    for theirs, ours in zip(known, identity, strict=True):
        for field in ours:
            if field != NAME and theirs.get(field) != ours[field]:
                return field, theirs.get(field), ours[field]
    return None


def _of_member(teacher: Teacher) -> dict[str, object]:
    return {
        NAME: _name(teacher.model),
        "teacher_weights": weights_digest(teacher.model),
        "teacher_image_size": teacher.view.image_size,
        "teacher_mean": list(teacher.view.mean),
        "teacher_std": list(teacher.view.std),
        "label_map": None if teacher.classes is None else teacher.classes.tolist(),
    }


def _name(module: nn.Module) -> str:
    # A checkpoint may go to the Hub, which the folders of this machine are no business of.
    return without_folders(getattr(module, "name_or_path", None) or type(module).__name__)
