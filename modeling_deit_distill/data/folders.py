"""A folder with a folder of images for each class, read as a person sees it.

Every name is taken as it is. Links are followed, but not back to a folder that is read already. Images may lie at any
depth below their class folder. What cannot be read as an image is counted by kind and named.
"""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from .columns import NO_LABEL
from .image_files import Found, Skipped, as_text, why_skipped

# What systems and network drives put beside photographs; `@eaDir` holds thumbnails of them.
NOT_OF_THE_USER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"}
SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}

NO_CLASS = "image{s} in no class folder"
EMPTY_CLASS = "class folder{s} without images"
CIRCLE = "link{s} to a folder that is read already"


def read_class_folders(folder: str, argument: str) -> Found:
    """The images of a folder of class folders, in the order of their paths.

    Classes have the names of their folders, in composed Unicode (NFC).

    Args:
        folder: with a subfolder of images for each class.
        argument: that named it, for messages.

    Raises:
        InputError: not a folder, no images in class folders, or subfolders that are splits.
    """
    root = os.path.realpath(Path(folder).expanduser())  # what `..` after a link means, only the system knows
    if not os.path.isdir(root):
        raise InputError(f"{argument} {folder!r} is not a folder; give one with a subfolder of images per class")
    found, below = Found(), {}
    above = {_place(path) for path in Path(root).parents}
    for name, path, is_folder in _entries(root, root, found.skipped, above):
        if not is_folder:
            found.skipped.add(why_skipped(path) or NO_CLASS, name)
            continue
        images = list(_images(path, root, found.skipped, set(above)))
        if not images:
            found.skipped.add(EMPTY_CLASS, name)
            continue
        found.paths += images
        found.labels += [unicodedata.normalize("NFC", as_text(name))] * len(images)
        below[name] = name.lower() in SPLIT_NAMES and all(os.path.dirname(image) != path for image in images)
    if not found.paths:
        reason = f" (skipped: {found.skipped})" if found.skipped.counts else ""
        raise InputError(
            f"{argument} {folder!r} holds no images in class folders; every image must lie in a folder with "
            f"the name of its class{reason}"
        )
    if all(below.values()):
        _refuse_splits(argument, folder, list(below))
    return found


def read_unlabelled_folder(folder: str, argument: str) -> Found:
    """The images of a folder, at any depth, in the order of their paths; its subfolders mean nothing.

    Args:
        folder: of images.
        argument: that named it, for messages.

    Raises:
        InputError: not a folder, or no images in it.
    """
    root = unlabelled_root(folder)
    if not os.path.isdir(root):
        raise InputError(f"{argument} {folder!r} is not a folder; give one of images, at any depth")
    found = Found()
    found.paths = list(_images(root, root, found.skipped, {_place(path) for path in Path(root).parents}))
    found.labels = [NO_LABEL] * len(found.paths)
    if not found.paths:
        reason = f" (skipped: {found.skipped})" if found.skipped.counts else ""
        raise InputError(f"{argument} {folder!r} holds no images; give a folder of images, or leave it out{reason}")
    return found


def unlabelled_root(folder: str) -> str:
    """What the paths of [`read_unlabelled_folder`] begin with."""
    return os.path.realpath(Path(folder).expanduser())


def _refuse_splits(argument: str, folder: str, names: list[str]):
    train = next((name for name in names if name.lower().startswith("train")), names[0])
    raise InputError(
        f"{argument} {folder!r} holds the splits {', '.join(names)}, each with folders of its own, and no classes; "
        f"pass --train_dir {Path(folder, train)} and --validation_dir, or the whole as --dataset_name {folder}"
    )


def files_below(folder: str, skipped: Skipped) -> Iterator[tuple[str, str, str | None]]:
    """Every file of the user's below a folder, at any depth, in the order of the paths.

    Args:
        folder: is not resolved, so paths begin as the user wrote it.
        skipped: links in a circle and unreadable folders are added here.

    Yields:
        Its path; the name of the subfolder of `folder` that it lies in, in NFC, empty for none; and why it cannot be
        read, as [`image_files.why_skipped`] says, None for an image.
    """
    root = folder.rstrip(os.sep) or os.sep
    for path, kind in _files(root, root, skipped, {_place(path) for path in Path(os.path.realpath(root)).parents}):
        above, _, below = path[len(root) :].lstrip(os.sep).partition(os.sep)
        yield path, unicodedata.normalize("NFC", as_text(above)) if below else "", kind


def _images(folder: str, root: str, skipped: Skipped, read: set[tuple[int, int]]) -> Iterator[str]:
    """Paths of the images in a folder, at any depth; the arguments are those of `_entries`."""
    for path, kind in _files(folder, root, skipped, read):
        if kind:
            skipped.add(kind, path[len(root) + 1 :])
        else:
            yield path


def _files(folder: str, root: str, skipped: Skipped, read: set[tuple[int, int]]) -> Iterator[tuple[str, str | None]]:
    """Path of each file in a folder, at any depth, and why it is skipped; the arguments are those of `_entries`."""
    for _, path, is_folder in _entries(folder, root, skipped, read):
        if is_folder:
            yield from _files(path, root, skipped, read)
        else:
            yield path, why_skipped(path)


def _entries(folder: str, root: str, skipped: Skipped, read: set[tuple[int, int]]) -> list[tuple[str, str, bool]]:
    """Name, path, and whether it is a folder, of what the user put into a folder.

    Folders are sorted as if their names ended with a slash, so that a walk meets files in the order of their paths.

    Args:
        folder: is listed.
        root: names of what is skipped are relative to it.
        skipped: what is skipped is added here.
        read: places of the folders that are not read again; this one's is added.
    """
    try:
        if (place := _place(folder)) in read:
            skipped.add(CIRCLE, folder[len(root) + 1 :])
            return []
        read.add(place)
        with os.scandir(folder) as entries:
            kept = [(entry.name, entry.path, _is_folder(entry)) for entry in entries if _is_of_the_user(entry.name)]
    except OSError as error:
        skipped.add(f"unreadable folder{{s}} ({error.strerror})", folder[len(root) + 1 :] or folder)
        return []
    return sorted(kept, key=lambda entry: entry[0] + "/" * entry[2])


def _place(folder: str | Path) -> tuple[int, int]:
    """What tells a folder from another one, however it is reached."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_of_the_user(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in NOT_OF_THE_USER


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
