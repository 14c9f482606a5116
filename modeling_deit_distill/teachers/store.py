"""What a teacher said about each view, kept on disk: asked once, read by every later run.

The answer about a view is a pure function of the view, and a view is (image, epoch, position) under one seed and one
set of augmentations. So a store is a folder with

- `store.json`: what the answers are about. Whoever reads them must agree with every field of it.
- `epoch-00000.bin`, ...: one entry for each position of an epoch, all of one size, in blocks with checksums; see
  `entry_files.py`.
- `validation.json`: the teacher's decisions about the validation images, its accuracy, and of soft answers the entries.

`store.json` and `validation.json` hold a checksum of their own content, and the store's identity: a hash of what it
must agree about, which each file of entries begins with. What does not agree with its checksum is named, counted and
not used. Several processes write beside each other. A store of format 1, of earlier versions, has neither checksums
nor an identity; `upgrade.py` brings them in.
"""

import contextlib
import datetime
import json
import logging
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..data.views import with_current_names
from ..errors import InputError, LocalInputError, one_line, printable
from ..files import check_json, read_json, with_checksum, without_folders, write_json
from ..report import say_once
from .agreement import DIFFERENCES, OF_TEACHER, ONLY_IF_ANY, REMEDIES
from .entries import encode_labels, encode_top_k
from .entry_files import (
    BlockFile,
    PlainFile,
    begins_with_magic,
    entries_in_text,
    entries_of_text,
    entry_dtype,
    identity_of,
    is_known,
    is_sound,
)

FORMAT, FORMAT_WITHOUT_CHECKSUMS = 2, 1
DESCRIPTION, VALIDATION = "store.json", "validation.json"
EPOCH_FILE = re.compile(r"epoch-(\d{5,9})\.bin", re.ASCII)
DEFAULT_TOP_K = 10
MAX_VIEWS, MAX_CLASSES = 2**40, 2**31 - 2
WITHOUT_CHECKSUMS = (
    "teacher_store {!r} was written by an earlier version, without checksums: damage to its answers cannot be found. "
    "`python -m modeling_deit_distill.store_cli upgrade {}` adds them"
)
VIEWS_READ_AT_ONCE = 8192
MAX_VALIDATION_BYTES = 2**24  # of entries in `validation.json`: of 50,000 images the 82 highest logits
MAX_NAMED = 3  # damaged parts of a file
IDENTITY = re.compile("[0-9a-f]{16}")

logger = logging.getLogger(__name__)


class TeacherStore:
    """The stored answers of one teacher about the views of one dataset; [`create_store`] makes a new one.

    Raises:
        InputError: no store, or one of a later format.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        path = self.directory / DESCRIPTION
        try:
            description = read_json(path)
            self.fingerprint = with_current_names(dict(description["fingerprint"]))
            self.about = printable(dict(description["about"]))
            self._check_format(description)
            self.identity = _identity(description, self.has_checksums)
            self.dtype, self.num_views = _layout(self.fingerprint)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"teacher_store {str(directory)!r} is no store: it has no {DESCRIPTION}") from None
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"{path} cannot be read ({reason}); fetch it anew, or fill another store") from error
        self.damaged: dict[str, list[str]] = {}
        if not self.has_checksums:
            say_once(WITHOUT_CHECKSUMS.format(str(self.directory), shlex.quote(str(self.directory))))

    @property
    def has_checksums(self) -> bool:
        """Whether it is of the current format."""
        return self.fingerprint["format"] == FORMAT

    @property
    def is_soft(self) -> bool:
        """Whether it keeps logits, and not labels."""
        return self.fingerprint["distillation_type"] == "soft"

    def check(self, wanted: Mapping[str, object]):
        """Refuse to be read by a run to which the answers do not apply.

        Raises:
            InputError: the first field that differs, both values and the remedy.
        """
        for field, ours in wanted.items():
            theirs, ours = self.fingerprint.get(field), json.loads(json.dumps(ours))  # tuples as JSON keeps them
            if theirs == ours or field in DIFFERENCES and DIFFERENCES[field](theirs, ours) is None:
                continue
            words = {"theirs": in_words(printable(theirs)), "teacher": in_words(self.about.get("teacher"))}
            remedy = REMEDIES[field].format(field=field, **words)
            if isinstance(theirs, dict) and isinstance(ours, dict):
                field, theirs, ours = _first_difference(field, theirs, ours)
            elif field in OF_TEACHER and isinstance(self.fingerprint.get("teacher_weights"), list):
                field, theirs, ours = _first_teacher(field, theirs, ours)
            raise InputError(
                f"teacher_store {str(self.directory)!r} holds answers for {field} {short(theirs)}, this run has "
                f"{short(ours)}; {remedy}, or choose another --teacher_store"
            )

    def read(self, epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Entries (views,) at the positions of an epoch, and which of them are known, (views,) bool.

        What is damaged is not known; it is said, and kept in `damaged`.

        Raises:
            InputError: the file of the epoch is of another epoch or another store.
            LocalInputError: the disk refuses.
        """
        entries, known, damaged = self._read(epoch, positions)
        self._say_damaged(self.path(epoch).name, damaged)
        return entries, known

    def known(self, epoch: int, num_views: int | None = None) -> np.ndarray:
        """Which of the epoch's first `num_views` positions, all by default, are known, (views,) bool."""
        number = self.num_views if num_views is None else min(num_views, self.num_views)
        parts, damaged = [np.zeros(0, bool)], []
        for first in range(0, number, VIEWS_READ_AT_ONCE):
            positions = np.arange(first, min(first + VIEWS_READ_AT_ONCE, number))
            _, known, found = self._read(epoch, positions)
            parts.append(known)
            damaged += found
        self._say_damaged(self.path(epoch).name, damaged)
        return np.concatenate(parts)

    def write(self, epoch: int, positions: np.ndarray, entries: np.ndarray):
        """Keep the entries (views,) of an epoch's positions; at once, in the operating system's hands.

        Raises:
            InputError: the file of the epoch is of another epoch or another store.
            LocalInputError: the disk is full or refuses; what the store holds is intact.
        """
        self._check_positions(positions)
        with disk_errors_named(self.path(epoch)):
            self.file(epoch).write(positions, entries)

    def encode(self, logits: torch.Tensor) -> np.ndarray:
        """A teacher's logits (views, classes) as entries (views,) of this store.

        Raises:
            LocalInputError: logits that are no numbers, or too large for the half precision in which they are kept.
        """
        if not logits.isfinite().all():
            raise LocalInputError(
                "the teacher answers with NaN or infinity, which is not stored; give --teacher_precision bf16 or fp32"
            )
        if self.fingerprint["distillation_type"] == "hard":
            return encode_labels(logits, self.dtype)
        entries = encode_top_k(logits, self.dtype, self.fingerprint["temperature"])
        if not is_sound(entries, self.fingerprint["num_classes"]).all():  # after rounding to half precision
            largest = logits.abs().max().item()
            raise LocalInputError(
                f"the teacher answers with a logit of {largest:,.0f}, and a store keeps them up to 65,504; give "
                "--distillation_type hard with another --teacher_store, or no --teacher_store"
            )
        return entries

    def count(self, epoch: int, num_views: int | None = None) -> int:
        """How many of the epoch's first `num_views` positions, all by default, are known."""
        return int(np.count_nonzero(self.known(epoch, num_views)))

    def count_all(self) -> int:
        """How many views are known, of all epochs."""
        return sum(map(self.count, self.epochs()))

    def missing(self, views_by_epoch: Mapping[int, int]) -> dict[int, int]:
        """How many views of a run, for each epoch its first so many positions, are not known; by epoch, if any."""
        lacking = {epoch: views - self.count(epoch, views) for epoch, views in views_by_epoch.items()}
        return {epoch: number for epoch, number in lacking.items() if number}

    def holds(self, views_by_epoch: Mapping[int, int]) -> bool:
        """Whether all views of a run are known."""
        return not self.missing(views_by_epoch)

    def damage(self) -> str:
        """What was found damaged so far, in words; empty if nothing was."""
        return "; ".join(f"{name} is damaged ({_some(parts)})" for name, parts in sorted(self.damaged.items()))

    def epochs(self) -> list[int]:
        """The epochs that have a file; of some of them nothing may be known yet."""
        matches = (EPOCH_FILE.fullmatch(path.name) for path in self.directory.glob("epoch-*.bin"))
        return sorted(int(match[1]) for match in matches if match)

    def path(self, epoch: int) -> Path:
        """The file of an epoch's entries."""
        return self.directory / f"epoch-{epoch:05d}.bin"

    def file(self, epoch: int) -> BlockFile | PlainFile:
        """The file of an epoch, in the store's format; a store that is being upgraded has both."""
        path = self.path(epoch)
        if self.has_checksums or begins_with_magic(path):
            if self.identity is None:
                raise InputError(f"{path} has checksums, {DESCRIPTION} has none; fetch {DESCRIPTION} anew")
            return BlockFile(path, epoch, self.identity, self.dtype, self.num_views)
        return PlainFile(path, self.dtype, self.num_views)

    def read_validation(self, view: str) -> dict | None:
        """The `accuracy`, the `answers` and the true `labels` (class indices) of the validation images, if known.

        Besides `members`, the accuracy of each of several teachers.

        None where they were shown otherwise than `view` says, and where they are damaged, which is said.
        """
        kept = self.validation()
        return kept if kept is not None and kept["view"] == view else None

    def write_validation(
        self,
        view: str,
        accuracy: float,
        answers: np.ndarray,
        labels: np.ndarray,
        members: Sequence[float] = (),
        entries: np.ndarray | None = None,
    ):
        """Keep what the teacher said about the validation images, shown as `view` says.

        Args:
            view, accuracy: how they were shown, and the share of right answers.
            answers, labels: (images,) class indices.
            members: the accuracies of each of several teachers, of whose answers `answers` are.
            entries: (images,) of soft answers, without which stores cannot be combined here; not kept where they take
                more than 16 MiB.
        """
        kept = {"view": view, "accuracy": accuracy, "answers": answers.tolist(), "labels": labels.tolist()}
        kept |= {"members": list(members)} if members else {}
        if entries is not None and entries.nbytes <= MAX_VALIDATION_BYTES:
            kept["entries"] = entries_in_text(entries)
        self.keep_validation(kept)

    def keep_validation(self, kept: dict):
        """Write what [`validation`] returns, without its checksum."""
        if self.has_checksums:
            kept = with_checksum({"identity": self.identity, **kept})
        with disk_errors_named(self.directory / VALIDATION):
            write_json(self.directory / VALIDATION, kept, indent=None)

    def validation(self) -> dict | None:
        """What is known about the validation images, however they were shown."""
        path = self.directory / VALIDATION
        try:
            kept = read_json(path)
            if self.has_checksums:
                check_json(kept)
                if kept["identity"] != self.identity:
                    raise ValueError("it is of another store")
            for name in ("answers", "labels"):
                _check_classes(kept[name], self.fingerprint["num_classes"])
            shares = [kept["accuracy"], *kept.get("members", [])]
            if len(kept["answers"]) != len(kept["labels"]) or not all(0 <= share <= 1 for share in shares):
                raise ValueError("its answers are not complete")
            if "entries" in kept:
                self._check_entries(entries_of_text(kept["entries"], self.dtype), len(kept["answers"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._say_damaged(VALIDATION, [f"{type(error).__name__}: {one_line(error)}"])
            return None
        return kept

    def _check_entries(self, entries: np.ndarray, number: int):
        if len(entries) != number or not is_sound(entries, self.fingerprint["num_classes"]).all():
            raise ValueError("its entries are not those of its answers")

    def _check_format(self, description: Mapping):
        if self.fingerprint["format"] != FORMAT_WITHOUT_CHECKSUMS:
            self.check({"format": FORMAT})
        if self.has_checksums or "checksum" in description:
            check_json(description)

    def _say_damaged(self, name: str, damaged: list[str]):
        """Say which parts of a file are damaged, each once."""
        noted = self.damaged.setdefault(name, []) if damaged else []
        new = [part for part in damaged if part not in noted]
        noted += new
        if new:
            logger.warning("%s is damaged (%s); that is not used", self.directory / name, _some(new))

    def _read(self, epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Entries, which of them are known, and what of them is damaged, in words."""
        self._check_positions(positions)
        with disk_errors_named(self.path(epoch), "read"):
            entries, damaged = self.file(epoch).read(positions)
        known = is_known(entries)
        unsound = known & ~is_sound(entries, self.fingerprint["num_classes"])
        if unsound.any():
            damaged += [f"view {position:,}" for position in positions[unsound].tolist()]
            entries, known = np.where(unsound, np.zeros((), self.dtype), entries), known & ~unsound
        return entries, known, damaged

    def _check_positions(self, positions: np.ndarray):
        if len(positions) and positions.max() >= self.num_views:
            raise InputError(
                f"teacher_store {str(self.directory)!r} has room for {self.num_views:,} views of an epoch, this run "
                f"asks for position {positions.max():,}; choose another --teacher_store, or a smaller batch"
            )


def in_words(value: object) -> str:
    """A value, or a list of several, as it is given on a command line."""
    return " ".join(map(in_words, value)) if isinstance(value, list) else str(value)


def is_store(directory: str | os.PathLike | None) -> bool:
    """Whether there is a store to be read."""
    return directory is not None and Path(directory, DESCRIPTION).exists()


def check_store_folder(directory: str | os.PathLike, is_written: bool):
    """Refuse a folder that can become no store, or to which no answers can be written; nothing is made.

    Args:
        directory: of the store, whether it is there or not.
        is_written: whether answers will be written.

    Raises:
        InputError: with the remedy.
    """
    directory = Path(directory)
    name = f"teacher_store {str(directory)!r}"
    if not is_store(directory):
        _check_new(directory)
    above = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if is_written and not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise InputError(f"{name} cannot be written to; choose another folder, or make {str(above)!r} writable")
    if (directory / VALIDATION).is_dir():
        raise InputError(f"{name} holds a folder {VALIDATION!r}, where a file belongs; move it away")


def _check_new(directory: Path):
    """Refuse to make a store in a folder that holds something else."""
    others = [path for path in directory.iterdir() if path.suffix != ".partial"] if directory.is_dir() else []
    if (others or directory.is_file()) and not is_store(directory):  # another process may have made it meanwhile
        raise InputError(
            f"teacher_store {str(directory)!r} exists and is no store; choose a new folder, so that nothing of yours "
            "is mixed with it"
        )


def create_store(directory: str | os.PathLike, fingerprint: Mapping[str, object], about: Mapping[str, object]):
    """Make an empty store, or find the same one made by another process at the same moment.

    Args:
        fingerprint: what the answers depend on; see `agreement.py`. For soft distillation without a k it is 10.
        about: what a reader may want to know besides (names, sources); never compared.

    Raises:
        InputError: the folder holds something else, or another store.
    """
    directory = Path(directory)
    fingerprint = {name: each for name, each in fingerprint.items() if name not in ONLY_IF_ANY or each is not None}
    if fingerprint["distillation_type"] == "soft":
        fingerprint.setdefault("k", min(DEFAULT_TOP_K, fingerprint["num_classes"]))
    if not (directory / DESCRIPTION).exists():
        name = f"teacher_store {str(directory)!r}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _check_new(directory)
        except OSError as error:
            raise InputError(f"{name} cannot be made ({error}); choose another folder") from error
        about = {"created": datetime.date.today().isoformat(), **about}
        write_description(directory, {**fingerprint, "format": FORMAT}, about, identity_of_store(fingerprint), False)
    store = TeacherStore(directory)
    store.check({name: value for name, value in fingerprint.items() if name != "format"})
    return store


def write_description(
    directory: Path, fingerprint: Mapping, about: Mapping, identity: str | None, replace: bool = True
):
    """Write `store.json`, with its checksum."""
    with disk_errors_named(directory / DESCRIPTION):
        write_json(directory / DESCRIPTION, described(fingerprint, about, identity), replace)


def described(fingerprint: Mapping, about: Mapping, identity: str | None) -> dict[str, object]:
    """What `store.json` holds; nothing but `fingerprint` and `about` without an identity, as earlier versions did."""
    content = json.loads(json.dumps({"fingerprint": fingerprint, "about": about}))  # tuples as JSON keeps them
    return content if identity is None else with_checksum({**content, "identity": identity})


def identity_of_store(fingerprint: Mapping) -> str:
    """The identity of a new store: of what it must agree about, wherever its folders are."""
    agreed = {name: value for name, value in fingerprint.items() if name != "format"}
    return identity_of(without_folders(json.loads(json.dumps(agreed))))


@contextlib.contextmanager
def disk_errors_named(path: Path, done: str = "written"):
    """Errors of the disk become a `LocalInputError` that names the file."""
    try:
        yield
    except OSError as error:  # of this process alone
        raise LocalInputError(f"{path} cannot be {done} ({error}); what it holds is intact") from error


def _layout(fingerprint: Mapping) -> tuple[np.dtype, int]:
    """The layout of an entry, and how many an epoch has."""
    if fingerprint["distillation_type"] not in ("hard", "soft"):
        raise ValueError(f"distillation_type is {short(fingerprint['distillation_type'])}")
    highest = {"num_views": MAX_VIEWS, "num_classes": MAX_CLASSES}
    if fingerprint["distillation_type"] == "soft":
        highest["k"] = fingerprint["num_classes"]
        if not fingerprint["temperature"] > 0:
            raise ValueError(f"temperature is {short(fingerprint['temperature'])}")
    for name, most in highest.items():
        if type(fingerprint[name]) is not int or not 1 <= fingerprint[name] <= most:
            raise ValueError(f"{name} is {short(fingerprint[name])}")
    return entry_dtype(fingerprint), fingerprint["num_views"]


def _identity(description: Mapping, is_needed: bool) -> str | None:
    identity = description.get("identity")
    if (identity is None and not is_needed) or (isinstance(identity, str) and IDENTITY.fullmatch(identity)):
        return identity
    raise ValueError(f"identity is {short(identity)}")


def _check_classes(indices: list, num_classes: int):
    for index in indices:
        if type(index) is not int or not 0 <= index < num_classes:
            raise ValueError(f"it holds class {short(index)} of {num_classes}")


def _some(parts: list[str]) -> str:
    """The first of several things, and how many there are."""
    more = f" and {len(parts) - MAX_NAMED:,} more" if len(parts) > MAX_NAMED else ""
    return ", ".join(parts[:MAX_NAMED]) + more


def _first_difference(field: str, theirs: dict, ours: dict) -> tuple[str, object, object]:
    for name in [*theirs, *ours]:
        if theirs.get(name) != ours.get(name):
            return f"{field}.{name}", theirs.get(name), ours.get(name)
    return field, theirs, ours


def _first_teacher(field: str, theirs: list, ours: object) -> tuple[str, object, object]:
    """Of a field of several teachers the first in which they differ, or how many teachers there are."""
    if field == "teacher_weights" and (not isinstance(ours, list) or len(ours) != len(theirs)):
        return "num_teachers", len(theirs), len(ours) if isinstance(ours, list) else 1
    if not (isinstance(theirs, list) and isinstance(ours, list)):  # one precision of all
        return field, theirs, ours
    place = next(place for place, (one, other) in enumerate(zip(theirs, ours, strict=True)) if one != other)
    return f"{field} of teacher {place + 1}", theirs[place], ours[place]


def short(value: object) -> str:
    """A value as JSON, of a long one the beginning."""
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:70]}..."
