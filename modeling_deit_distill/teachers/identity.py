"""Which teacher a checkpoint was made with: a run does not go on from it with another one.

A full store needs no live teacher, and compares what it was made with itself: see `agreement.py`.
"""

from pathlib import Path

from torch import nn

from ..errors import InputError
from ..files import without_folders
from ..output_folder import agreed_in
from .agreement import of_member
from .ensemble import Ensemble
from .store import in_words, short
from .teacher import Teacher

FIELD = "teacher"  # of what a run and its checkpoint must agree about
NAME = "name"  # which may change: a folder may move
# Another precision may be the remedy for answers that are not finite.
MAY_DIFFER = (NAME, "teacher_precision")


def teacher_identity(teacher: nn.Module | None) -> list[dict[str, object]] | None:
    """The name of each teacher, and what decides its answers; None for none, and for a module without files.

    Such a module is the user's own, and its state may change while it answers.
    """
    teacher = getattr(teacher, "_orig_mod", teacher)  # of a compiled one
    if not isinstance(teacher, Teacher | Ensemble) or not all(each.model.name_or_path for each in teacher.members):
        return None
    # A checkpoint may be pushed, so it keeps no local folders.
    return [{NAME: without_folders(each.model.name_or_path), **of_member(each)} for each in teacher.members]


def teacher_going_on(checkpoint: str | Path | None, teacher: nn.Module | None) -> list[dict[str, object]] | None:
    """Refuse to go on from a checkpoint with another live teacher than the one that it was made with.

    Args:
        checkpoint: its folder; None if the run starts from the beginning.
        teacher: the live one, if there is one.

    Returns:
        The [`teacher_identity`] for new checkpoints. Where a store answers alone, it is the checkpoint's.

    Raises:
        InputError: the first difference, with both names and the remedy.
    """
    known = None if checkpoint is None else agreed_in(Path(checkpoint)).get(FIELD)  # earlier versions kept none
    identity = known if teacher is None else teacher_identity(teacher)
    if known is None or identity is None:
        return identity
    if (found := _difference(known, identity)) is not None:
        field, theirs, ours = found
        before, now = (in_words([each[NAME] for each in teachers]) for teachers in (known, identity))
        raise InputError(
            f"{checkpoint} was made with the teacher {before} ({field} {short(theirs)}), this run has {now} "
            f"({field} {short(ours)}); give the same to go on, or --overwrite_output_dir true without "
            "--resume_from_checkpoint, or another --output_dir, to start again"
        )
    return identity


def _difference(known: list[dict], identity: list[dict]) -> tuple[str, object, object] | None:
    if len(known) != len(identity):
        return "number of teachers", len(known), len(identity)
    for theirs, ours in zip(known, identity, strict=True):
        for field in ours:
            if field not in MAY_DIFFER and theirs.get(field) != ours[field]:
                return field, theirs.get(field), ours[field]
    return None
