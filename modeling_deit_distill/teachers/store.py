"""What a teacher said about each view, kept on disk: asked once, read by every later run.

The answer about a view is a pure function of the view, and a view is (image, epoch, position) under one seed and one
set of augmentations. So a store is a folder with

- `store.json`: what the answers are about. Whoever reads them must agree with every field of it.
- `epoch-00000.bin`, ...: one entry for each position of an epoch, all of one size, addressed by position.
- `validation.json`: the teacher's answers about the validation images, and its accuracy.

A file of entries is made at its full size, empty; a hole reads as zeros, which no answer is, so it is a view that
nobody asked about yet. Entries are written in one piece, front to back, with what tells them from a hole at their
end: a writer that is killed leaves each of them whole or absent. Several processes write beside each other.
"""

import contextlib
import datetime
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ..data.views import with_current_names
from ..errors import InputError, LocalInputError
from ..files import write_json
from .agreement import REMEDIES

FORMAT = 1
DESCRIPTION, VALIDATION = "store.json", "validation.json"
MAX_INT16 = 32_767
DEFAULT_TOP_K = 10


class TeacherStore:
    """The stored answers of one teacher about the views of one dataset; [`create_store`] makes a new one.

    Raises:
        InputError: no store, or one of a later format.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        path = self.directory / DESCRIPTION
        try:
            description = json.loads(path.read_text())
            self.fingerprint = with_current_names(dict(description["fingerprint"]))
            self.about = dict(description["about"])
            self.check({"format": FORMAT})
            self.dtype, self.num_views = entry_dtype(self.fingerprint), int(self.fingerprint["num_views"])
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"teacher_store {str(directory)!r} is no store: it has no {DESCRIPTION}") from None
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{path} cannot be read ({reason}); fetch it anew, or fill another store") from error
        self._open_epoch: tuple[int, np.ndarray] | None = None

    def check(self, wanted: Mapping[str, object]):
        """Refuse to be read by a run to which the answers do not apply.

        Raises:
            InputError: the first field that differs, both values and the remedy.
        """
        for field, ours in wanted.items():
            theirs, ours = self.fingerprint.get(field), json.loads(json.dumps(ours))  # tuples as JSON keeps them
            if theirs == ours:
                continue
            remedy = REMEDIES[field].format(field=field, theirs=theirs, teacher=self.about.get("teacher"))
            if isinstance(theirs, dict) and isinstance(ours, dict):
                field, theirs, ours = _first_difference(field, theirs, ours)
            raise InputError(
                f"teacher_store {str(self.directory)!r} holds answers for {field} {_short(theirs)}, this run has "
                f"{_short(ours)}; {remedy}, or choose another --teacher_store"
            )

    def read(self, epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Entries (views,) at the positions of an epoch, and which of them are known, (views,) bool."""
        self._check_positions(positions)
        entries = self._entries(epoch)
        if entries is None:
            return np.zeros(len(positions), self.dtype), np.zeros(len(positions), bool)
        known = is_known(entries[positions])  # first: what is known now is whole when it is read
        found = np.where(known, entries[positions], np.zeros((), self.dtype))
        highest = found if found.dtype.names is None else found["classes"]
        if highest.size and not 0 <= highest.min() <= highest.max() <= self.fingerprint["num_classes"]:
            raise InputError(
                f"{self.path(epoch)} holds class {highest.max() - 1} of {self.fingerprint['num_classes']}: it was "
                "damaged; delete it (the teacher is asked again), or fetch it anew"
            )
        return found, known

    def write(self, epoch: int, positions: np.ndarray, entries: np.ndarray):
        """Keep the entries (views,) of an epoch's positions; at once, in the operating system's hands.

        Raises:
            LocalInputError: the disk is full or refuses; what the store holds is intact.
        """
        self._check_positions(positions)
        path = self.path(epoch)
        with _disk_errors_named(path):
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if os.fstat(file).st_size == 0:
                    os.ftruncate(file, self.num_views * self.dtype.itemsize)
                self._check_size(path)
                order = np.argsort(positions, kind="stable")
                for run in np.split(order, np.flatnonzero(np.diff(positions[order]) != 1) + 1):
                    if len(run):
                        _write_at(file, int(positions[run[0]]) * self.dtype.itemsize, entries[run].tobytes())
            finally:
                os.close(file)

    def encode(self, logits: torch.Tensor) -> np.ndarray:
        """A teacher's logits (views, classes) as entries (views,) of this store.

        Raises:
            LocalInputError: logits that are no numbers.
        """
        if not logits.isfinite().all():
            raise LocalInputError(
                "the teacher answers with NaN or infinity, which is not stored; give --teacher_precision bf16 or fp32"
            )
        if self.fingerprint["distillation_type"] == "hard":
            return encode_labels(logits, self.dtype)
        return encode_top_k(logits, self.dtype, self.fingerprint["temperature"])

    def count(self, epoch: int, num_views: int | None = None) -> int:
        """How many of the epoch's first `num_views` positions, all by default, are known."""
        entries = self._entries(epoch)
        return 0 if entries is None else int(np.count_nonzero(is_known(entries[:num_views])))

    def missing(self, views_by_epoch: Mapping[int, int]) -> dict[int, int]:
        """How many views of a run, for each epoch its first so many positions, are not known; by epoch, if any."""
        lacking = {epoch: views - self.count(epoch, views) for epoch, views in views_by_epoch.items()}
        return {epoch: number for epoch, number in lacking.items() if number}

    def holds(self, views_by_epoch: Mapping[int, int]) -> bool:
        """Whether all views of a run are known."""
        return not self.missing(views_by_epoch)

    def epochs(self) -> list[int]:
        """The epochs that have a file; of some of them nothing may be known yet."""
        numbers = (path.stem.removeprefix("epoch-") for path in self.directory.glob("epoch-*.bin"))
        return sorted(int(number) for number in numbers if number.isdigit())

    def path(self, epoch: int) -> Path:
        """The file of an epoch's entries."""
        return self.directory / f"epoch-{epoch:05d}.bin"

    def read_validation(self, view: str) -> dict | None:
        """The `accuracy`, the `answers` and the true `labels` (class indices) of the validation images, if known."""
        try:
            kept = json.loads((self.directory / VALIDATION).read_text())
            answered = kept["view"] == view and len(kept["answers"]) == len(kept["labels"]) and kept["accuracy"] >= 0
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return kept if answered else None

    def write_validation(self, view: str, accuracy: float, answers: np.ndarray, labels: np.ndarray):
        """Keep what the teacher said about the validation images, shown as `view` says."""
        kept = {"view": view, "accuracy": accuracy, "answers": answers.tolist(), "labels": labels.tolist()}
        with _disk_errors_named(self.directory / VALIDATION):
            write_json(self.directory / VALIDATION, kept, indent=None)

    def _entries(self, epoch: int) -> np.ndarray | None:
        """The mapped entries of an epoch, None where nothing is known."""
        if self._open_epoch is None or self._open_epoch[0] != epoch:
            path = self.path(epoch)
            if not path.exists() or path.stat().st_size == 0:  # being made at this moment
                return None
            self._check_size(path)
            self._open_epoch = (epoch, np.memmap(path, self.dtype, mode="r"))
        return self._open_epoch[1]

    def _check_size(self, path: Path):
        size, expected = path.stat().st_size, self.num_views * self.dtype.itemsize
        if size != expected:
            raise InputError(
                f"{path} has {size:,} bytes where {self.num_views:,} views take {expected:,}: it was damaged; delete "
                "it (the teacher is asked again), or fetch it anew"
            )

    def _check_positions(self, positions: np.ndarray):
        if len(positions) and positions.max() >= self.num_views:
            raise InputError(
                f"teacher_store {str(self.directory)!r} has room for {self.num_views:,} views of an epoch, this run "
                f"asks for position {positions.max():,}; choose another --teacher_store, or a smaller batch"
            )


def is_store(directory: str | os.PathLike | None) -> bool:
    """Whether there is a store to be read."""
    return directory is not None and Path(directory, DESCRIPTION).exists()


def create_store(directory: str | os.PathLike, fingerprint: Mapping[str, object], about: Mapping[str, object]):
    """Make an empty store, or find the same one made by another process at the same moment.

    Args:
        fingerprint: what the answers depend on; see `agreement.py`. For soft distillation without a k it is 10.
        about: what a reader may want to know besides (names, sources); never compared.

    Raises:
        InputError: the folder holds something else, or another store.
    """
    directory, fingerprint = Path(directory), dict(fingerprint)
    if fingerprint["distillation_type"] == "soft":
        fingerprint.setdefault("k", min(DEFAULT_TOP_K, fingerprint["num_classes"]))
    if not (directory / DESCRIPTION).exists():
        name = f"teacher_store {str(directory)!r}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            others = [path for path in directory.iterdir() if path.suffix != ".partial"]
        except OSError as error:
            raise InputError(f"{name} cannot be made ({error}); choose another folder") from error
        if others and not (directory / DESCRIPTION).exists():  # another process may have made the store meanwhile
            raise InputError(
                f"{name} exists and is no store; choose a new folder, so that nothing of yours is mixed with it"
            )
        created = datetime.date.today().isoformat()
        description = {"fingerprint": {"format": FORMAT, **fingerprint}, "about": {"created": created, **about}}
        with _disk_errors_named(directory / DESCRIPTION):
            write_json(directory / DESCRIPTION, description, replace=False)
    store = TeacherStore(directory)
    store.check(fingerprint)
    return store


def entry_dtype(fingerprint: Mapping[str, object]) -> np.dtype:
    """The layout of one entry: a label, or the k highest logits and the log-sum-exp of all of them.

    A label takes two bytes, top-k 4k + 4 (above 32,767 classes four, or 6k + 4 and two more for an odd k). Classes
    are counted from one, so that zeros are no answer; what is written last, the label or the k-th class, tells an
    entry from a hole.
    """
    integer = "<i2" if fingerprint["num_classes"] <= MAX_INT16 else "<i4"
    if fingerprint["distillation_type"] == "hard":
        return np.dtype(integer)
    k = (fingerprint["k"],)
    # So that no page of memory ends within the class that tells an entry from a hole.
    padding = [("padding", "<i2")] if integer == "<i4" and fingerprint["k"] % 2 else []
    return np.dtype([("log_sum_exp", "<f4"), ("logits", "<f2", k), *padding, ("classes", integer, k)])


def is_known(entries: np.ndarray) -> np.ndarray:
    """Which entries are answers and not holes, bool of the same shape."""
    return (entries if entries.dtype.names is None else entries["classes"][..., -1]) != 0


def encode_labels(logits: torch.Tensor, dtype: np.dtype) -> np.ndarray:
    """The teacher's decisions about logits (views, classes), as entries (views,)."""
    return (logits.argmax(dim=-1) + 1).cpu().numpy().astype(dtype)


def decode_labels(entries: np.ndarray, device) -> torch.Tensor:
    """Class indices (views,) on the device."""
    return torch.from_numpy(entries.astype(np.int64) - 1).to(device, non_blocking=True)


def encode_top_k(logits: torch.Tensor, dtype: np.dtype, temperature: float) -> np.ndarray:
    """The k highest of logits (views, classes) and what is needed to place the rest, as entries (views,).

    The log-sum-exp is that of all logits / τ. Logits are kept in half precision; it is computed from the kept values,
    so that the k highest never have more than the whole mass.
    """
    k = dtype["classes"].shape[0]
    highest, classes = logits.float().topk(k, dim=-1)
    kept = highest.half()
    logits = logits.float().scatter(-1, classes, kept.float())
    entries = np.zeros(len(logits), dtype)
    entries["log_sum_exp"] = torch.logsumexp(logits / temperature, dim=-1).cpu().numpy()
    entries["logits"] = kept.cpu().numpy()
    entries["classes"] = (classes + 1).cpu().numpy()
    return entries


def decode_top_k(entries: np.ndarray, num_classes: int, temperature: float, device) -> torch.Tensor:
    """Logits (views, classes) from entries (views,) that were encoded at the same temperature.

    Their distribution at it has the teacher's k highest probabilities. The mass that these leave is spread evenly over
    the other classes.
    """
    log_sum_exp, highest, classes = (
        torch.from_numpy(np.ascontiguousarray(entries[name])).to(device, non_blocking=True)
        for name in ("log_sum_exp", "logits", "classes")
    )
    highest, classes = highest.float(), classes.long() - 1
    rest = num_classes - classes.shape[-1]
    if rest == 0:
        return torch.empty(len(classes), num_classes, device=device).scatter_(-1, classes, highest)
    share = torch.exp(highest / temperature - log_sum_exp[:, None]).sum(dim=-1)
    left = torch.log((1 - share).clamp(min=torch.finfo(torch.float32).tiny)) - math.log(rest)
    elsewhere = temperature * (log_sum_exp + left)
    return elsewhere[:, None].repeat(1, num_classes).scatter_(-1, classes, highest)


def _write_at(file: int, offset: int, content: bytes):
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


@contextlib.contextmanager
def _disk_errors_named(path: Path):
    try:
        yield
    except OSError as error:  # of this process alone
        raise LocalInputError(f"{path} cannot be written ({error}); what it holds is intact") from error


def _first_difference(field: str, theirs: dict, ours: dict) -> tuple[str, object, object]:
    for name in [*theirs, *ours]:
        if theirs.get(name) != ours.get(name):
            return f"{field}.{name}", theirs.get(name), ours.get(name)
    return field, theirs, ours


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:70]}..."
