"""The student at other image sizes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.students import images

from modeling_deit_distill.modeling_deit_distill import resize_position_embeddings


def test_interpolation_at_the_models_own_size_changes_nothing(tiny_model):
    model = tiny_model()
    assert torch.equal(model(images(), interpolate_pos_encoding=True).logits, model(images()).logits)


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (8, 64)], ids=str)
def test_interpolation_equals_resizing_the_model(tiny_model, size):
    model = tiny_model()
    resized = copy.deepcopy(model)
    resized.resize_position_embeddings(size)
    pixels = images(size=size)
    output = model.deit(pixels, interpolate_pos_encoding=True).last_hidden_state
    assert output.shape == (3, 2 + size[0] * size[1] // 64, 32)
    torch.testing.assert_close(output, resized.deit(pixels).last_hidden_state)
    assert model.config.image_size == 32  # interpolating leaves the model as it is


def test_interpolation_passes_gradients_to_the_positions(tiny_model):
    model = tiny_model()
    model(images(size=(48, 48)), labels=torch.tensor([0, 1, 2]), interpolate_pos_encoding=True).loss.backward()
    assert (model.get_position_embeddings().grad[0].abs().sum(-1) > 0).all()


def public_resize(pos_embed: torch.Tensor, num_extra_tokens: int, new_size: int) -> torch.Tensor:
    """facebookresearch/deit, main.py, under `if args.finetune`."""
    embedding_size = pos_embed.shape[-1]
    orig_size = int((pos_embed.shape[-2] - num_extra_tokens) ** 0.5)
    extra_tokens = pos_embed[:, :num_extra_tokens]
    pos_tokens = pos_embed[:, num_extra_tokens:]
    pos_tokens = pos_tokens.reshape(-1, orig_size, orig_size, embedding_size).permute(0, 3, 1, 2)
    pos_tokens = F.interpolate(pos_tokens, size=(new_size, new_size), mode="bicubic", align_corners=False)
    pos_tokens = pos_tokens.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat((extra_tokens, pos_tokens), dim=1)


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("image_size", [48, 16])
def test_resizing_is_the_public_procedure(tiny_model, image_size, token):
    model = tiny_model(use_distillation_token=token)
    before = model.get_position_embeddings().detach().clone()
    model.resize_position_embeddings(image_size)
    after = model.get_position_embeddings()
    prefix = 1 + token
    torch.testing.assert_close(after.detach(), public_resize(before, prefix, image_size // 8))
    assert torch.equal(after[:, :prefix], before[:, :prefix])
    assert model.config.image_size == image_size
    assert after.requires_grad
    assert model(images(size=(image_size, image_size))).logits.shape == (3, 5)


def test_height_and_width_are_not_exchanged():
    # Positions that depend on their row alone still do so in another, oblong grid.
    rows = torch.arange(4.0).repeat_interleave(3).view(1, 12, 1)
    resized = resize_position_embeddings(torch.cat([torch.tensor([[[9.0]]]), rows], dim=1), (4, 3), (4, 5))
    torch.testing.assert_close(resized[0, 1:, 0], torch.arange(4.0).repeat_interleave(5))
    assert resized[0, 0, 0] == 9


def test_resizing_keeps_dtype_and_frozen_positions(tiny_model):
    model = tiny_model().to(torch.bfloat16).requires_grad_(False)
    model.resize_position_embeddings(48)
    assert model.get_position_embeddings().dtype == torch.bfloat16
    assert not model.get_position_embeddings().requires_grad


def test_resizing_to_a_size_between_patches_is_refused_and_changes_nothing(tiny_model):
    model = tiny_model()
    expected = model(images()).logits
    with pytest.raises(ValueError, match="image_size 33"):
        model.resize_position_embeddings(33)
    assert model.config.image_size == 32
    assert torch.equal(model(images()).logits, expected)
