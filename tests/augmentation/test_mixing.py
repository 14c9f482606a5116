"""Mixup, CutMix and their labels."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.augmented import PLAIN, S, elsewhere, fetched, idle, photos, recipe
from timm.data.mixup import mixup_target

from modeling_deit_distill.augmentation.augment import as_one_hot, augment, mix, mix_labels
from modeling_deit_distill.data.columns import NO_LABEL
from modeling_deit_distill.data.views import NO_OPERATION


def mixed(images: torch.Tensor, ratios, boxes) -> torch.Tensor:
    images = images.clone()
    mix(images, np.array(ratios, dtype=np.float32), np.array(boxes))
    return images


def test_mixup_by_hand():
    levels = torch.tensor([0, 100, 50, 200], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, S, S)
    boxes = np.tile([0, 0, -1, -1], (2, 1))
    draws = idle(4, mix_ratio=np.array([0.75, 0.1], dtype=np.float32), mix_box=boxes)
    result = 255 * augment(levels, draws, *PLAIN)
    # 0.75·0 + 0.25·100, 0.75·100 + 0.25·0; 0.1·50 + 0.9·200, 0.1·200 + 0.9·50
    expected = torch.tensor([25.0, 75.0, 185.0, 65.0]).view(4, 1, 1, 1).expand(4, 3, S, S)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


def test_mixup_keeps_all_or_nothing():
    images = torch.rand(4, 3, 8, 8)
    result = mixed(images, [1.0, 0.0], [[0, 0, -1, -1]] * 2)
    torch.testing.assert_close(result, images[[0, 1, 3, 2]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("place", [torch.Tensor.clone, elsewhere], ids=["cpu", "elsewhere"])
def test_cutmix_swaps_the_box_between_partners(place):
    images = photos(8).float()
    boxes = [[10, 20, 30, 15], [0, 0, -1, -1], [0, 0, 0, 0], [0, 0, S, S]]
    result = fetched(mixed(place(images), [0.9, 1.0, 1.0, 0.0], boxes))
    expected = images.clone()
    expected[0, :, 10:40, 20:35], expected[1, :, 10:40, 20:35] = images[1, :, 10:40, 20:35], images[0, :, 10:40, 20:35]
    expected[6], expected[7] = images[7], images[6]
    assert torch.equal(result, expected)


def test_mixup_and_cutmix_in_one_batch():
    images = torch.rand(6, 3, 16, 16)
    ratios, boxes = [0.3, 0.75, 0.6], [[0, 0, -1, -1], [4, 4, 8, 8], [0, 0, -1, -1]]
    result = mixed(images, ratios, boxes)
    for pair in range(3):
        here = slice(2 * pair, 2 * pair + 2)
        alone = mixed(images[here], ratios[pair : pair + 1], boxes[pair : pair + 1])
        torch.testing.assert_close(result[here], alone, rtol=0, atol=1e-7)
    torch.testing.assert_close(result[0], 0.3 * images[0] + 0.7 * images[1])
    assert torch.equal(fetched(mixed(elsewhere(images), ratios, boxes)), result)


def test_labels_are_shared_as_pixels_are():
    draws = recipe(64)
    draws.operations[:], draws.erased_box[:] = NO_OPERATION, 0
    assert 5 < (draws.mix_box[:, 2] >= 0).sum() < 27  # some of each kind
    labels = torch.arange(64)
    levels = (255 * (labels % 2)).view(-1, 1, 1, 1).expand(-1, 3, S, S).to(torch.uint8)
    own = augment(levels, draws, *PLAIN).mean(dim=(1, 2, 3))  # the share of the odd views' white
    own[0::2] = 1 - own[0::2]
    shares = mix_labels(labels, draws.mix_ratio, 64)
    torch.testing.assert_close(shares[labels, labels], own, rtol=0, atol=1e-5)
    torch.testing.assert_close(shares[labels, labels ^ 1], 1 - own, rtol=0, atol=1e-5)
    assert ((shares > 0).sum(dim=1) <= 2).all()


def test_an_image_without_a_label_shares_none():
    # Class 2 keeps 0.75 of itself; its partner has no label. Then two without, and two with one each.
    labels = torch.tensor([2, NO_LABEL, NO_LABEL, NO_LABEL, 0, 1])
    result = mix_labels(labels, np.array([0.75, 0.5, 0.25], dtype=np.float32), 3, has_unlabelled=True)
    expected = [[0, 0, 0.75], [0, 0, 0.25], [0, 0, 0], [0, 0, 0], [0.25, 0.75, 0], [0.75, 0.25, 0]]
    assert result.tolist() == expected
    assert as_one_hot(labels[:2], 3).tolist() == [[0, 0, 1], [0, 0, 0]]


def test_the_labelled_share_of_whole_pairs_is_exactly_one():
    ratios = np.random.default_rng(0).random(4096).astype(np.float32)
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 5, 2 * len(ratios)))
    assert (mix_labels(labels, ratios, 5).sum(dim=-1) == 1).all()  # else the teacher's term would get the rest


def test_mixed_labels_by_hand():
    labels = torch.tensor([0, 2, 1, 1])
    expected = [[0.75, 0, 0.25], [0.25, 0, 0.75], [0, 1, 0], [0, 1, 0]]
    result = mix_labels(labels, np.array([0.75, 0.375], dtype=np.float32), 3)
    assert result.dtype == torch.float32 and result.tolist() == expected
    assert torch.equal(mix_labels(elsewhere(labels), np.array([0.75, 0.375], dtype=np.float32), 3), result)


def test_a_missing_label_is_an_error_where_none_is_expected():
    with pytest.raises(RuntimeError):
        mix_labels(torch.tensor([1, NO_LABEL]), np.array([0.75], dtype=np.float32), 3)


def test_mixed_labels_sum_to_one():
    labels = torch.randint(0, 10, (200,))
    ratios = np.random.default_rng(0).random(100).astype(np.float32)
    result = mix_labels(labels, ratios, 10)
    assert result.shape == (200, 10) and result.min() >= 0
    torch.testing.assert_close(result.sum(dim=1), torch.ones(200))


def test_labels_stay_without_mixing():
    labels = torch.tensor([3, 1, 2])
    assert mix_labels(labels, None, 5) is labels


def test_smoothing_in_the_loss_equals_timms_smoothed_targets():
    for labels, smoothing in itertools.product(([4, 1], [2, 2]), (0.0, 0.1)):
        labels, ratio, logits = torch.tensor(labels), np.float32(0.3), 3 * torch.randn(2, 6)
        target = mixup_target(labels, 6, lam=float(ratio), smoothing=smoothing)  # timm mixes the first with the last
        expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
        loss = F.cross_entropy(logits, mix_labels(labels, np.array([ratio]), 6), label_smoothing=smoothing)
        torch.testing.assert_close(loss, expected)
