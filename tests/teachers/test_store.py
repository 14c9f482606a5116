"""The store of a teacher's answers: what an entry says, and that nothing is lost or made up whatever befalls a file."""

import dataclasses
import errno
import json
import math
import multiprocessing
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_deit_distill import InputError, soft_distillation_loss
from modeling_deit_distill.arguments import DataArguments, DistillationTrainingArguments, ModelArguments
from modeling_deit_distill.data.views import AugmentationSettings
from modeling_deit_distill.errors import LocalInputError
from modeling_deit_distill.teachers.store import (
    TeacherStore,
    create_store,
    decode_labels,
    decode_top_k,
    encode_labels,
    encode_top_k,
    entry_dtype,
    fingerprint_of,
    is_known,
    is_store,
)

FORK = multiprocessing.get_context("fork")  # children only write; a spawned one would import torch for seconds
DEADLINE = 30  # seconds, for what takes some hundredths
SOFT = {"distillation_type": "soft", "k": 10}
HALF_ULP = 2.0**-11  # of half precision, relative
few_examples = settings(max_examples=50, deadline=None)
LAYOUTS = pytest.mark.parametrize("layout", [{}, SOFT], ids=["hard", "soft"])


def fingerprint(**changes) -> dict:
    fields = {"augmentation_version": 1, "dataset": "d161", "num_images": 100, "num_classes": 10, "num_views": 100}
    fields |= {"data_seed": 0, "repeated_augmentation": 3, "distillation_type": "hard", "k": None, "temperature": 3.0}
    return fingerprint_of(AugmentationSettings(16), **{**fields, **changes})


def make(folder, **changes) -> TeacherStore:
    return create_store(folder, fingerprint(**changes), {"teacher": "mine"})


def answers(store: TeacherStore, distinct: int | None = None) -> np.ndarray:
    """One for each position; after `distinct` of them they repeat, which saves the time to encode more."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(distinct or store.num_views, store.fingerprint["num_classes"], generator=generator)
    return np.resize(store.encode(logits), store.num_views)


def everywhere(store: TeacherStore) -> np.ndarray:
    return np.arange(store.num_views)


def dtype_of(num_classes: int, k: int | None = None) -> np.dtype:
    return entry_dtype({"num_classes": num_classes, "distillation_type": "soft" if k else "hard", "k": k})


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "nothing came of it in time"


def run_beside_each_other(function, *arguments_of_each):
    processes = [FORK.Process(target=function, args=arguments) for arguments in arguments_of_each]
    for process in processes:
        process.start()
    for process in processes:
        process.join(DEADLINE)
    assert [process.exitcode for process in processes] == [0] * len(processes)


# ---- sizes ----


def test_an_entry_takes_so_many_bytes():
    for num_classes, k, size in [
        (2, None, 2),
        (1000, None, 2),
        (32_767, None, 2),
        (32_768, None, 4),
        (10, 1, 8),
        (1000, 10, 44),
        (32_767, 5, 24),
        (32_768, 10, 64),
    ]:
        assert dtype_of(num_classes, k).itemsize == size, (num_classes, k)


def test_imagenet_for_three_hundred_epochs_takes_769_megabytes():
    assert dtype_of(1000).itemsize * 1_281_167 * 300 == 768_700_200


@LAYOUTS
def test_an_epochs_file_has_room_for_all_its_views_from_the_first_write(tmp_path, layout):
    store = make(tmp_path, num_views=77, **layout)
    store.write(3, np.array([5]), answers(store)[[5]])
    assert store.path(3).stat().st_size == 77 * (44 if layout else 2)
    assert [path.name for path in tmp_path.glob("*.bin")] == ["epoch-00003.bin"]


# ---- labels ----


@few_examples
@given(st.integers(2, 40_000), st.data())
def test_labels_come_back(num_classes, data):
    drawn = data.draw(st.lists(st.integers(0, num_classes - 1), max_size=5))
    labels = torch.tensor([0, num_classes - 1, *drawn])
    logits = torch.zeros(len(labels), num_classes).scatter_(1, labels[:, None], 1.0)
    entries = encode_labels(logits, dtype_of(num_classes))
    assert entries.dtype == dtype_of(num_classes) and entries.shape == (len(labels),)
    assert is_known(entries).all()
    assert decode_labels(entries, "cpu").tolist() == labels.tolist()
    assert decode_labels(entries, "cpu").dtype == torch.int64


def test_labels_by_hand():
    entries = encode_labels(torch.tensor([[3.0, 1.0, 2.0], [-1.0, -2.0, -0.5]]), dtype_of(3))
    assert entries.tobytes() == bytes([1, 0, 3, 0])


def test_zeros_are_holes():
    for dtype in (dtype_of(10), dtype_of(100_000), dtype_of(10, 1), dtype_of(100_000, 5)):
        assert not is_known(np.frombuffer(bytes(4 * dtype.itemsize), dtype)).any(), dtype


# ---- the k highest ----


KINDS = ("ordinary", "large", "ties", "equal", "peaked", "far from zero")


def drawn(kind: str, seed: int = 3) -> torch.Tensor:
    """Logits of 64 views and 20 classes."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(64, 20, generator=generator)
    uniform = torch.rand(64, 20, generator=generator)
    return {
        "ordinary": 2 * normal,
        "large": 100 * uniform - 50,
        "ties": (3 * normal).round(),
        "equal": torch.full((64, 20), 1.7),
        "peaked": normal + 50 * torch.nn.functional.one_hot(uniform.argmax(1), 20),
        "far from zero": normal - 50,
    }[kind]


any_logits = st.builds(drawn, st.sampled_from(KINDS), st.integers(0, 1000))
any_temperature = st.one_of(st.sampled_from([0.5, 1.0, 3.0, 20.0]), st.floats(0.5, 20.0))


def decoded(logits: torch.Tensor, k: int, temperature: float) -> torch.Tensor:
    entries = encode_top_k(logits, dtype_of(logits.shape[1], k), temperature)
    assert is_known(entries).all()
    return decode_top_k(entries, logits.shape[1], temperature, "cpu")


def test_top_k_by_hand():
    # τ = 2 and logits 2·ln of 4, 2, 1, 1: probabilities 1/2, 1/4, 1/8, 1/8.
    logits = 2 * torch.log(torch.tensor([[1.0, 4.0, 1.0, 2.0]]))
    entries = encode_top_k(logits, dtype_of(4, 2), 2.0)
    assert entries["classes"].tolist() == [[2, 4]]
    assert entries["logits"][0] == pytest.approx([2 * math.log(4), 2 * math.log(2)], rel=HALF_ULP)
    assert entries["log_sum_exp"][0] == pytest.approx(math.log(8), rel=1e-3)
    probabilities = torch.softmax(decode_top_k(entries, 4, 2.0, "cpu") / 2, dim=-1)
    assert probabilities[0].tolist() == pytest.approx([1 / 8, 1 / 2, 1 / 8, 1 / 4], rel=2e-3)


def test_the_mass_left_is_spread_evenly_by_hand():
    # Probabilities 1/2, 1/4, 3/16, 1/16: of the last two only the sum is kept.
    probabilities = torch.tensor([[3 / 16, 1 / 2, 1 / 16, 1 / 4]])
    found = torch.softmax(decoded(torch.log(probabilities), 2, 1.0), dim=-1)
    assert found[0].tolist() == pytest.approx([1 / 8, 1 / 2, 1 / 8, 1 / 4], rel=2e-3)


@few_examples
@given(any_logits, any_temperature)
def test_all_classes_kept_give_the_loss_of_live_logits(logits, temperature):
    students = torch.randn(64, 20, generator=torch.Generator().manual_seed(4))
    live, stored = (
        soft_distillation_loss(students.double(), teachers.double(), temperature)
        for teachers in (logits, decoded(logits, 20, temperature))
    )
    # Each z/τ moves by at most δ. With r = ln p - ln q, |dKL| <= δ·Σ p|r - KL| <= 2δ·max|r|, and r moves by 2δ itself.
    delta = HALF_ULP * logits.abs().max().item() / temperature
    log_ratio = torch.log_softmax(logits / temperature, -1) - torch.log_softmax(students / temperature, -1)
    bound = temperature**2 * 2 * delta * (log_ratio.abs().max().item() + 2 * delta)
    assert abs(live.item() - stored.item()) <= bound


@few_examples
@given(any_logits, any_temperature, st.integers(1, 19))
def test_the_k_highest_are_exact_and_the_rest_is_even(logits, temperature, k):
    entries = encode_top_k(logits, dtype_of(20, k), temperature)
    found = decode_top_k(entries, 20, temperature, "cpu")
    assert found.shape == (64, 20) and found.dtype == torch.float32 and torch.isfinite(found).all()
    exact, stored = (torch.softmax(value.double() / temperature, dim=-1) for value in (logits, found))
    chosen = torch.from_numpy(entries["classes"].astype(np.int64) - 1)
    assert torch.equal(logits.gather(1, chosen), logits.topk(k).values)
    # A logit moves by δ and the sum by at most as much; float32 arithmetic on values up to 100/τ adds its own.
    delta = HALF_ULP * logits.abs().max().item() / temperature
    relative = math.expm1(2 * delta) + 1e-4
    torch.testing.assert_close(stored.gather(1, chosen), exact.gather(1, chosen), rtol=relative, atol=1e-7)
    others = torch.ones(64, 20, dtype=torch.bool).scatter_(1, chosen, False)
    rest = stored[others].view(64, 20 - k)
    assert torch.equal(rest, rest[:, :1].expand_as(rest))
    mass = exact[others].view(64, 20 - k).sum(1)
    torch.testing.assert_close(rest.sum(1), mass, rtol=relative, atol=1e-4)
    torch.testing.assert_close(stored.sum(1), torch.ones(64, dtype=torch.float64))


@few_examples
@given(any_logits, any_temperature, st.integers(1, 20))
def test_the_k_highest_never_have_more_than_the_whole_mass(logits, temperature, k):
    entries = encode_top_k(logits, dtype_of(20, k), temperature)
    kept = entries["logits"].astype(np.float64) / temperature
    shares = np.exp(kept - entries["log_sum_exp"][:, None].astype(np.float64))
    assert (shares.sum(1) <= 1 + 1e-5).all()


@pytest.mark.parametrize("k", [1, 3, 1000])
def test_a_certain_teacher_gives_finite_losses_and_gradients(k):
    logits = torch.zeros(2, 1000)
    logits[0, 0], logits[1, 999] = 400.0, 60.0  # by float32 nothing is left for the others
    for temperature in (0.5, 1.0, 3.0, 20.0):
        found = decoded(logits, k, temperature)
        assert torch.isfinite(found).all(), temperature
        assert found.argmax(1).tolist() == [0, 999]
        students = torch.randn(2, 1000, requires_grad=True)
        loss = soft_distillation_loss(students, found, temperature)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(students.grad).all(), temperature
        expected = soft_distillation_loss(students.detach(), logits, temperature).item()
        assert loss.item() == pytest.approx(expected, rel=1e-2, abs=1e-3), temperature


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_a_teacher_in_half_precision_are_kept_too(dtype):
    logits = drawn("ordinary").to(dtype)
    torch.testing.assert_close(decoded(logits, 20, 3.0), logits.float(), rtol=HALF_ULP, atol=1e-6)


def test_a_class_beyond_two_bytes_is_kept():
    logits = torch.zeros(1, 100_000)
    logits[0, 99_999], logits[0, 70_000] = 9.0, 8.0
    assert decoded(logits, 2, 1.0).topk(2).indices.tolist() == [[99_999, 70_000]]


def test_an_entry_that_ends_early_is_a_hole_or_whole():
    # A file is cut where a page ends, so at multiples of four, wherever that is within an entry.
    for num_classes, k in [(1000, 1), (1000, 10), (32_767, 7), (100_000, 10), (100_000, 3)]:
        logits = torch.randn(4, num_classes, generator=torch.Generator().manual_seed(1))
        logits[:, -4:] += 20  # two bytes or three in use
        entries = encode_top_k(logits, dtype_of(num_classes, k), 1.0)
        content = entries.tobytes()
        for length in range(0, len(content), 4):
            cut = np.frombuffer(content[:length] + bytes(len(content) - length), entries.dtype)
            known = is_known(cut)
            whole = [(place + 1) * entries.itemsize <= length for place in range(4)]
            assert known.tolist() == whole, (num_classes, k, length)
            assert (cut[known] == entries[known]).all(), (num_classes, k, length)


def test_the_kth_class_comes_last():
    entries = encode_top_k(drawn("ordinary"), dtype_of(20, 5), 1.0)
    last = np.frombuffer(entries.tobytes(), np.uint8).reshape(64, -1)[:, -2:].copy().view("<i2")[:, 0]
    assert (last == entries["classes"][:, -1]).all() and (last > 0).all()


# ---- read and write ----


@LAYOUTS
def test_what_is_written_is_read_at_any_position_in_any_order(tmp_path, layout):
    store = make(tmp_path, **layout)
    expected = answers(store)
    positions = np.random.default_rng(0).permutation(100)
    store.write(0, positions[:60], expected[positions[:60]])
    for reader in (store, TeacherStore(tmp_path)):
        for order in (everywhere(store), positions, everywhere(store)[::-1], np.array([99, 0, 0, 50])):
            entries, known = reader.read(0, order)
            assert known.tolist() == [position in positions[:60] for position in order]
            assert (entries[known] == expected[order[known]]).all()
            assert entries[~known].tobytes() == bytes(int((~known).sum()) * store.dtype.itemsize)


@LAYOUTS
def test_what_is_written_later_is_read_at_once_by_who_has_read_before(tmp_path, layout):
    store, other = make(tmp_path, **layout), TeacherStore(tmp_path)
    expected = answers(store)
    for begin in range(0, 100, 20):
        positions = np.arange(begin, begin + 20)
        for reader in (store, other):
            assert reader.read(2, everywhere(store))[1].sum() == reader.count(2) == begin
        store.write(2, positions, expected[positions])
    for reader in (store, other):
        entries, known = reader.read(2, everywhere(store))
        assert known.all() and (entries == expected).all()


@LAYOUTS
def test_neighbours_and_other_epochs_stay_as_they_are(tmp_path, layout):
    store = make(tmp_path, **layout)
    expected = answers(store)
    store.write(0, everywhere(store), expected)
    store.write(1, np.array([10, 12]), expected[[10, 12]])
    before = store.path(0).read_bytes()
    store.write(1, np.array([11]), expected[[11]])
    store.write(0, np.array([], dtype=np.int64), expected[:0])
    assert store.path(0).read_bytes() == before == expected.tobytes()
    size = store.dtype.itemsize
    assert store.path(1).read_bytes() == bytes(10 * size) + expected[10:13].tobytes() + bytes(87 * size)
    store.write(0, np.array([4]), expected[[5]])
    assert store.path(0).read_bytes() == before[: 4 * size] + expected[[5]].tobytes() + before[5 * size :]


@LAYOUTS
def test_an_epoch_that_nobody_asked_about_is_all_holes(tmp_path, layout):
    store = make(tmp_path, **layout)
    entries, known = store.read(7, np.array([3, 99]))
    assert entries.dtype == store.dtype and len(entries) == 2
    assert known.dtype == bool and not known.any()
    assert store.count(7) == store.count(7, 10) == 0
    assert store.epochs() == []
    assert not list(tmp_path.glob("*.bin"))  # reading makes none


def test_count_holds_and_epochs(tmp_path):
    store = make(tmp_path)
    expected = answers(store)
    for epoch, known in ((0, range(100)), (11, range(40)), (3, [0, 1, 39, 41])):
        positions = np.array(known)
        store.write(epoch, positions, expected[positions])
    assert store.epochs() == [0, 3, 11]
    assert [store.count(epoch) for epoch in (0, 3, 11, 12)] == [100, 4, 40, 0]
    assert [store.count(3, first) for first in (0, 1, 39, 40, 41, 42)] == [0, 1, 2, 3, 3, 4]
    assert store.holds({}) and store.holds({0: 100}) and store.holds({0: 96, 11: 40, 3: 2})
    assert not store.holds({0: 100, 11: 41})
    assert not store.holds({3: 3})
    assert not store.holds({12: 1})
    assert not store.holds({0: 101})


def test_the_last_of_two_answers_about_a_position_is_kept(tmp_path):
    store = make(tmp_path)
    store.write(0, np.array([5, 4, 5]), np.array([1, 2, 3], dtype=store.dtype))
    assert store.read(0, np.array([4, 5]))[0].tolist() == [2, 3]


def test_a_position_beyond_the_store_is_refused(tmp_path):
    store = make(tmp_path)
    for position in (100, 12_345):
        positions = np.array([0, position])
        with pytest.raises(InputError, match=rf"room for 100 views.*position {position:,}; choose another"):
            store.read(0, positions)
        with pytest.raises(InputError, match=rf"room for 100 views.*position {position:,}; choose another"):
            store.write(0, positions, answers(store)[:2])
    assert store.count(0) == 0
    store.write(0, np.array([99]), answers(store)[:1])
    assert store.read(0, np.array([99]))[1].all()


# ---- several writers, and killed ones ----


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
    assert store.path(0).read_bytes() == entries.tobytes()


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
    assert store.path(0).read_bytes() == entries.tobytes()


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
def test_a_writer_killed_within_an_entry_leaves_it_absent(tmp_path, layout):
    for kill_after in (2400, 2402, 2420, 2440, 2442, 2460):
        store = make(tmp_path / str(kill_after), num_views=5000, num_classes=1000, **layout)
        entries = answers(store, distinct=101)
        run = FORK.Process(target=write_in_pieces, args=(store, entries, 2, kill_after))
        run.start()
        run.join(DEADLINE)
        assert run.exitcode == -signal.SIGKILL
        assert store.count(0) == kill_after // store.dtype.itemsize
        assert_whole_or_absent_then_fill(store, entries)


@LAYOUTS
def test_a_write_taken_in_pieces_is_completed(tmp_path, layout, monkeypatch):
    store, pwrite = make(tmp_path, **layout), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, offset: pwrite(file, content[:3], offset))
    store.write(0, everywhere(store), answers(store))
    assert store.path(0).read_bytes() == answers(store).tobytes()


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


# ---- damage ----


@pytest.mark.parametrize("size", [1, 199, 201, 4096])
def test_a_file_of_another_size_is_refused_and_left_alone(tmp_path, size):
    make(tmp_path).write(4, np.arange(100), answers(make(tmp_path)))
    store = TeacherStore(tmp_path)
    os.truncate(store.path(4), size)
    before = store.path(4).read_bytes()
    for use in (
        lambda: store.read(4, np.arange(2)),
        lambda: store.write(4, np.arange(2), answers(store)[:2]),
        lambda: store.count(4),
        lambda: store.holds({4: 1}),
    ):
        with pytest.raises(InputError) as caught:
            use()
        words = (str(store.path(4)), f"{size:,} bytes", "200", "delete it", "fetch it anew")
        assert [word for word in words if word not in str(caught.value)] == []
        assert store.path(4).read_bytes() == before


def test_an_empty_file_is_one_that_is_being_made(tmp_path):
    store = make(tmp_path)
    store.path(0).touch()
    assert store.count(0) == 0 and not store.read(0, np.arange(3))[1].any()
    store.write(0, np.arange(100), answers(store))
    assert store.path(0).read_bytes() == answers(store).tobytes()


def test_a_folder_without_a_description_is_no_store(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert not is_store(folder)
        with pytest.raises(InputError, match=rf"{re.escape(str(folder))}.*is no store.*store\.json"):
            TeacherStore(folder)
    assert not is_store(None)
    make(tmp_path)
    assert is_store(tmp_path) and is_store(str(tmp_path))


def without(field: str) -> str:
    kept = {"format": 1, **fingerprint()}
    del kept[field]
    return json.dumps({"fingerprint": kept, "about": {}})


def test_a_damaged_description_is_an_input_error(tmp_path):
    make(tmp_path)
    for text in (
        "",
        '{"fingerprint": {',
        "\udcff",
        "{}",
        "[]",
        "null",
        '{"fingerprint": {}}',
        '{"about": {}}',
        '{"fingerprint": [], "about": {}}',
        without("num_views"),
        without("num_classes"),
        without("distillation_type"),
        without("format"),
    ):
        (tmp_path / "store.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(InputError, match=re.escape(str(tmp_path))):
            TeacherStore(tmp_path)


def test_a_later_format_is_refused(tmp_path):
    make(tmp_path)
    path = tmp_path / "store.json"
    kept = json.loads(path.read_text())
    assert kept["fingerprint"]["format"] == 1
    kept["fingerprint"]["format"] = 2
    path.write_text(json.dumps(kept))
    with pytest.raises(InputError, match="format 2.*1"):
        TeacherStore(tmp_path)


# ---- making one ----


def test_a_store_is_made_in_a_new_folder_and_found_again(tmp_path):
    folder = tmp_path / "deep" / "answers"
    store = make(folder)
    assert [path.name for path in folder.iterdir()] == ["store.json"]
    before = (folder / "store.json").read_bytes()
    again = make(folder)
    assert (folder / "store.json").read_bytes() == before
    assert again.fingerprint == store.fingerprint == TeacherStore(folder).fingerprint
    assert again.about["teacher"] == "mine"
    assert (again.num_views, again.dtype) == (100, np.dtype("<i2"))


def test_a_store_is_made_in_an_empty_folder(tmp_path):
    make(tmp_path)
    assert is_store(tmp_path)


def test_what_an_interrupted_making_left_is_no_hindrance(tmp_path):
    (tmp_path / "store.json.4711.partial").write_text('{"finger')
    assert make(tmp_path).num_views == 100


def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=rf"{re.escape(str(tmp_path))}.*is no store; choose a new folder"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_file_in_the_place_of_a_folder_is_an_input_error(tmp_path):
    (tmp_path / "answers").write_text("mine")
    with pytest.raises(InputError, match="answers"):
        make(tmp_path / "answers")
    assert (tmp_path / "answers").read_text() == "mine"


def test_another_fingerprint_is_refused_and_nothing_changed(tmp_path):
    store = make(tmp_path)
    store.write(0, np.arange(100), answers(store))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"data_seed 0, this run has 1; pass --data_seed 0"):
        make(tmp_path, data_seed=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_how_many_classes_a_new_store_keeps(tmp_path):
    for number, (num_classes, k, kept) in enumerate(
        [(1000, None, 10), (7, None, 7), (1000, 3, 3), (7, 50, 7), (10, 10, 10)]
    ):
        store = make(tmp_path / str(number), distillation_type="soft", num_classes=num_classes, k=k)
        assert store.fingerprint["k"] == kept
        assert store.dtype["classes"].shape == (kept,)


def test_a_run_without_a_k_takes_the_stores(tmp_path):
    store = make(tmp_path, distillation_type="soft", k=3)
    store.check(fingerprint(distillation_type="soft", k=None))
    with pytest.raises(InputError, match="k 3, this run has 4; pass --teacher_store_top_k 3"):
        store.check(fingerprint(distillation_type="soft", k=4))


def test_neither_k_nor_temperature_matter_to_decisions(tmp_path):
    store = make(tmp_path, k=5, temperature=1.0)
    store.check(fingerprint(k=7, temperature=3.0))
    assert not {"k", "temperature"} & store.fingerprint.keys()


def test_threads_making_one_store_find_the_same(tmp_path):
    # As processes of equal number on two machines that share a disk.
    for number in range(20):
        barrier = Barrier(4)

        def create(_, folder=tmp_path / str(number), barrier=barrier):
            barrier.wait(DEADLINE)
            return make(folder).fingerprint

        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(create, range(4)))
        assert made == [made[0]] * 4
        assert [path.name for path in (tmp_path / str(number)).iterdir()] == ["store.json"]


def make_many(folder, barrier):
    for number in range(100):
        barrier.wait(DEADLINE)
        try:
            store = make(folder / str(number))
            store.write(0, np.arange(2), np.array([1, 2], store.dtype))
        except BaseException:
            barrier.abort()
            raise


def test_processes_making_one_store_find_the_same(tmp_path):
    barrier = FORK.Barrier(4)
    run_beside_each_other(make_many, *[(tmp_path, barrier)] * 4)
    for number in range(100):
        assert TeacherStore(tmp_path / str(number)).count(0) == 2
        assert not list((tmp_path / str(number)).glob("*.partial"))


# ---- what a run must agree to ----

FULL = fingerprint(distillation_type="soft", k=5)
ARGUMENTS = {
    field.name
    for arguments in (ModelArguments, DataArguments, DistillationTrainingArguments)
    for field in dataclasses.fields(arguments)
}


def test_a_fingerprint_holds_whatever_an_answer_depends_on():
    settings = {field.name for field in dataclasses.fields(AugmentationSettings)}
    others = {"dataset", "num_images", "num_classes", "num_views", "data_seed", "repeated_augmentation"}
    assert set(FULL) == settings | others | {"augmentation_version", "distillation_type", "k", "temperature"}


def test_a_field_that_differs_is_named_with_both_values_and_a_remedy(tmp_path):
    store = make(tmp_path, distillation_type="soft", k=5)
    store.check(FULL)
    for field, theirs in FULL.items():
        ours = "else" if isinstance(theirs, str) else (0.25, 0.5) if isinstance(theirs, tuple) else theirs + 1
        with pytest.raises(InputError) as caught:
            store.check({**FULL, field: ours})
        message = str(caught.value)
        assert f"for {field} {json.dumps(theirs)}, this run has {json.dumps(ours)}; " in message
        assert str(tmp_path) in message and "\n" not in message
        named = re.findall(r"--(\w+)", message)
        assert "teacher_store" in named and set(named) <= ARGUMENTS, field
        for argument, value in re.findall(r"pass --(\w+) ([^\s,]+)", message):
            assert value == str(theirs), argument


def test_tuples_are_the_lists_that_json_makes_of_them(tmp_path):
    store = make(tmp_path)
    store.check({"random_crop_scale": (0.08, 1.0)})
    store.check({"random_crop_scale": [0.08, 1.0]})
    with pytest.raises(InputError, match="random_crop_scale"):
        store.check({"random_crop_scale": (0.08, 0.9)})


def test_a_field_that_the_store_lacks_is_refused(tmp_path):
    with pytest.raises(InputError, match='teacher_weights null, this run has "abc"'):
        make(tmp_path).check({"teacher_weights": "abc"})


def test_a_long_value_is_cut(tmp_path):
    store = create_store(tmp_path, {**fingerprint(), "label_map": list(range(1000))}, {})
    with pytest.raises(InputError, match="label_map") as caught:
        store.check({"label_map": list(range(1000))[::-1]})
    assert len(str(caught.value)) < 500


# ---- validation ----


def test_validation_answers_come_back_in_their_view_alone(tmp_path):
    store = make(tmp_path)
    assert store.read_validation("16 pixels") is None
    store.write_validation("16 pixels", 0.75, np.array([3, 1, 0, 2]), np.array([3, 1, 0, 9]))
    for reader in (store, TeacherStore(tmp_path)):
        kept = reader.read_validation("16 pixels")
        assert (kept["accuracy"], kept["answers"], kept["labels"]) == (0.75, [3, 1, 0, 2], [3, 1, 0, 9])
        assert reader.read_validation("24 pixels") is None
    store.write_validation("24 pixels", 0.5, np.array([1]), np.array([0]))
    assert store.read_validation("24 pixels")["answers"] == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store.json", "validation.json"]


def test_damaged_validation_answers_are_none(tmp_path):
    store = make(tmp_path)
    store.write_validation("16 pixels", 0.75, np.array([3]), np.array([3]))
    for content in (b"", b'{"view": "16 pixels", "ans', b"\xff\xfe", b"[]", b'{"view": "16 pixels"}'):
        (tmp_path / "validation.json").write_bytes(content)
        assert store.read_validation("16 pixels") is None
