"""A teacher is tried before it teaches: are its answers finite, and better than chance?"""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.utils.data import DataLoader, Dataset, Subset

from ..arguments import ModelArguments
from ..data.datasets import collate
from ..errors import InputError
from .ensemble import Ensemble, ask_each, naming_teacher
from .teacher import Teacher

# On so many validation images; with fewer than MIN_TRIAL nothing can be concluded.
TRIAL_IMAGES, MIN_TRIAL = 400, 50


def check_teachers(model_args: ModelArguments, teacher: Teacher | Ensemble, images: Dataset, batch_size: int) -> str:
    """Try a teacher before training, see [`check_teacher`]; of several each alone. What came of it, in words.

    Raises:
        InputError: a teacher's answers are not finite; or it is hardly better than chance, and may not be.
    """
    allow_weak = model_args.allow_weak_teacher
    trained_epochs = model_args.teacher_num_train_epochs if model_args.train_teacher else None
    shares = []
    for place, member in enumerate(teacher.members):
        with naming_teacher(model_args, place):
            shares.append(check_teacher(member, images, batch_size, allow_weak, trained_epochs))
    number = len(images)
    sample = f"{TRIAL_IMAGES:,} of the " if number > TRIAL_IMAGES else "the "
    tried = f"{sample}{number:,} held-out images"
    if len(shares) == 1 and number < MIN_TRIAL:
        hits = round(shares[0] * number)
        return f"the teacher is right on {hits} of {number} held-out images: too few to compare it with chance"
    if len(shares) == 1:
        return f"the teacher is right on {shares[0]:.1%} of {tried}"
    together = check_teacher(teacher, images, batch_size, allow_weak=True)
    each = zip(shares, model_args.teacher_names, strict=True)
    listed = ", ".join(f"{share:.1%} ({name})" for share, name in each)
    words = f"the teachers are right on {listed} of {tried}, together on {together:.1%}"
    return words if number >= MIN_TRIAL else f"{words}: {number} images, too few to compare them with chance"


def check_teacher(
    teacher: Teacher | Ensemble,
    images: Dataset,
    batch_size: int,
    allow_weak: bool,
    trained_epochs: float | None = None,
) -> float:
    """Try the teacher on some hundred validation images before training by it; its share of right answers.

    Args:
        teacher: the teacher.
        images: `pixel_values` normalised for the student, and `labels`.
        batch_size: of the trial.
        allow_weak: go on though it is hardly better than chance.
        trained_epochs: of a teacher that was trained here; None for any other.

    Raises:
        InputError: its answers are not finite; or it is hardly better than chance, which is as many hits as shuffled
            answers would have: within three deviations of it, or within a tenth of the way from there to all.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, TRIAL_IMAGES).astype(int)).tolist()
    predicted, true, _ = decisions_of(teacher, Subset(images, chosen), batch_size)
    num_classes = max(predicted.max(), true.max()) + 1
    num_predicted, num_true = (np.bincount(each, minlength=num_classes) for each in (predicted, true))
    hits, expected = int((predicted == true).sum()), float(num_predicted @ num_true) / len(true)
    deviation = math.sqrt(expected * (1 - expected / len(chosen)))
    hardly_better = hits <= expected + max(3 * deviation, (len(chosen) - expected) / 10)
    if hardly_better and len(chosen) >= MIN_TRIAL and not allow_weak:
        why = _why_weak(predicted, true, expected, trained_epochs)
        raise InputError(
            f"the teacher is right on {hits} of {len(chosen)} validation images, and chance would be about "
            f"{expected:.0f}: {why}, or go on by --allow_weak_teacher true"
        )
    return hits / len(chosen)


def _why_weak(predicted: np.ndarray, true: np.ndarray, expected: float, trained_epochs: float | None) -> str:
    """Why a teacher is no better than chance, and what to do.

    Args:
        predicted, true: (images,) class indices.
        expected: hits by chance.
        trained_epochs: as of [`check_teacher`].
    """
    answers = np.unique(predicted)
    if trained_epochs is not None:
        return (
            f"it was trained here for {trained_epochs:g} epochs, which did not teach it; train it longer "
            "(--teacher_num_train_epochs, with --overwrite_output_dir true) or at another --teacher_learning_rate"
        )
    if len(answers) == 1:
        return f"it answers class {answers[0]} whatever it sees, so its head is not trained; take another teacher"
    num_classes = max(predicted.max(), true.max()) + 1
    together = np.zeros((num_classes, num_classes), int)
    np.add.at(together, (predicted, true), 1)
    # Each answer read as the class that suits it best; of few images a class, any answers could be read so.
    right = int(together[linear_sum_assignment(together, maximize=True)].sum())
    if right - expected > (len(true) - expected) / 2 and len(true) >= 5 * num_classes:
        return (
            f"its classes are in another order than their names say (in the best order it is right on {right}); give "
            "--teacher_label_map FILE"
        )
    return (
        "its head is not trained, or it knows other images; take another teacher, or fine-tune this one "
        "alone (--train_teacher true)"
    )


@torch.inference_mode()
def decisions_of(
    teacher: Teacher | Ensemble,
    images: Dataset,
    batch_size: int,
    note: Callable[[torch.Tensor], object] | None = None,
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """A teacher's decisions on images, the true labels, and the decisions of each member; (images,) class indices.

    Args:
        teacher, images, batch_size: as of [`check_teacher`].
        note: is given the logits (batch, classes) of each batch.

    Raises:
        InputError: answers that are not finite; the index of a NaN would be a class like any other.
    """
    answers, labels = [], []
    for batch in DataLoader(images, batch_size, collate_fn=collate):
        logits, each = ask_each(teacher, batch["pixel_values"].to(teacher.device))
        if not logits.isfinite().all():
            precision = teacher.precision
            remedy = f"add --teacher_precision fp32 (now {precision})"
            remedy = "take another teacher" if precision == "fp32" else remedy
            raise InputError(f"the teacher's answers about validation images are not finite; {remedy}")
        if note is not None:
            note(logits)
        answers.append(torch.stack([logits, *each]).argmax(dim=-1).cpu())
        labels.append(batch["labels"])
    first, *members = torch.cat(answers, dim=1).numpy()
    return first, torch.cat(labels).numpy(), members
