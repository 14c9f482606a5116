"""The arguments of `train_deit.py`: three dataclasses, a file each."""

from .data import DataArguments
from .model import ModelArguments
from .training import NATIVE_REVISION, DistillationTrainingArguments, decay_of_half_life

__all__ = ["NATIVE_REVISION", "DataArguments", "DistillationTrainingArguments", "ModelArguments", "decay_of_half_life"]
