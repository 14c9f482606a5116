"""A model's weights: kept around an evaluation, refused where they are not finite, and freed from wrappers' names."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.tensor import DTensor

from .errors import InputError

# What torch.compile (`_orig_mod`), DDP, averages (`module`), FSDP and Lightning (`model`) put before a weight's name.
WRAPPERS = ("module", "model", "_orig_mod", "_fsdp_wrapped_module")
# Parts of a model may be compiled or sharded alone.
INNER_WRAPPERS = r"\.(?:_orig_mod|_fsdp_wrapped_module)(?=\.)"


@contextmanager
def weights_kept(model: nn.Module) -> Iterator[None]:
    """Around an evaluation: `bf16_full_eval` and `fp16_full_eval` round the model itself, which is saved later."""
    own = [parameter.data for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, weight in zip(model.parameters(), own, strict=True):
            if parameter.dtype != weight.dtype:
                parameter.data = weight


def check_finite_weights(
    named_tensors: Iterable[tuple[str, torch.Tensor]], what: str, remedy: str, is_sharded: bool = False
):
    """Refuse to let go of weights that are not finite.

    Args:
        named_tensors: names and weights; of sharded ones this process's share is looked at.
        what: is refused, in words.
        remedy: for the message.
        is_sharded: ask the other processes about their shares.

    Raises:
        InputError: NaN or infinity among them.
    """
    local = {name: value.to_local() if isinstance(value, DTensor) else value for name, value in named_tensors}
    flags = [~value.detach().isfinite().all() for value in local.values()]
    bad = torch.stack(flags).tolist() if flags else []  # one wait for all
    names = [name for name, is_bad in zip(local, bad, strict=True) if is_bad]
    if any(gather_object([bool(names)])) if is_sharded else names:
        found = f"{names[0]} and {len(names) - 1} more" if names else "those of another process"
        raise InputError(f"{what}: the weights are not finite ({found}), so they were not saved; {remedy}")


def first_not_finite(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The first name whose tensor is not finite, of a sharded one this process's share; None if all are finite."""
    for name, value in named_tensors:
        local = value.to_local() if isinstance(value, DTensor) else value
        if not local.detach().isfinite().all():
            return name
    return None


def unwrapped_names(names: Iterable[str]) -> dict[str, str]:
    """The names that weights have without wrappers, by those that they have.

    Raises:
        InputError: two would become one.
    """
    names = list(names)
    prefix = _wrapper_prefix(names)
    new = {name: re.sub(INNER_WRAPPERS, "", name.removeprefix(prefix)) for name in names}
    if len(set(new.values())) < len(new):
        raise InputError("names of weights become equal without what torch.compile or FSDP put into them")
    return new


def _wrapper_prefix(names: Iterable[str]) -> str:
    """What wrappers have put before all names, `"module._orig_mod."`, or nothing."""
    prefix, parts = "", zip(*(name.split(".")[:-1] for name in names), strict=False)
    for part in parts:
        if len(set(part)) > 1 or part[0] not in WRAPPERS:
            break
        prefix += f"{part[0]}."
    return prefix
