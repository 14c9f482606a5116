"""A model's weights, left as they are around an evaluation, and refused where they are not finite."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.tensor import DTensor

from .errors import InputError


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
