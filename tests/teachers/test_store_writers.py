"""Several writers of one store, and killed ones."""

import errno
import math
import os
import signal

import numpy as np
import pytest
from helpers.stores import (
    DEADLINE,
    FORK,
    LAYOUTS,
    SOFT,
    answers,
    everywhere,
    make,
    run_beside_each_other,
    wait_until,
    whole,
)

from modeling_deit_distill.errors import LocalInputError
from modeling_deit_distill.teachers.store import TeacherStore


def write_share(store: TeacherStore, entries: np.ndarray, share: int, step: int, barrier):
    positions = everywhere(store)[share::step]
    barrier.wait(DEADLINE)
    for batch in np.array_split(positions, 40):
        store.write(0, batch, entries[batch])


@LAYOUTS
def test_processes_writing_one_new_file_lose_nothing(tmp_path, layout):
    store = make(tmp_path, num_views=20_001, **layout)
    entries, barrier = answers(store), FORK.Barrier(4)
    run_beside_each_other(write_share, *[(store, entries, share, 4, barrier) for share in range(4)])
    assert store.count(0) == 20_001
    assert store.path(0).read_bytes() == whole(store, entries)


def write_in_pieces(store: TeacherStore, entries: np.ndarray, size: int, kill_after: float = math.inf):
    """Write all, as a kernel that takes `size` bytes at a time; die after so many."""
    pwrite, taken = os.pwrite, 0

    def piecewise(file, content, offset):
        nonlocal taken
        if taken >= kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        taken += size
        return pwrite(file, content[:size], offset)

    os.pwrite = piecewise  # in a forked process
    order = np.random.default_rng(1).permutation(store.num_views // 50)
    for batch in order:
        positions = np.arange(batch * 50, batch * 50 + 50)
        store.write(0, positions, entries[positions])


def assert_whole_or_absent_then_fill(store: TeacherStore, entries: np.ndarray):
    found, known = store.read(0, everywhere(store))
    assert 0 < known.sum() < store.num_views
    assert (found[known] == entries[known]).all()
    store.write(0, everywhere(store)[~known], entries[~known])
    assert store.holds({0: store.num_views})
    assert store.path(0).read_bytes() == whole(store, entries)


@pytest.mark.parametrize(("layout", "size"), [({}, 6), (SOFT, 30)], ids=["hard", "soft"])
def test_a_killed_writer_leaves_entries_whole_or_absent(tmp_path, layout, size):
    store = make(tmp_path, num_views=200_000, num_classes=300, **layout)
    entries = answers(store, distinct=1009)
    writer = FORK.Process(target=write_in_pieces, args=(store, entries, size))
    writer.start()
    wait_until(lambda: store.count(0) > 1000)
    writer.kill()
    writer.join(DEADLINE)
    assert writer.exitcode == -signal.SIGKILL
    assert_whole_or_absent_then_fill(store, entries)


@LAYOUTS
def test_a_writer_killed_at_any_byte_leaves_blocks_as_they_were_or_as_they_were_to_be(tmp_path, layout):
    slot = make(tmp_path / "sizes", num_views=5000, num_classes=1000, **layout).file(0).block_size(0)
    # Bytes until the killing, and answers known then: those that are on their way to their place are.
    known_after = {10: 0, 32 + slot // 2: 0, 32 + 8 + slot: 0, 40 + 3 * slot // 2: 50, 40 + 2 * slot: 50}
    known_after |= {48 + 5 * slot // 2: 50, 48 + 3 * slot: 50, 48 + 7 * slot // 2: 100}
    for kill_after, known in known_after.items():
        store = make(tmp_path / str(kill_after), num_views=5000, num_classes=1000, **layout)
        entries = answers(store, distinct=101)
        run = FORK.Process(target=write_in_pieces, args=(store, entries, 4, kill_after))
        run.start()
        run.join(DEADLINE)
        assert run.exitcode == -signal.SIGKILL
        assert store.count(0) == known, kill_after
        assert set(store.damaged.get("epoch-00000.bin", [])) <= ({"its header"} if kill_after == 10 else set())
        if known:
            assert_whole_or_absent_then_fill(store, entries)


@LAYOUTS
def test_a_write_taken_in_pieces_is_completed(tmp_path, layout, monkeypatch):
    store, pwrite = make(tmp_path, **layout), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, offset: pwrite(file, content[:3], offset))
    store.write(0, everywhere(store), answers(store))
    assert store.path(0).read_bytes() == whole(store, answers(store))


@LAYOUTS
def test_a_full_disk_is_reported_and_costs_nothing_that_was_there(tmp_path, layout, monkeypatch):
    store, pwrite = make(tmp_path, **layout), os.pwrite
    entries, room = answers(store), 130
    store.write(0, np.arange(40), entries[:40])

    def full(file, content, offset):
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = pwrite(file, content[:room], offset)
        room -= written
        return written

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(LocalInputError, match=r"epoch-00000\.bin cannot be written.*No space left"):
            store.write(0, np.arange(20, 100), np.concatenate([entries[20:40], entries[40:]]))
        with pytest.raises(LocalInputError, match="No space left"):
            store.write(5, np.arange(2), entries[:2])
    found, known = store.read(0, everywhere(store))
    assert known[:40].all() and not known.all()
    assert (found[known] == entries[known]).all()
    assert store.count(5) == 0
    assert_whole_or_absent_then_fill(store, entries)
