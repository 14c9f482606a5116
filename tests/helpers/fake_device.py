"""A GPU of fake tensors, which have shapes and dtypes but no values: `FakeTensorMode` makes them without a GPU."""

import torch

from modeling_deit_distill.augmentation.augment import augment
from modeling_deit_distill.data.views import OPERATIONS, Draws


def on_fake_gpu(module):
    """Replaces the module's tensors; its forward is then one of shapes alone."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                fake = torch.empty_like(value, device="cuda")
                part._parameters[name] = torch.nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, value in part._buffers.items():
            part._buffers[name] = torch.empty_like(value, device="cuda")
    return module


def every_operation(repeats: int) -> Draws:
    """Draws of twice as many views as there are operations, so many times: each operation comes in both places."""
    numbers = torch.arange(2 * len(OPERATIONS)) % len(OPERATIONS)
    others = numbers[torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0))]
    pairs = len(numbers) * repeats // 2
    return Draws(
        flip=(numbers % 2 == 0).repeat(repeats).numpy(),
        operations=torch.stack([numbers, others], 1).repeat(repeats, 1).numpy(),
        arguments=torch.full((2 * pairs, 2), 0.25).numpy(),
        erased_box=torch.tensor([[1, 2, 3, 4]]).repeat(2 * pairs, 1).numpy(),
        noise_seed=torch.arange(2 * pairs).numpy(),
        mix_ratio=torch.full((pairs,), 0.5).numpy(),
        mix_box=torch.tensor([[0, 0, -1, 0], [1, 1, 4, 4]]).repeat(pairs, 1)[:pairs].numpy(),
    )


def augment_on_fake_gpu(draws: Draws) -> torch.Tensor:
    pixels = torch.empty(len(draws.flip), 3, 16, 16, dtype=torch.uint8, device="cuda")
    return augment(pixels, draws, (0.5,) * 3, (0.5,) * 3)
