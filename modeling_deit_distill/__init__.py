"""Distil any image classifier into a small, fast vision transformer (DeiT, Touvron et al. 2020).

Importing the package registers the student with transformers' Auto classes. Every other public name is imported when
it is first used (PEP 562), so that whoever only loads a model pays for no datasets and no matplotlib.
"""

from importlib import import_module

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from .configuration_deit_distill import DeiTDistillConfig
from .modeling_deit_distill import DeiTDistillForImageClassification, DeiTDistillModel

__version__ = "0.2.0"

_LAZY = {
    "DistillationTrainer": "trainer",
    "DistillationTrainingArguments": "arguments",
    "InputError": "errors",
    "hard_distillation_loss": "losses",
    "label_loss": "losses",
    "soft_distillation_loss": "losses",
}

__all__ = [
    "DeiTDistillConfig",
    "DeiTDistillForImageClassification",
    "DeiTDistillModel",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "InputError",
    "hard_distillation_loss",
    "label_loss",
    "soft_distillation_loss",
]

# For loading by the Auto classes with this package imported ...
AutoConfig.register(DeiTDistillConfig.model_type, DeiTDistillConfig)
AutoModel.register(DeiTDistillConfig, DeiTDistillModel)
AutoModelForImageClassification.register(DeiTDistillConfig, DeiTDistillForImageClassification)

# ... and without it: saving a model copies the two code files beside the weights.
DeiTDistillConfig.register_for_auto_class()
DeiTDistillModel.register_for_auto_class("AutoModel")
DeiTDistillForImageClassification.register_for_auto_class("AutoModelForImageClassification")


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_LAZY])
