"""Files of a store's entries: an entry's layout, and the two formats of a file.

A file of format 2 ([`BlockFile`]) checks itself:

    header    32 bytes: magic, version, epoch, the store's identity, CRC-32 of these
    block 0   the entries of its positions, CRC-32 (4 bytes)
    block 1   ...
    journal   only while a block is written: the block's number (8 bytes) and its new content

All numbers are little-endian. A block's checksum covers three things: the header without its own checksum, the block's
number (8 bytes), the entries. So a block that was copied from another place, another epoch or another store does not
pass. A block of zeros, checksum included, is one that nobody has written yet.

One process writes at a time, by a lock on the file. It writes the new block to the journal, then to its place, and cuts
the journal off. Killed at any moment, it leaves the block as it was or as it was to be.

A file of format 1 ([`PlainFile`]) holds the entries alone.
"""

import base64
import contextlib
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import locked

MAX_INT16 = 32_767
MAGIC, VERSION = b"DeiTansw", 2
HEADER = struct.Struct("<8sIQ8sI")
CHECKSUM, JOURNAL = struct.Struct("<I"), struct.Struct("<Q")
MAX_BLOCK_VIEWS, MAX_BLOCK_BYTES = 1024, 16_384
REMEDY = "delete it (the teacher is asked again), or fetch it anew"


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


def is_sound(entries: np.ndarray, num_classes: int) -> np.ndarray:
    """Which entries (views,) hold what an answer can be: classes from 1 to `num_classes`, finite logits; bool."""
    if entries.dtype.names is None:
        return (entries >= 1) & (entries <= num_classes)
    classes, logits = entries["classes"], entries["logits"]
    in_range = ((classes >= 1) & (classes <= num_classes)).all(axis=1)
    return in_range & np.isfinite(logits).all(axis=1) & np.isfinite(entries["log_sum_exp"])


def entries_in_text(entries: np.ndarray) -> str:
    """Entries (views,) for a JSON file."""
    return base64.b64encode(entries.tobytes()).decode()


def entries_of_text(text: str, dtype: np.dtype) -> np.ndarray:
    """What [`entries_in_text`] was given.

    Raises:
        ValueError, TypeError: it is no text of such entries.
    """
    return np.frombuffer(base64.b64decode(text, validate=True), dtype).copy()  # that can be written to


def identity_of(agreed: object) -> str:
    """What a store must agree about, as 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(agreed, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class BlockFile:
    """The entries of an epoch in blocks with checksums: format 2.

    Args:
        path: the file; it need not exist.
        epoch: of the views.
        identity: of the store, 16 hexadecimal digits.
        dtype: of an entry.
        num_views: positions of an epoch.
    """

    path: Path
    epoch: int
    identity: str
    dtype: np.dtype
    num_views: int

    @cached_property
    def block_views(self) -> int:
        """Views of a block: 1,024, or fewer where these take more than 16 KiB."""
        return max(1, min(MAX_BLOCK_VIEWS, MAX_BLOCK_BYTES // self.dtype.itemsize))

    @property
    def num_blocks(self) -> int:
        """The last may be shorter than the others."""
        return -(-self.num_views // self.block_views)

    @property
    def size(self) -> int:
        """Bytes of the file, without a journal."""
        return HEADER.size + self.num_views * self.dtype.itemsize + self.num_blocks * CHECKSUM.size

    def block_size(self, block: int) -> int:
        """Bytes of a block with its checksum."""
        return self._views_of(block) * self.dtype.itemsize + CHECKSUM.size

    @cached_property
    def header(self) -> bytes:
        """What the file begins with."""
        return _with_checksum(HEADER.pack(MAGIC, VERSION, self.epoch, bytes.fromhex(self.identity), 0))

    def read(self, positions: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Entries (views,) at the positions, zeros where none is known, and what of them is damaged, in words.

        Raises:
            InputError: the file is of another epoch or another store.
        """
        entries, damaged = np.zeros(len(positions), self.dtype), []
        with contextlib.suppress(FileNotFoundError), _opened(self.path, os.O_RDONLY) as file:
            if os.fstat(file).st_size == 0:  # being made at this moment
                return entries, damaged
            if not self._has_header(file):
                damaged.append("its header")
            for block, places in _by_block(positions // self.block_views):
                content = self._read_block(file, block)
                if content is None:
                    damaged.append(self._views_in_words(block))
                else:
                    entries[places] = content[positions[places] - block * self.block_views]
        return entries, damaged

    def write(self, positions: np.ndarray, entries: np.ndarray):
        """Keep the entries (views,) of the positions. What a damaged block holds besides is dropped.

        Raises:
            InputError: the file is of another epoch or another store.
            OSError: the disk is full or refuses.
        """
        with _opened(self.path) as file, locked(file):
            self._make_ready(file)
            for block, places in _by_block(positions // self.block_views):
                content = self._checked(block, self._slot(file, block))
                content = np.zeros(self._views_of(block), self.dtype) if content is None else content.copy()
                content[positions[places] - block * self.block_views] = entries[places]
                self._commit(file, block, content.tobytes())

    def _has_header(self, file: int) -> bool:
        """Whether the header is this file's; it may not be written yet.

        Raises:
            InputError: it is that of another file.
        """
        found = os.pread(file, HEADER.size, 0)
        if found == self.header or found == bytes(HEADER.size):
            return True
        if len(found) < HEADER.size or found != _with_checksum(found) or not found.startswith(MAGIC):
            return False
        _, version, epoch, identity, _ = HEADER.unpack(found)
        if version != VERSION:
            raise InputError(f"{self.path} is of format {version}, this library reads {VERSION}; update the library")
        if identity.hex() != self.identity:
            raise InputError(f"{self.path} is a file of another store, about other answers; {REMEDY}")
        raise InputError(
            f"{self.path} holds the answers of epoch {epoch}, not of epoch {self.epoch}; put the files back under "
            f"their names, or {REMEDY}"
        )

    def _make_ready(self, file: int):
        """Bring header and size about, and finish what a killed writer left in the journal."""
        is_header = self._has_header(file)
        size = os.fstat(file).st_size
        if size < self.size:
            os.ftruncate(file, self.size)
        if not is_header or os.pread(file, HEADER.size, 0) != self.header:
            _write_at(file, 0, self.header)
        if size > self.size:
            if (left := self._journal(file)) is not None:
                _write_at(file, self._offset(left[0]), left[1])
            os.ftruncate(file, self.size)

    def _commit(self, file: int, block: int, content: bytes):
        slot = content + self._checksum(block, content)
        _write_at(file, self.size, JOURNAL.pack(block) + slot)
        _write_at(file, self._offset(block), slot)
        os.ftruncate(file, self.size)

    def _read_block(self, file: int, block: int) -> np.ndarray | None:
        """A block's entries; None if it is damaged."""
        content = self._checked(block, self._slot(file, block))
        if content is not None:
            return content
        with locked(file, shared=True):  # a writer may have been at it, or was killed
            content = self._checked(block, self._slot(file, block))
            left = self._journal(file) if content is None else None
        return self._checked(*left) if left is not None and left[0] == block else content

    def _journal(self, file: int) -> tuple[int, bytes] | None:
        """The block that is in the journal, as number and bytes; None if there is none, or no whole one."""
        found = os.pread(file, JOURNAL.size + self.block_size(0), self.size)
        if len(found) < JOURNAL.size:
            return None
        block = JOURNAL.unpack_from(found)[0]
        if block >= self.num_blocks:
            return None
        slot = found[JOURNAL.size :][: self.block_size(block)]
        return None if self._checked(block, slot) is None else (block, slot)

    def _slot(self, file: int, block: int) -> bytes:
        return os.pread(file, self.block_size(block), self._offset(block))

    def _checked(self, block: int, slot: bytes) -> np.ndarray | None:
        """The entries of a block's bytes; None unless they are whole and as their checksum says."""
        if len(slot) != self.block_size(block):
            return None
        content = slot[: -CHECKSUM.size]
        is_whole = slot[-CHECKSUM.size :] == self._checksum(block, content)
        return np.frombuffer(content, self.dtype) if is_whole else None

    def _checksum(self, block: int, content: bytes) -> bytes:
        """Of a block's entries and its place; that of zeros is zero."""
        if content == bytes(len(content)):
            return bytes(CHECKSUM.size)
        # Without the header's own checksum: a CRC over something and its CRC is the same for everything.
        place = self.header[: -CHECKSUM.size] + JOURNAL.pack(block)
        return CHECKSUM.pack(zlib.crc32(content, zlib.crc32(place)))

    def _offset(self, block: int) -> int:
        return HEADER.size + block * self.block_size(0)

    def _views_of(self, block: int) -> int:
        return min(self.block_views, self.num_views - block * self.block_views)

    def _views_in_words(self, block: int) -> str:
        first = block * self.block_views
        return f"views {first:,} to {first + self._views_of(block) - 1:,}"


@dataclass(frozen=True)
class PlainFile:
    """The entries of an epoch alone, addressed by position: format 1, of earlier versions.

    A hole reads as zeros. Entries are written front to back, with what tells them from a hole at their end: a writer
    that is killed leaves each of them whole or absent.
    """

    path: Path
    dtype: np.dtype
    num_views: int

    def read(self, positions: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Entries (views,) at the positions, zeros where none is known; damage cannot be found.

        Raises:
            InputError: a file of another size.
        """
        if not self.path.exists() or self.path.stat().st_size == 0:  # being made at this moment
            return np.zeros(len(positions), self.dtype), []
        self._check_size()
        entries = np.memmap(self.path, self.dtype, mode="r")
        known = is_known(entries[positions])  # first: what is known now is whole when it is read
        return np.where(known, entries[positions], np.zeros((), self.dtype)), []

    def write(self, positions: np.ndarray, entries: np.ndarray):
        """Keep the entries (views,) of the positions.

        Raises:
            InputError: a file of another size.
            OSError: the disk is full or refuses.
        """
        with _opened(self.path) as file:
            if os.fstat(file).st_size == 0:
                os.ftruncate(file, self.num_views * self.dtype.itemsize)
            self._check_size()
            order = np.argsort(positions, kind="stable")
            for run in np.split(order, np.flatnonzero(np.diff(positions[order]) != 1) + 1):
                if len(run):
                    _write_at(file, int(positions[run[0]]) * self.dtype.itemsize, entries[run].tobytes())

    def _check_size(self):
        size, expected = self.path.stat().st_size, self.num_views * self.dtype.itemsize
        if size != expected:
            raise InputError(
                f"{self.path} has {size:,} bytes where {self.num_views:,} views take {expected:,}: it was damaged; "
                f"{REMEDY}"
            )


def begins_with_magic(path: Path) -> bool:
    """Whether a file says of itself that it is of format 2 or later."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except FileNotFoundError:
        return False


def _with_checksum(header: bytes) -> bytes:
    """A header with the checksum that belongs to it."""
    content = header[: -CHECKSUM.size]
    return content + CHECKSUM.pack(zlib.crc32(content))


def _by_block(blocks: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each block with its places in `blocks` (views,), which keep their order."""
    order = np.argsort(blocks, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1):
        if len(places):
            yield int(blocks[places[0]]), places


@contextlib.contextmanager
def _opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[int]:
    """A file to be read and written, made if need be, unless the flags say else."""
    file = os.open(path, flags, 0o644)
    try:
        yield file
    finally:
        os.close(file)


def _write_at(file: int, offset: int, content: bytes):
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written
