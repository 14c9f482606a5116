"""What a training step asks of a device, counted without one: operations, and the bytes they read and write.

    python examples/benchmarks/count_operations.py [--size base] [--batch_size 256] [--precision bf16] [--json FILE]

Small models wait for the host that sends the operations, large ones for memory and matrix products: fewer operations
and fewer bytes are what a GPU's time is made of. All runs on fake tensors, which have shapes and no values, so nothing
is timed and any machine will do: a step of the student (forward, loss of both heads, backward), of ours and its peers
of `student_speed.py`, on fake CPU tensors, since autograd wants a driver for others; and the augmentation of a batch
on a fake GPU. Views of a tensor count for nothing, a fused kernel (attention, a norm) as one operation.
"""

import argparse
import json
import unittest.mock
from collections import Counter
from pathlib import Path

import torch
from student_speed import NUM_CLASSES, both_heads, make_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_deit_distill import modeling_deit_distill
from modeling_deit_distill.augmentation.augment import augment
from modeling_deit_distill.configuration_deit_distill import SIZES
from modeling_deit_distill.data.views import AugmentationSettings, draw, draw_uniforms
from modeling_deit_distill.losses import hard_distillation_loss, label_loss
from modeling_deit_distill.script import run_script

NAMES = ("ours", "transformers", "timm")


class Operations(TorchDispatchMode):
    """Counts what is done to tensors of one kind of device, and the transfers to it.

    Attributes:
        calls, bytes: by the operation's name.
    """

    def __init__(self, device_type: str):
        super().__init__()
        self.device_type = device_type
        self.calls, self.bytes = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        name = function.overloadpacket.__name__
        if self.device_type in devices and not is_free(function, name):
            name = "transfer" if len(devices) > 1 and name in ("_to_copy", "copy_") else name
            self.calls[name] += 1
            here = [tensor for tensor in tensors if tensor.device.type == self.device_type]
            self.bytes[name] += sum(map(num_bytes, here))
        return result

    def summary(self) -> dict[str, float]:
        """Operations in all, among them transfers from the host, and gigabytes."""
        transfers = self.calls["transfer"]
        return {"operations": self.calls.total(), "transfers": transfers, "GB": self.bytes.total() / 1e9}


def num_bytes(tensor: torch.Tensor) -> int:
    """What a tensor holds; of a view that overlaps itself, the memory below."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def is_free(function, name: str) -> bool:
    """Whether an operation moves nothing: it returns a view of what it got, or asks for memory or a fact."""
    results = function._schema.returns
    is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in results)
    return is_view or "empty" in name or name in ("device", "_unsafe_view", "detach")


def main(arguments: list[str]):
    options = parse_options(arguments)
    figures = {name: count_step(name, options) for name in NAMES}
    figures["augmentation"] = count_augmentation(options)
    for name, counts in figures.items():
        shown = ", ".join(
            f"{value:.1f} {what}" if what == "GB" else f"{value} {what}" for what, value in counts.items()
        )
        print(f"{name:14} {shown}")
    if options.json:
        Path(options.json).write_text(json.dumps({"figures": figures, "options": vars(options)}, indent=2) + "\n")


def parse_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES], default="base")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--json", help="write the figures here")
    options = parser.parse_args(arguments)
    options.device = "cpu"
    return options


def count_step(name: str, options) -> dict[str, float]:
    """Of forward, loss and backward in training."""
    model = make_model(name, options).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        make_fake(model)
        batch = options.batch_size
        pixel_values = torch.empty(batch, 3, options.image_size, options.image_size)
        labels, decided = torch.empty(batch, NUM_CLASSES), torch.empty(batch, dtype=torch.long)
        # As on a GPU, where attention is fused in bf16 too.
        fused = unittest.mock.patch.object(modeling_deit_distill, "MAX_WRITTEN_OUT", 0)
        with fused, Operations("cpu") as operations:
            with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
                cls_logits, distillation_logits = both_heads(model(pixel_values))
                loss = 0.5 * label_loss(cls_logits, labels, 0.1)
                loss = loss + 0.5 * hard_distillation_loss(distillation_logits, decided)
            loss.backward()
    return operations.summary()


def make_fake(model: torch.nn.Module):
    """Give the model weights without values; to be called under `FakeTensorMode`."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty_like(weight))


def count_augmentation(options) -> dict[str, float]:
    """Of the recipe's flip, RandAugment, erasing and mixing of one batch that lies on the device."""
    settings, positions = AugmentationSettings(options.image_size), range(options.batch_size)
    draws = draw(settings, 0, 0, positions, draw_uniforms(0, 0, positions))
    shape = (options.batch_size, 3, options.image_size, options.image_size)
    with FakeTensorMode(allow_non_fake_inputs=True):
        pixel_values = torch.empty(shape, dtype=torch.uint8, device="cuda")
        output = torch.empty(shape, device="cuda")
        with Operations("cuda") as operations:
            augment(pixel_values, draws, (0.5,) * 3, (0.25,) * 3, out=output)
    return operations.summary()


if __name__ == "__main__":
    run_script(main)
