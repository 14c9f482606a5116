"""What the tests of conversion share: a checkpoint in the public names."""

import pytest
from helpers.checkpoints import student

from modeling_deit_distill.conversion.weight_names import ours_to_public

# Files


@pytest.fixture
def public(tiny_config):
    """A student of width 64, whose single head needs no configuration, in the public names."""
    return ours_to_public(student(tiny_config, hidden_size=64, num_attention_heads=1).state_dict)
