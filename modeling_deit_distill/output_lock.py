"""One run at a time in an output folder: a lock, and a record of who holds it.

The system frees the lock when its process ends, however it ends. `running.json` names the holder by host, process and
time. Not every shared disk passes a lock on to other machines, and a few know none; so the holder also touches its
record every few seconds, and a record that nobody touches any more is a dead run's.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from transformers import TrainingArguments

from .errors import InputError, one_line
from .files import write_json

LOCK, RECORD = ".running.lock", "running.json"
SECONDS_BETWEEN_BEATS = 15
# Network file systems show a time up to a minute late.
SECONDS_TO_DIE = 90
# DataLoader workers notice within five seconds that their run was killed, and hold its lock until then.
SECONDS_OF_WORKERS = 15
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def only_run_in(args: TrainingArguments) -> Iterator[None]:
    """Around a run, on all of its processes: no other run uses `output_dir` meanwhile. A dry run holds nothing.

    Raises:
        InputError: another run does, or the folder cannot be written to.
    """
    if args.dry_run:
        yield
        return
    with contextlib.ExitStack() as stack:
        refusal = None
        if args.process_index == 0:
            try:
                stack.enter_context(locked(Path(args.output_dir)))
            except InputError as error:
                refusal = str(error)
        refusal = broadcast_object_list([refusal])[0]
        if refusal is not None:
            raise InputError(refusal)
        yield


@contextlib.contextmanager
def locked(folder: Path, wait: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Hold a folder; see [`only_run_in`].

    Args:
        folder: is made if it is not there.
        wait: waits for a number of seconds.

    Raises:
        InputError: another process holds it, or it cannot be written to.
    """
    lock = FileLock(folder / LOCK, thread_local=False)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_locked = _acquire(lock, folder)
        _wait_for_a_sign_of_life(folder, is_locked, wait)
        content = {"host": socket.gethostname(), "process": os.getpid(), "started": _now()}
        record = write_json(folder / RECORD, content)
    except OSError as error:
        lock.release()
        raise InputError(
            f"output_dir {str(folder)!r} cannot be written to ({one_line(error)}); choose another"
        ) from error
    except BaseException:
        lock.release()
        raise
    ended = threading.Event()
    threading.Thread(target=_beat, args=(record, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        record.unlink(missing_ok=True)
        if missing and [path.name for path in folder.iterdir()] == [LOCK]:  # a run that was refused leaves nothing
            (folder / LOCK).unlink()
            with contextlib.suppress(OSError):  # somebody else put something there
                for path in missing:
                    path.rmdir()
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> bool:
    """Whether the disk knows locks; the lock is ours then."""
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not _has_died(_holder(folder)):
                raise
            lock.acquire(timeout=SECONDS_OF_WORKERS)
    except Timeout:
        raise _refusal(folder) from None
    except NotImplementedError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _wait_for_a_sign_of_life(folder: Path, is_locked: bool, wait: Callable[[float], None]):
    """Of a record that the lock says nothing about: wait until it is touched, or too old."""
    holder = _holder(folder)
    if not holder or (is_locked and holder.get("host") == socket.gethostname()):
        return  # nobody, or a run of this machine that was killed: the system freed its lock
    first = _touched(folder / RECORD)
    if _touched(folder / LOCK, now=True) - first > SECONDS_TO_DIE:
        return
    print(
        f"output_dir {str(folder)!r} was in use by {_in_words(holder)}; waiting up to {SECONDS_TO_DIE} s for a sign of "
        "that run",
        flush=True,
    )
    for _ in range(0, SECONDS_TO_DIE, SECONDS_BETWEEN_BEATS):
        wait(SECONDS_BETWEEN_BEATS)
        if not (folder / RECORD).exists():
            return
        if _touched(folder / RECORD) != first:
            raise _refusal(folder)


def _beat(record: Path, ended: threading.Event):
    while not ended.wait(SECONDS_BETWEEN_BEATS):
        with contextlib.suppress(OSError):
            os.utime(record)


def _touched(path: Path, now: bool = False) -> float:
    """When a file was last written or touched, by the clock of the disk's machine."""
    if now:
        path.touch()
    with open(path, "rb") as file:  # opening asks a network's disk anew
        return os.fstat(file.fileno()).st_mtime


def _holder(folder: Path) -> dict[str, object]:
    """What the record says; {} without one, or where it cannot be read."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _has_died(holder: dict[str, object]) -> bool:
    """Whether the process of a record was one of this machine and is no more."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("process"), int):
        return False
    try:
        os.kill(holder["process"], 0)
    except OSError as error:  # a process of somebody else may not be asked
        return isinstance(error, ProcessLookupError)
    return False


def _refusal(folder: Path) -> InputError:
    holder = _holder(folder)
    stop = f"stop it (kill {holder['process']} there)" if "process" in holder else "stop it"
    return InputError(
        f"output_dir {str(folder)!r} is in use by {_in_words(holder)}; wait until it ends, {stop}, or choose another "
        "--output_dir"
    )


def _in_words(holder: dict[str, object]) -> str:
    if not holder:
        return "another run"
    return f"process {holder.get('process')} on {holder.get('host')}, started {holder.get('started')}"


def _now() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
