"""Stores of several teachers' answers about the same views, combined into one; no teacher is loaded."""

import math
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..data.fingerprint import is_earlier
from ..data.sources import ImageData
from ..errors import InputError
from ..report import say_once
from .agreement import OF_TEACHER, of_several
from .ensemble import mean_logits
from .entries import decode_top_k
from .entry_files import entries_of_text
from .labelling import accuracies_of, decisions
from .store import VALIDATION, TeacherStore, create_store, in_words, is_store, short

HARD, SOFT = "majority", "mean probability"  # how answers are combined, as the field `combined` of the store says
# What two stores of the same views may differ in.
OWN_FIELDS = {*OF_TEACHER, "format", "k", "combined"}
LOGITS_AT_ONCE = 2**24


def combine(stores: Sequence[TeacherStore], directory: str | os.PathLike) -> Iterator[tuple[int, int]]:
    """Make a store of what several say together: of labels the majority, of top-k logits the mean probability.

    Yields each epoch and how many views of it were combined. Where it is killed, the same call does it again.

    Raises:
        InputError: fewer than two stores, stores about other views, or a folder that holds something else.
        LocalInputError: the disk is full or refuses.
    """
    known = check_alike(stores)
    combined = _new_store(stores, directory)
    for epoch, bits in known.items():
        views = np.flatnonzero(np.unpackbits(bits))
        for positions in _parts(combined, views):
            entries = [_read(store, epoch, positions) for store in stores]
            combined.write(epoch, positions, _together(combined, stores, entries))
        yield epoch, len(views)
    _combine_validation(combined, stores)


def know_data_alike(stores: Sequence[TeacherStore], load: Callable[[TeacherStore], ImageData]):
    """Let stores of an earlier version, which know 256 of their images, be compared with others, which know all.

    The images tell whether both are about the same, as they tell a run that reads an earlier store. From here on all
    of the stores know all images; nothing is written.

    Args:
        stores: to combine.
        load: the images that a store is about; not called where all stores know as much.

    Raises:
        InputError: the images are needed and cannot be read, or a store is about others.
    """
    earlier = [store for store in stores if is_earlier(store.fingerprint.get("dataset"))]
    others = [store for store in stores if store not in earlier]
    if not (earlier and others):
        return
    try:
        data = load(others[0])
    except InputError as error:
        raise InputError(
            f"{earlier[0].directory} is of an earlier version and knows 256 of its images, {others[0].directory} knows "
            f"all, so it takes the images to see whether they are the same, and these cannot be read: {error}; if they "
            "were moved, say where they are (--train_dir, --train_csv or --dataset_name)"
        ) from error
    for store in stores:
        theirs = store.fingerprint.get("dataset")
        if (ours := data.fingerprint(theirs)) != theirs:
            raise InputError(
                f"{store.directory} holds answers for dataset {short(theirs)}, and {data.source!r} is now "
                f"{short(ours)}; say where the images are that it was filled with (--train_dir, --train_csv or "
                "--dataset_name), or fill all stores with the same images"
            )
    for store in earlier:
        store.fingerprint["dataset"] = data.fingerprint()


def _parts(combined: TeacherStore, views: np.ndarray) -> list[np.ndarray]:
    """What belongs to views (views,), in parts whose logits fit into memory together."""
    at_once = max(1, LOGITS_AT_ONCE // combined.fingerprint["num_classes"])
    return np.split(views, range(at_once, len(views), at_once))


def _read(store: TeacherStore, epoch: int, positions: np.ndarray) -> np.ndarray:
    """Answers that were there when the stores were compared."""
    entries, known = store.read(epoch, positions)
    if not known.all():
        reason = store.damage() or f"{store.directory} changed meanwhile"
        raise InputError(f"{np.count_nonzero(~known):,} views of epoch {epoch} cannot be read ({reason}); run it again")
    return entries


def check_alike(stores: Sequence[TeacherStore]) -> dict[int, np.ndarray]:
    """Refuse stores that are not about the same views; what all know of each epoch, as [`_known_views`].

    Raises:
        InputError: the first field that differs and both values.
    """
    first, *others = stores
    if not others:
        raise InputError(f"{first.directory} is one store; name two or more to combine")
    folders = [store.directory.resolve() for store in stores]
    if twice := [
        str(store.directory) for store, folder in zip(stores, folders, strict=True) if folders.count(folder) > 1
    ]:
        raise InputError(f"{twice[0]} is named twice; name each store once")
    for other in others:
        _check_fields(first, other)
    known = _known_views(first)
    for other in others:
        _check_known(first, known, other)
    if not known:
        raise InputError(f"{first.directory} holds no answers yet, so there is nothing to combine; fill it first")
    return known


def _check_fields(first: TeacherStore, other: TeacherStore):
    for name in {**first.fingerprint, **other.fingerprint}:
        if name not in OWN_FIELDS:
            _check_equal(name, (first, first.fingerprint.get(name)), (other, other.fingerprint.get(name)))


def _check_equal(name: str, *held: tuple[TeacherStore, object]):
    (first, ours), (other, theirs) = held
    if ours != theirs:
        raise InputError(
            f"{first.directory} holds answers for {name} {short(ours)}, {other.directory} for {short(theirs)}; "
            "only stores about the same views can be combined: fill both alike"
        )


def _known_views(store: TeacherStore) -> dict[int, np.ndarray]:
    """Which views are known of each epoch of which any is, as bits (views / 8,): a store is read for it."""
    found = {epoch: np.packbits(store.known(epoch)) for epoch in store.epochs()}
    return {epoch: bits for epoch, bits in found.items() if bits.any()}


def _runs(epochs: Sequence[int]) -> str:
    """Ascending numbers in words: `0-99, 120`."""
    firsts = [epoch for epoch in epochs if epoch - 1 not in epochs]
    lasts = [epoch for epoch in epochs if epoch + 1 not in epochs]
    pairs = zip(firsts, lasts, strict=True)
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in pairs)


def _check_known(first: TeacherStore, known: dict[int, np.ndarray], other: TeacherStore):
    theirs = _known_views(other)
    _check_equal("epochs", (first, _runs([*known])), (other, _runs([*theirs])))
    for epoch, ours in known.items():
        if not np.array_equal(ours, theirs[epoch]):
            numbers = [np.unpackbits(bits).sum() for bits in (ours, theirs[epoch])]
            damage = "; ".join(filter(None, (first.damage(), other.damage())))
            damage = f" ({damage})" if damage else ""
            raise InputError(
                f"of epoch {epoch} {first.directory} knows {numbers[0]:,} views and {other.directory} {numbers[1]:,}"
                f", not the same{damage}; fill both alike by examples/label_with_teacher.py"
            )


def _new_store(stores: Sequence[TeacherStore], directory: str | os.PathLike) -> TeacherStore:
    first = stores[0]
    of_teachers = [{name: store.fingerprint.get(name) for name in OF_TEACHER} for store in stores]
    fingerprint = {name: value for name, value in first.fingerprint.items() if name not in OWN_FIELDS}
    fingerprint |= {**of_several(of_teachers), "teacher_training": None}
    fingerprint["combined"] = HARD if fingerprint["distillation_type"] == "hard" else SOFT
    if fingerprint["combined"] == SOFT:
        fingerprint["k"] = max(store.fingerprint["k"] for store in stores)
    if is_store(directory):
        held = {name: value for name, value in TeacherStore(directory).fingerprint.items() if name != "format"}
        if fields := [name for name in {**held, **fingerprint} if held.get(name) != fingerprint.get(name)]:
            raise InputError(
                f"{directory} holds another store, which differs in {', '.join(fields)}; choose a new folder"
            )
    names = [in_words(store.about.get("teacher") or store.directory.name) for store in stores]
    return create_store(directory, fingerprint, {"teacher": names, "data": first.about.get("data")})


def _together(combined: TeacherStore, stores: Sequence[TeacherStore], entries: Sequence[np.ndarray]) -> np.ndarray:
    """Entries (views,) from those of each store, (views,)."""
    agreed = combined.fingerprint
    if agreed["combined"] == HARD:
        return majority(np.stack(entries))
    num_classes, temperature = agreed["num_classes"], agreed["temperature"]
    return combined.encode(mean_logits([decode_top_k(each, num_classes, temperature, "cpu") for each in entries]))


def majority(labels: np.ndarray) -> np.ndarray:
    """The most frequent of the labels (stores, views) of each view, (views,); of equally frequent ones the first."""
    votes = (labels[:, None] == labels[None]).sum(axis=1)  # (stores, views), how many say what each says
    return np.take_along_axis(labels, votes.argmax(axis=0)[None], axis=0)[0]


def _combine_validation(combined: TeacherStore, stores: Sequence[TeacherStore]):
    """What all say together about the validation images, by the same rule as about the views.

    Where it cannot be known there is none, which is said.
    """
    kept = [store.validation() for store in stores]
    shown = [None if each is None else (each["view"], each["labels"]) for each in kept]
    if None in shown or any(each != shown[0] for each in shown):
        return _leave_out_validation(combined, "the stores hold no answers about the same validation images")
    answers, labels = np.array([each["answers"] for each in kept]), np.array(kept[0]["labels"])
    entries = _validation_entries(combined, stores, kept)
    if combined.is_soft and entries is None and (answers != answers[0]).any():
        lacking = [str(store.directory) for store, each in zip(stores, kept, strict=True) if "entries" not in each]
        reason = "decisions alone about the validation images, which do not give those of the mean probability"
        return _leave_out_validation(combined, f"{' and '.join(lacking)} have {reason}")
    together = majority(answers) if entries is None else decisions(entries)
    accuracy = float(np.mean(together == labels)) if len(labels) else math.nan
    combined.write_validation(shown[0][0], accuracy, together, labels, accuracies_of(answers, labels), entries)


def _validation_entries(
    combined: TeacherStore, stores: Sequence[TeacherStore], kept: Sequence[dict]
) -> np.ndarray | None:
    """Soft answers of all together about the validation images, (images,); None if a store has not its own."""
    if not kept[0]["labels"] or not all("entries" in each for each in kept):
        return None
    each = [entries_of_text(one["entries"], store.dtype) for one, store in zip(kept, stores, strict=True)]
    parts = [_together(combined, stores, part) for part in zip(*(_parts(combined, one) for one in each), strict=True)]
    return np.concatenate(parts)


def _leave_out_validation(combined: TeacherStore, reason: str):
    say_once(f"{combined.directory}: {reason}; the accuracy of the teachers together is left out")
    (combined.directory / VALIDATION).unlink(missing_ok=True)  # of an earlier call
