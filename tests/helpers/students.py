"""What a student is shown and should answer, and the code that it is saved with."""

import torch
from torch import nn

CODE_FILES = {"configuration_deit_distill.py", "modeling_deit_distill.py"}
AUTO_MAP = {
    "AutoConfig": "configuration_deit_distill.DeiTDistillConfig",
    "AutoModel": "modeling_deit_distill.DeiTDistillModel",
    "AutoModelForImageClassification": "modeling_deit_distill.DeiTDistillForImageClassification",
}


def images(batch=3, size=(32, 32), channels=3) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, labels=(0, 1, 4)) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(images(len(labels)), labels=torch.tensor(labels)).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


FUSED_PROBABILITIES = {
    "logit_mean": lambda cls, distillation: ((cls + distillation) / 2).softmax(-1),
    "softmax_mean": lambda cls, distillation: (cls.softmax(-1) + distillation.softmax(-1)) / 2,
    "cls": lambda cls, distillation: cls.softmax(-1),
    "distillation": lambda cls, distillation: distillation.softmax(-1),
}
