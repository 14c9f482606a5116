"""A small teacher that knows the digits."""

import torch
from transformers import PreTrainedConfig, ResNetConfig, ResNetForImageClassification

from modeling_deit_distill.arguments import DistillationTrainingArguments, ModelArguments
from modeling_deit_distill.teachers.description import describe_teachers
from modeling_deit_distill.teachers.teacher import Teacher, load_teacher

DIGITS = [str(digit) for digit in range(10)]
SMALL = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def save_resnet(folder, class_names=DIGITS, processor=None):
    config = ResNetConfig(**SMALL, num_labels=len(class_names), id2label=dict(enumerate(class_names)))
    torch.manual_seed(2)
    model = ResNetForImageClassification(config).eval()
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return model


def teacher_in(folder, class_names=DIGITS, **fields) -> Teacher:
    """The teacher in a folder, to be shown 32 pixels; `fields` are those of `ModelArguments`."""
    return load_teacher(ModelArguments(teacher_name_or_path=str(folder), **fields), class_names, 32)


def describe(class_names=DIGITS, **fields) -> PreTrainedConfig:
    """The configuration of the teacher that `fields` of `ModelArguments` name."""
    args = DistillationTrainingArguments(use_cpu=True, bf16=False, report_to="none")
    return describe_teachers(ModelArguments(**fields), args, class_names)[0]


def describe_new(class_names=DIGITS, **fields) -> PreTrainedConfig:
    """The same of a teacher that is to be trained."""
    return describe(class_names, train_teacher=True, **fields)
