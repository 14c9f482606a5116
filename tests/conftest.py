"""What the tests of several modules share: no network, no leftover random state, tiny students."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before any other import

import pytest
import torch

from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_config():
    """`tiny_config(**overrides)`: two blocks of width 32, 32 pixels in 16 patches, five classes.

    The wide initialisation lets attention, positions and both heads matter in an untrained model.
    """

    def make(**overrides) -> DeiTDistillConfig:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        images = {"image_size": 32, "patch_size": 8, "num_labels": 5}
        return DeiTDistillConfig(**{**sizes, **images, "initializer_range": 0.2, **overrides})

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    """`tiny_model(**overrides)`: a classifier of `tiny_config(**overrides)`, in eval mode, always the same weights."""

    def make(**overrides) -> DeiTDistillForImageClassification:
        torch.manual_seed(0)
        return DeiTDistillForImageClassification(tiny_config(**overrides)).eval()

    return make
