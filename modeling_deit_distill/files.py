"""Files: written whole or not at all, identified by checksums, and free of this machine's folders where others read."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import logging
import math
import os
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

BLOCK = 2**20  # bytes read at a time
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what disks answer that cannot lock

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def written_whole(path: str | Path, replace: bool = True) -> Iterator[Path]:
    """A path beside `path` to write to. It gets that name when the block ends, so a kill leaves no half of a file.

    Args:
        path: the file to be; its folder is made.
        replace: replace a file that is there. If false, the first of several writers wins.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        if not replace:
            with contextlib.suppress(OSError):  # there already, or a file system without links
                os.link(partial, path)
        if replace or not path.exists():
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | Path, content: object, replace: bool = True, indent: int | None = 2) -> Path:
    """Write JSON as [`written_whole`] does; returns the path."""
    with written_whole(path, replace) as partial:
        partial.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")
    return Path(path)


def read_json(path: str | Path) -> object:
    """What a JSON file holds.

    Raises:
        FileNotFoundError, OSError: it cannot be read.
        ValueError: it is no JSON, holds a number that is not finite, or is nested too deep.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, parse_float=_finite_number, parse_constant=_finite_number)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def with_checksum(content: dict) -> dict:
    """JSON's content with the checksum of what it says, whatever its spaces and the order of its keys."""
    return {**content, "checksum": f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"}


def check_json(content: dict):
    """Compare what [`with_checksum`] made with its checksum.

    Raises:
        ValueError: it was damaged.
    """
    if with_checksum({name: value for name, value in content.items() if name != "checksum"}) != content:
        raise ValueError("it does not agree with its checksum")


@contextlib.contextmanager
def locked(file: int, shared: bool = False) -> Iterator[None]:
    """Hold the lock of an open file, beside other readers if `shared`; it is waited for. A killed process drops it.

    On a disk without locks the block runs without one, and that is said once.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _say_no_locks()
        yield
        return
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def flush(path: Path):
    """Wait until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def crc32(path: Path) -> str:
    """CRC-32 of a file, 8 hexadecimal digits: finds what disks and half copies do, at a gigabyte a second."""
    checksum = 0
    for block in _blocks(path):
        checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}"


def sha256(*contents: Path | bytes) -> str:
    """SHA-256 of files and bytes, one after the other, 64 hexadecimal digits: finds changes that are on purpose too."""
    digest = hashlib.sha256()
    for content in contents:
        for block in [content] if isinstance(content, bytes) else _blocks(content):
            digest.update(block)
    return digest.hexdigest()


def without_folders(value):
    """A value from JSON, whatever its depth, with the last part alone of every path on this machine."""
    if isinstance(value, dict):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    path = os.path.expanduser(value) if isinstance(value, str) else ""
    is_local = os.path.isabs(path) or path.startswith(".") or os.path.exists(path)
    return os.path.basename(os.path.normpath(path)) if is_local else value


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds {text}, which is no finite number")
    return number


@functools.cache
def _say_no_locks():
    logger.warning(
        "the disk has no file locks: where several processes write one file of a teacher_store at once, answers may "
        "be lost and asked again"
    )


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block
