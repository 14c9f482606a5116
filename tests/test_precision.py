import platform

import pytest
import torch

from modeling_deit_distill import DistillationTrainingArguments, arguments, precision
from modeling_deit_distill.arguments import parse_arguments
from modeling_deit_distill.precision import multiplies_bf16, precision_in_words


@pytest.mark.parametrize(
    ("has_avx512_bf16", "has_amx", "expected"), [(0, 0, False), (1, 0, True), (0, 1, True), (1, 1, True)]
)
def test_x86_processors_that_multiply_bf16(monkeypatch, has_avx512_bf16, has_amx, expected):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(has_avx512_bf16))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(has_amx))
    assert multiplies_bf16("cpu") is expected


@pytest.mark.parametrize(("has_library", "expected"), [(True, True), (False, False)])
def test_other_processors_are_asked_through_the_library_of_products_if_there_is_one(monkeypatch, has_library, expected):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_library)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    assert multiplies_bf16("cpu") is expected


def test_a_gpu_must_not_emulate_bf16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert not multiplies_bf16("cuda")


def test_of_other_devices_nothing_is_known():
    assert not multiplies_bf16("mps")


def arguments_of(tmp_path, **given) -> DistillationTrainingArguments:
    return DistillationTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, **given)


@pytest.mark.parametrize("has_units", [True, False])
def test_unless_told_otherwise_the_device_decides(tmp_path, monkeypatch, has_units):
    asked = []
    monkeypatch.setattr(arguments, "multiplies_bf16", lambda kind: asked.append(kind) or has_units)
    args = arguments_of(tmp_path)
    assert (args.bf16, args.precision, args.bf16_is_automatic) == (has_units, "bf16" if has_units else "fp32", True)
    assert asked == ["cpu"]


@pytest.mark.parametrize("has_units", [True, False])
def test_the_users_word_comes_first(tmp_path, monkeypatch, has_units):
    monkeypatch.setattr(arguments, "multiplies_bf16", lambda kind: has_units)
    for given, expected in (({"bf16": True}, "bf16"), ({"bf16": False}, "fp32")):
        args = arguments_of(tmp_path, **given)
        assert (args.precision, args.bf16_is_automatic) == (expected, False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    args = arguments_of(tmp_path)
    assert (args.precision, args.bf16_is_automatic) == ("bf16", False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # so the launcher says where nobody asked
    assert arguments_of(tmp_path).bf16 is has_units


@pytest.mark.parametrize(("words", "expected"), [([], None), (["--bf16"], True), (["--bf16", "false"], False)])
def test_on_the_command_line(tmp_path, monkeypatch, words, expected):
    monkeypatch.setattr(arguments, "multiplies_bf16", lambda kind: True)
    *_, args = parse_arguments(["--dataset_name", "digits", "--output_dir", str(tmp_path), *words])
    assert args.bf16 is (True if expected is None else expected)
    assert args.bf16_is_automatic is (expected is None)


@pytest.mark.parametrize(
    ("chosen", "is_automatic", "has_units", "expected"),
    [
        ("bf16", True, True, "bf16, which this device multiplies natively (--bf16 false for fp32)"),
        ("bf16", False, True, "bf16"),
        ("bf16", False, False, precision.NO_UNITS),
        ("fp32", True, False, "fp32"),
        ("fp16", False, True, "fp16"),
    ],
)
def test_in_words(monkeypatch, chosen, is_automatic, has_units, expected):
    monkeypatch.setattr(precision, "multiplies_bf16", lambda kind: has_units)
    assert precision_in_words(chosen, "cpu", is_automatic) == expected
