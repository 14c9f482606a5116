"""One run at a time in an output folder, whether the other is alive, was killed, or runs on another machine."""

import errno
import json
import os
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from modeling_deit_distill import InputError, output_lock
from modeling_deit_distill.output_lock import SECONDS_BETWEEN_BEATS, SECONDS_TO_DIE, locked, only_run_in

ELSEWHERE = {"host": "another", "process": 7, "started": "2026-01-01 00:00:00+00:00"}


def no_wait(seconds):
    pytest.fail("waits")


@pytest.fixture
def other(tmp_path):
    """`other()`: a process that holds the folder until it is killed; its number."""
    children = []

    def start():
        heard, said = os.pipe()
        child = os.fork()
        if not child:
            with locked(tmp_path / "out"):
                os.write(said, b"x")
                while True:
                    signal.pause()
        children.append(child)
        os.read(heard, 1)
        return child

    yield start
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_folder_in_use_is_refused_with_its_holder(tmp_path, other):
    child, folder = other(), tmp_path / "out"
    pattern = (
        rf"^output_dir '{folder}' is in use by process {child} on {socket.gethostname()}, started 20.*; wait until"
    )
    with pytest.raises(InputError, match=pattern), locked(folder, no_wait):
        pass
    assert json.loads((folder / "running.json").read_text())["process"] == child  # the refused one removed nothing
    args = SimpleNamespace(output_dir=str(folder), dry_run=True, process_index=0)
    with only_run_in(args):
        pass
    args.dry_run = False
    with pytest.raises(InputError, match="is in use"), only_run_in(args):
        pass


def test_a_run_that_was_killed_holds_nothing(tmp_path, other):
    child = other()
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    with locked(tmp_path / "out", no_wait):
        assert json.loads((tmp_path / "out" / "running.json").read_text())["process"] == os.getpid()
    assert not (tmp_path / "out" / "running.json").exists()


def test_the_lock_outlives_a_killed_run_by_its_workers_and_is_waited_for(tmp_path, monkeypatch):
    dead = os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    record = {"host": socket.gethostname(), "process": dead, "started": "now"}
    (tmp_path / "running.json").write_text(json.dumps(record))
    held = FileLock(tmp_path / output_lock.LOCK, thread_local=False)
    held.acquire()
    acquire, tries = FileLock.acquire, []

    def note(self, timeout=None, **kwargs):
        tries.append(timeout)
        if len(tries) == 2:
            held.release()
        return acquire(self, timeout=timeout, **kwargs)

    monkeypatch.setattr(FileLock, "acquire", note)
    with locked(tmp_path, no_wait):
        assert tries == [0, output_lock.SECONDS_OF_WORKERS]


def test_a_record_of_another_machine_is_watched(tmp_path, capsys):
    record, waited = tmp_path / "running.json", []
    record.write_text(json.dumps(ELSEWHERE))
    with locked(tmp_path, waited.append):
        assert json.loads(record.read_text())["process"] == os.getpid()
    assert waited == [SECONDS_BETWEEN_BEATS] * (SECONDS_TO_DIE // SECONDS_BETWEEN_BEATS)
    said = capsys.readouterr().out
    assert "was in use by process 7 on another" in said and said.count("\n") == 1

    record.write_text(json.dumps(ELSEWHERE))
    message = "is in use by process 7 on another, .* stop it .kill 7 there."
    with pytest.raises(InputError, match=message), locked(tmp_path, lambda seconds: os.utime(record, (1, 1))):
        pass
    assert json.loads(record.read_text()) == ELSEWHERE
    with locked(tmp_path, no_wait):  # nobody has touched it since 1970
        pass

    record.write_text(json.dumps(ELSEWHERE))
    with locked(tmp_path, lambda seconds: record.unlink()):  # it ended
        pass


def test_a_run_that_was_refused_leaves_no_folder_above_its_own(tmp_path):
    with pytest.raises(InputError, match="refused"), locked(tmp_path / "outputs" / "photos", no_wait):
        raise InputError("refused")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "outputs" / "photos", no_wait):
        (tmp_path / "outputs" / "mine").touch()
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["mine"]


def test_without_locks_of_the_disk_the_record_alone_decides(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError(output_lock.NO_LOCKS[0], "no locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with locked(tmp_path, no_wait):
        beat = lambda seconds: os.utime(tmp_path / "running.json", (2e9, 2e9))  # noqa: E731
        with pytest.raises(InputError, match=f"is in use by process {os.getpid()} "), locked(tmp_path, beat):
            pass
    assert not (tmp_path / "running.json").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    message = "file/out' cannot be written to .*; choose another"
    with pytest.raises(InputError, match=message), locked(tmp_path / "file" / "out"):
        pass


def test_a_read_only_folder_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refuse(path, content):  # as a read-only disk does, to root too
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(output_lock, "write_json", refuse)
    with (
        pytest.raises(InputError, match="'out' cannot be written to .*Read-only.*; choose another"),
        locked(Path("out")),
    ):
        pass


def test_the_holder_touches_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr(output_lock, "SECONDS_BETWEEN_BEATS", 0.001)
    with locked(tmp_path):
        record = tmp_path / "running.json"
        os.utime(record, (1, 1))
        while record.stat().st_mtime == 1:
            pass
        assert record.stat().st_mtime > 1
