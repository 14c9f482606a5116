"""What tells one set of images from another: a checksum of each image, in a file or in a table, and a hash of all.

Of an image of up to 16 KiB all bytes count, of a larger one its size, its first and its last 4 KiB: a million files are
looked through within a minute. Of 256 images, evenly spaced, all bytes count whatever their size. The same images give
the same checksums wherever they lie and whatever they are called, as files or as bytes in a table.
"""

import contextlib
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from .columns import image_paths, label_column
from .datasets import encoded_row
from .decoding import encoded_bytes

WHOLE_SIZE, END_SIZE = 16_384, 4096
SAMPLED_ROWS = 256
GONE = 0  # checksum of an image that cannot be read, and of no other
NO_BYTES = f"{zlib.crc32(b''):08x}"  # the same in earlier versions
DIGITS, EARLIER_DIGITS = 32, 16
NUM_THREADS, FILES_AT_ONCE = 4, 512


def image_checksums(rows: Dataset, samples: bool = True) -> np.ndarray:
    """A checksum of each row's image, uint32 (rows,); `GONE` where it cannot be read.

    Without `samples` it depends on the image alone: of no large one all bytes count.
    """
    checksums = np.full(len(rows), GONE, np.uint32)
    is_sampled = np.zeros(len(rows), bool)
    is_sampled[sampled_rows(len(rows)) if samples else []] = True
    for row, encoded in _bytes_in_tables(rows):
        checksums[row] = _checksum(encoded, is_sampled[row])
    paths = image_paths(rows, only_files=True)
    places = np.flatnonzero(paths.is_valid().to_numpy())
    paths = pc.drop_null(paths).to_pylist()
    parts = [slice(first, first + FILES_AT_ONCE) for first in range(0, len(places), FILES_AT_ONCE)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:  # what takes long is waiting for a disk
        found = pool.map(partial(_checksums_of_files, paths, is_sampled[places]), parts)
        for part, each in zip(parts, found, strict=True):
            checksums[places[part]] = each
    return checksums


def are_among(rows: Dataset, others: Iterable[Dataset]) -> np.ndarray:
    """Which images are the same, byte by byte, as one of other rows, (rows,) bool."""
    checksums, is_among = image_checksums(rows, samples=False), np.zeros(len(rows), bool)
    for other in others:
        theirs = image_checksums(other, samples=False)
        # 32 bits of a file's ends may be equal though the files are not, so those of both sides are read whole, once.
        common = np.setdiff1d(np.intersect1d(checksums, theirs), [GONE])
        contents = {_content(other, place) for place in np.flatnonzero(np.isin(theirs, common)).tolist()} - {None}
        for row in np.flatnonzero(np.isin(checksums, common) & ~is_among).tolist():
            is_among[row] = _content(rows, row) in contents
    return is_among


def _content(rows: Dataset, row: int) -> bytes | None:
    """A hash of all bytes of an image; None where it is gone by now."""
    try:
        return hashlib.blake2b(encoded_bytes(encoded_row(rows, row)[0])).digest()
    except OSError:
        return None


def file_checksums(path: str) -> set[int]:
    """What [`image_checksums`] may say of a file: whether all its bytes count depends on its row there."""
    return {_file_checksum(path, is_sampled) for is_sampled in (False, True)} - {GONE}


def sampled_rows(number: int) -> np.ndarray:
    """Evenly spaced rows of so many, (up to 256,)."""
    return np.linspace(0, number - 1, min(SAMPLED_ROWS, number)).astype(int)


def hash_of_listed(listed: dict[str, str]) -> str:
    """The hash of all images as [`Fingerprint.of_all`] gives it, from the `checksums` that a listing keeps."""
    return _hash_of(listed["labels"], bytes.fromhex(listed["images"]))


def _hash_of(labels: str, images: bytes) -> str:
    return hashlib.sha256(labels.encode() + images).hexdigest()[:DIGITS]


def is_earlier(fingerprint: object) -> bool:
    """Whether it is a fingerprint of an earlier version, of some of the images."""
    return isinstance(fingerprint, str) and len(fingerprint) == EARLIER_DIGITS


class Fingerprint:
    """What is known of splits and their classes, looked at once.

    Args:
        of: training rows, validation rows, class names; or the rows of one split alone, and class names.
    """

    def __init__(self, of: tuple[Dataset | list[str], ...]):
        self.of = of

    def of_all(self, listed: dict[str, str] | None = None) -> str:
        """A hash of classes, labels and all images, 32 hexadecimal digits.

        With the `checksums` of an earlier listing, images that are gone since do not change it.
        """
        labels, images = self.checksums["labels"], self._images
        if listed is not None and listed["labels"] == labels and len(listed["images"]) == 8 * len(images):
            before = np.frombuffer(bytes.fromhex(listed["images"]), ">u4")
            if ((images == before) | (images == GONE)).all():
                images = before
        return _hash_of(labels, images.astype(">u4").tobytes())

    def of_some(self, listed: list[str] | None = None) -> str:
        """The hash of earlier versions, of 256 training images; with the `earlier` of a listing as in [`of_all`]."""
        listed, found = listed or [], self.earlier
        alike = [one in (other, NO_BYTES) for one, other in zip(found, listed, strict=False)]
        return listed[-1] if len(found) == len(listed) and all(alike[:-1]) else found[-1]

    @cached_property
    def checksums(self) -> dict[str, str]:
        """The hash of classes and labels, and a checksum of each image of both splits, 8 digits each."""
        return {"labels": self._labels().hexdigest(), "images": self._images.astype(">u4").tobytes().hex()}

    @cached_property
    def earlier(self) -> list[str]:
        """The hash of classes and labels, a checksum of each image that the earlier hash looks at, and that hash."""
        train, digest = self.of[0], self._labels()
        checksums = [digest.hexdigest()]
        for row in sampled_rows(len(train)):
            encoded = b""
            with contextlib.suppress(OSError, TypeError):  # a file that is missing, a row without an image
                encoded = encoded_bytes(train[int(row)]["image"])
            digest.update(encoded)
            checksums.append(f"{zlib.crc32(encoded):08x}")
        return [*checksums, digest.hexdigest()[:EARLIER_DIGITS]]

    @cached_property
    def _images(self) -> np.ndarray:
        return np.concatenate([image_checksums(rows) for rows in self.of[:-1]])

    def _labels(self):
        *splits, class_names = self.of
        digest = hashlib.sha256(repr(class_names).encode())
        for rows in splits:
            digest.update(label_column(rows).tobytes())
        return digest


def _bytes_in_tables(rows: Dataset) -> Iterator[tuple[int, memoryview]]:
    """Each row whose image lies in the table, with its bytes, none of which is copied."""
    column = pc.struct_field(rows.data.column("image"), "bytes")
    places = np.arange(len(rows)) if rows._indices is None else rows._indices.column(0).to_numpy().astype(np.int64)
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    chunk_of = np.searchsorted(ends, places, side="right")
    order = np.argsort(chunk_of, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(chunk_of[order])) + 1):
        if len(group):
            chunk = column.chunk(int(chunk_of[group[0]]))
            within = places[group] - (ends[chunk_of[group[0]]] - len(chunk))
            yield from _bytes_of(chunk, group, within)


def _bytes_of(chunk: pa.Array, rows: np.ndarray, within: np.ndarray) -> Iterator[tuple[int, memoryview]]:
    if chunk.null_count == len(chunk):
        return
    chunk = chunk.cast(pa.large_binary())  # of offsets alone
    is_valid = chunk.is_valid().to_numpy(zero_copy_only=False)
    offsets = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset :].tolist()
    content = memoryview(chunk.buffers()[2] or b"")
    for row, place in zip(rows.tolist(), within.tolist(), strict=True):
        if is_valid[place]:
            yield row, content[offsets[place] : offsets[place + 1]]


def _checksums_of_files(paths: list[str], is_sampled: np.ndarray, part: slice) -> list[int]:
    return [_file_checksum(path, sampled) for path, sampled in zip(paths[part], is_sampled[part].tolist(), strict=True)]


def _file_checksum(path: str, is_sampled: bool) -> int:
    try:
        file = os.open(path, os.O_RDONLY)
    except (OSError, ValueError):  # a name with a zero in it
        return GONE
    try:
        size = os.fstat(file).st_size
        if size <= WHOLE_SIZE:
            return _checksum(os.read(file, size), is_sampled)
        if is_sampled:
            with open(file, "rb", closefd=False) as opened:
                return _checksum(opened.read(), is_sampled)
        return _of_ends(size, os.pread(file, END_SIZE, 0), os.pread(file, END_SIZE, size - END_SIZE))
    except OSError:
        return GONE
    finally:
        os.close(file)


def _checksum(encoded: bytes | memoryview, is_sampled: bool) -> int:
    if len(encoded) <= WHOLE_SIZE or is_sampled:
        return _of_ends(len(encoded), encoded, b"")
    return _of_ends(len(encoded), encoded[:END_SIZE], encoded[-END_SIZE:])


def _of_ends(size: int, first: bytes | memoryview, last: bytes | memoryview) -> int:
    return zlib.crc32(last, zlib.crc32(first, zlib.crc32(size.to_bytes(8, "little")))) or 1
