"""Small checkpoints with weights of their own, and whether two are the same."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedConfig

from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification, InputError
from modeling_deit_distill.conversion.checkpoint import PretrainedStudent, load_checkpoint
from modeling_deit_distill.data.evaluation import evaluation_processor

TOLERANCE = 1e-5
NAMES = {0: "cat", 1: "dog", 2: "hen", 3: "ox", 4: "pig"}
LABELS = {"id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}}
NATIVE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
NATIVE |= {"image_size": 32, "patch_size": 8, "num_labels": 5}


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Every tensor random, so that no name can be mistaken for another; of a size that keeps the logits near one."""
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.05)
    return model.eval()


def student(tiny_config, **overrides) -> PretrainedStudent:
    config = tiny_config(**{**LABELS, "num_labels": 5, **overrides})
    height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    model = randomise(DeiTDistillForImageClassification(config))
    preprocessing = evaluation_processor(max(height, width)).to_dict()
    preprocessing["crop_size"] = {"height": height, "width": width}
    processor = type(evaluation_processor(8)).from_dict(preprocessing)
    return PretrainedStudent(config, model.state_dict(), processor, format="deit_distill")


def images(model) -> torch.Tensor:
    size = model.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(2, model.config.num_channels, height, width)


@torch.no_grad()
def difference(ours, theirs, pixel_values: torch.Tensor) -> float:
    answer = theirs(pixel_values)
    return (ours(pixel_values).logits - getattr(answer, "logits", answer)).abs().max().item()


def assert_same_weights(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]), name


def own_fields(config: DeiTDistillConfig) -> dict:
    names = {field.name for field in fields(DeiTDistillConfig)} - {field.name for field in fields(PreTrainedConfig)}
    return {name: getattr(config, name) for name in names | {"id2label", "label2id"}}


def refused(source) -> str:
    with pytest.raises(InputError) as caught:
        load_checkpoint(str(source))
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(folder: Path, **files) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
