"""Which numbers a run computes with: what the device has units for, the environment's word, and the user's."""

import platform

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modeling_deit_distill import DistillationTrainingArguments, InputError, precision
from modeling_deit_distill.arguments import training
from modeling_deit_distill.precision import BF16_VARIABLE, bf16_by_default, multiplies_bf16, precision_in_words
from modeling_deit_distill.recipes import parse_arguments


@pytest.fixture(autouse=True)
def nobody_has_said(monkeypatch):
    """Neither the environment nor a launcher names a precision."""
    monkeypatch.delenv(BF16_VARIABLE, raising=False)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


def each_device(monkeypatch):
    """Whether the device has units for bf16: with them and without, in turn."""
    for has_units in (True, False):
        monkeypatch.setattr(precision, "multiplies_bf16", lambda kind, value=has_units: value)
        yield has_units


# --- the device -------------------------------------------------------------------------------------------------------


def test_x86_processors_that_multiply_bf16(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for has_avx512_bf16 in (False, True):
        for has_amx in (False, True):
            monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda value=has_avx512_bf16: value)
            monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda value=has_amx: value)
            assert multiplies_bf16("cpu") is (has_avx512_bf16 or has_amx)


def test_other_processors_are_asked_through_the_library_of_products_if_there_is_one(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    for has_library in (True, False):
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda value=has_library: value)
        assert multiplies_bf16("cpu") is has_library


def test_a_gpu_must_not_emulate_bf16(monkeypatch):
    for kind in (torch.cuda, torch.xpu):
        monkeypatch.setattr(kind, "is_bf16_supported", lambda including_emulation: including_emulation, raising=False)
    assert not multiplies_bf16("cuda") and not multiplies_bf16("xpu")


def test_of_other_devices_nothing_is_known():
    assert not multiplies_bf16("mps")


# --- the environment --------------------------------------------------------------------------------------------------


def test_unless_the_environment_says_otherwise_the_device_decides(monkeypatch):
    for has_units in each_device(monkeypatch):
        monkeypatch.delenv(BF16_VARIABLE, raising=False)
        assert bf16_by_default("cpu") is has_units
        monkeypatch.setenv(BF16_VARIABLE, "")  # as if it was not set
        assert bf16_by_default("cpu") is has_units


def test_the_environment_goes_before_the_device(monkeypatch):
    words = {"true": True, "True": True, "1": True, "false": False, "FALSE": False, "0": False}
    for _ in each_device(monkeypatch):
        for word, expected in words.items():
            monkeypatch.setenv(BF16_VARIABLE, word)
            assert bf16_by_default("cpu") is expected


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1))
def test_the_environment_says_true_or_false_and_nothing_else(word):
    assume(word.lower() not in ("true", "false", "1", "0"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(BF16_VARIABLE, word)
        with pytest.raises(InputError) as refused:
            bf16_by_default("cpu")
    assert f"{BF16_VARIABLE} is {word!r}; set it to true or false" in str(refused.value)


# --- the arguments ----------------------------------------------------------------------------------------------------


def arguments_of(tmp_path, **values) -> DistillationTrainingArguments:
    return DistillationTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, **values)


def test_by_default_the_device_decides(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(training, "bf16_by_default", lambda kind: asked.append(kind) or bf16_by_default(kind))
    for has_units in each_device(monkeypatch):
        args = arguments_of(tmp_path)
        assert (args.bf16, args.precision, args.bf16_is_automatic) == (has_units, "bf16" if has_units else "fp32", True)
    assert asked == ["cpu", "cpu"]


def test_the_environment_is_the_default_of_the_argument(tmp_path, monkeypatch):
    for _ in each_device(monkeypatch):
        for word, expected in (("true", True), ("false", False)):
            monkeypatch.setenv(BF16_VARIABLE, word)
            args = arguments_of(tmp_path)
            assert (args.bf16, args.bf16_is_automatic) == (expected, True)
    monkeypatch.setenv(BF16_VARIABLE, "perhaps")
    with pytest.raises(InputError, match=f"{BF16_VARIABLE} is 'perhaps'"):
        arguments_of(tmp_path)


def test_the_users_word_comes_first(tmp_path, monkeypatch):
    for _ in each_device(monkeypatch):
        for word in ("", "true", "false"):
            monkeypatch.setenv(BF16_VARIABLE, word)
            for value, expected in ((True, "bf16"), (False, "fp32")):
                args = arguments_of(tmp_path, bf16=value)
                assert (args.precision, args.bf16_is_automatic) == (expected, False)


def test_a_launchers_word_comes_before_the_device(tmp_path, monkeypatch):
    for has_units in each_device(monkeypatch):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        args = arguments_of(tmp_path)
        assert (args.precision, args.bf16_is_automatic) == ("bf16", False)
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # so the launcher says where nobody asked
        assert arguments_of(tmp_path).bf16 is has_units


def test_on_the_command_line(tmp_path, monkeypatch):
    given_words = ["--dataset_name", "digits", "--output_dir", str(tmp_path), "--use_cpu"]
    for has_units in each_device(monkeypatch):
        for words, expected in (([], None), (["--bf16"], True), (["--bf16", "false"], False)):
            *_, args = parse_arguments([*given_words, *words])
            assert args.bf16 is (has_units if expected is None else expected)
            assert args.bf16_is_automatic is (expected is None)


# --- in words ---------------------------------------------------------------------------------------------------------


def test_in_words(monkeypatch):
    for chosen, is_automatic, units, expected in (
        ("bf16", True, True, "bf16, which this device multiplies natively (--bf16 false for fp32)"),
        ("bf16", False, True, "bf16"),
        ("bf16", False, False, precision.NO_UNITS),
        ("fp32", True, False, "fp32"),
        ("fp16", False, True, "fp16"),
    ):
        monkeypatch.setattr(precision, "multiplies_bf16", lambda kind, value=units: value)
        assert precision_in_words(chosen, "cpu", is_automatic) == expected


def test_in_words_the_environment_is_named_where_it_decided(monkeypatch):
    for word, chosen in (("true", "bf16"), ("false", "fp32")):
        monkeypatch.setenv(BF16_VARIABLE, word)
        assert precision_in_words(chosen, "cpu", True) == f"{chosen}, by the environment variable {BF16_VARIABLE}"
        assert BF16_VARIABLE not in precision_in_words(chosen, "cpu", False)
