"""The arguments of `train_deit.py`: three dataclasses, a file each."""

from .data import DataArguments
from .model import NO_MAP, ModelArguments
from .training import BROWSER_REVISION, COPIES, NATIVE_REVISION, DistillationTrainingArguments, decay_of_half_life

__all__ = [
    "BROWSER_REVISION",
    "COPIES",
    "NATIVE_REVISION",
    "NO_MAP",
    "DataArguments",
    "DistillationTrainingArguments",
    "ModelArguments",
    "decay_of_half_life",
]
