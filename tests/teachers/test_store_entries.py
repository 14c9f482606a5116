"""What an entry of a store says: its size, labels, and the k highest logits."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.stores import HALF_ULP, LAYOUTS, answers, dtype_of, few_examples, make
from hypothesis import given
from hypothesis import strategies as st

from modeling_deit_distill import soft_distillation_loss
from modeling_deit_distill.teachers.entries import decode_labels, decode_top_k, encode_labels, encode_top_k
from modeling_deit_distill.teachers.entry_files import BlockFile
from modeling_deit_distill.teachers.store import is_known

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


def test_checksums_of_labels_take_less_than_a_hundredth_of_them():
    for num_views, size in [(5000, 5000 * 2 + 32 + 5 * 4), (1_281_167, 1_281_167 * 2 + 32 + 1252 * 4)]:
        file = BlockFile(Path("epoch-00000.bin"), 0, "0" * 16, dtype_of(1000), num_views)
        assert file.size == size <= 1.01 * num_views * 2


@LAYOUTS
def test_an_epochs_file_has_room_for_all_its_views_from_the_first_write(tmp_path, layout):
    store = make(tmp_path, num_views=77, **layout)
    store.write(3, np.array([5]), answers(store)[[5]])
    assert store.path(3).stat().st_size == 32 + 77 * (44 if layout else 2) + 4  # header and a checksum
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
