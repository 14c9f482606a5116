"""Folders that must lie apart: images to train on, images to evaluate on, and what a run writes."""

import os
from pathlib import Path

from ..arguments import DataArguments, DistillationTrainingArguments
from ..errors import InputError


def check_folders_apart(data_args: DataArguments, args: DistillationTrainingArguments):
    """Refuse a run whose folders lie in each other, or whose splits are one; links are followed, and nothing is read.

    Raises:
        InputError: training, validation and unlabelled images are the same or lie in each other, or a run would write
            among its images, of which the next run would make a class.
    """
    for train, validation in (("train_dir", "validation_dir"), ("train_csv", "validation_csv")):
        ours, theirs = getattr(data_args, train), getattr(data_args, validation)
        if ours and theirs and (_is_within(ours, theirs) or _is_within(theirs, ours)):
            raise InputError(
                f"{train} {ours!r} and {validation} {theirs!r} {_how(ours, theirs)}, so the student would be judged on "
                f"images that it trains on; give others as {validation}, or leave it out to hold a share out"
            )
    if data_args.dataset_name and data_args.train_split == data_args.validation_split:
        raise InputError(
            f"train_split and validation_split are both {data_args.train_split!r}, so the student would be judged on "
            "images that it trains on; give another validation_split, or leave it out"
        )
    _check_unlabelled(data_args)
    for images in ("train_dir", "validation_dir", "dataset_name", "unlabeled_dir"):
        folder = getattr(data_args, images)
        what = "images without labels" if images == "unlabeled_dir" else "a class"
        for written in ("output_dir", "teacher_store"):
            place = getattr(args, written)
            if folder and place and os.path.isdir(folder) and _is_within(place, folder):
                raise InputError(
                    f"{written} {place!r} and {images} {folder!r} {_how(place, folder)}, so the next run would take "
                    f"what this one writes for {what}; choose another {written} outside of it"
                )


def _check_unlabelled(data_args: DataArguments):
    ours = data_args.unlabeled_dir
    for images in ("train_dir", "validation_dir", "dataset_name"):
        theirs = getattr(data_args, images)
        if ours and theirs and os.path.isdir(theirs) and (_is_within(ours, theirs) or _is_within(theirs, ours)):
            raise InputError(
                f"unlabeled_dir {ours!r} and {images} {theirs!r} {_how(ours, theirs)}, so images with labels, or those "
                "to judge by, would be among those without; give a folder outside of it as unlabeled_dir, or leave it "
                "out"
            )


def _is_within(place: str, folder: str) -> bool:
    """Whether a path, which need not exist yet, is a folder or lies in it, whatever links and case say."""
    path = Path(place).expanduser().resolve()
    if not os.path.exists(folder):
        return False
    return any(each.exists() and os.path.samefile(each, folder) for each in (path, *path.parents))


def _how(place: str, folder: str) -> str:
    return "are the same" if os.path.realpath(place) == os.path.realpath(folder) else "lie in each other"
