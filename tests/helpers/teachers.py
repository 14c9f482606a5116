"""A small teacher that knows the digits."""

import torch
from transformers import ResNetConfig, ResNetForImageClassification

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
