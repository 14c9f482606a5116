"""Which numbers a run computes with: bf16 where the device multiplies it natively, unless the user says otherwise."""

import os
import platform

import torch

from .errors import InputError

# Environment variable: the default of `--bf16` on this machine, in place of what the device has units for.
BF16_VARIABLE = "DEIT_DISTILL_BF16"
NO_UNITS = "bf16, which this device has no units for: fp32 (--bf16 false) is faster, several times on a CPU"


def multiplies_bf16(device_type: str) -> bool:
    """Whether a device has units for bfloat16, so that it is faster than float32 and not slower.

    Args:
        device_type: `"cuda"`, `"xpu"` or `"cpu"`; of any other nothing is known, and the answer is no.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "xpu":
        return torch.xpu.is_bf16_supported(including_emulation=False)
    if device_type == "cpu" and platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if device_type == "cpu" and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return False


def bf16_by_default(device_type: str) -> bool:
    """The value of `--bf16` where nobody gave one: `DEIT_DISTILL_BF16`, or else what the device has units for.

    Every process of a run reads the same variable, so it also makes machines of different kinds agree.

    Raises:
        InputError: the variable is neither true nor false.
    """
    value = os.environ.get(BF16_VARIABLE, "")
    if value.lower() in ("true", "1"):
        return True
    if value.lower() in ("false", "0"):
        return False
    if value:
        raise InputError(f"the environment variable {BF16_VARIABLE} is {value!r}; set it to true or false, or unset it")
    return multiplies_bf16(device_type)


def precision_in_words(precision: str, device_type: str, is_automatic: bool) -> str:
    """`precision`, `"fp32"`, `"bf16"` or `"fp16"`, for the summary, with what a user may want to know of the choice."""
    if is_automatic and os.environ.get(BF16_VARIABLE):
        return f"{precision}, by the environment variable {BF16_VARIABLE}"
    if precision == "bf16" and is_automatic:
        return "bf16, which this device multiplies natively (--bf16 false for fp32)"
    if precision == "bf16" and not multiplies_bf16(device_type):
        return NO_UNITS
    return precision
