"""What happens to pixels after the crop: `augment` whatever the batch or device."""

import numpy as np
import pytest
import torch
from helpers.augmented import (
    ARGUMENTS,
    IMAGES,
    MEAN,
    PLAIN,
    STD,
    Elsewhere,
    S,
    chain,
    elsewhere,
    fetched,
    idle,
    normalised,
    ours,
    part,
    photo,
    photos,
    recipe,
)

from modeling_deit_distill.augmentation.augment import augment, flip, rand_augment
from modeling_deit_distill.augmentation.geometry import GEOMETRIC
from modeling_deit_distill.augmentation.operations import _histogram
from modeling_deit_distill.data.views import NO_OPERATION, OPERATIONS

# ---- whole batches and single views ----


def test_a_chain_does_not_depend_on_the_batch():
    draws, images = recipe(96, mixup_alpha=0, cutmix_alpha=0), photos(96).float()
    is_geometric = np.isin(draws.operations, [OPERATIONS.index(name) for name in GEOMETRIC])
    assert is_geometric.all(axis=1).sum() > 1 and (~is_geometric).all(axis=1).sum() > 1
    assert set(draws.operations.flatten()) == {NO_OPERATION, *range(len(OPERATIONS))}
    together = rand_augment(images, draws.operations, draws.arguments)
    for view in range(96):
        here = slice(view, view + 1)
        assert torch.equal(together[here], rand_augment(images[here], draws.operations[here], draws.arguments[here]))


def test_an_operation_does_not_depend_on_the_batch():
    images = torch.stack([*IMAGES.values()]).float()
    for name in OPERATIONS:
        arguments = np.tile(np.resize(ARGUMENTS.get(name, [-30.0, 7.0, 28.0]), len(images))[:, None], 2)
        arguments = np.where(np.equal(arguments, None), 0, arguments).astype(np.float32)
        operations = np.tile([OPERATIONS.index(name), NO_OPERATION], (len(images), 1))
        for batch in (images, elsewhere(images)):
            together = rand_augment(batch, operations, arguments)
            alone = [rand_augment(images[[i]], operations[[i]], arguments[[i]]) for i in range(len(images))]
            assert torch.equal(together, torch.cat(alone)), name


@pytest.mark.parametrize("mixing", [{}, {"mixup_alpha": 0, "cutmix_alpha": 0}])
def test_a_pair_does_not_depend_on_the_batch(mixing):
    draws, images = recipe(24, **mixing), photos(24)
    whole = augment(images, draws, MEAN, STD)
    for size in (2, 6, 24):
        for begin in range(0, 24, size):
            here = slice(begin, begin + size)
            assert torch.equal(whole[here], augment(images[here], part(draws, begin, begin + size), MEAN, STD))


@pytest.mark.parametrize("mixing", [{}, {"mixup_alpha": 0}, {"cutmix_alpha": 0}, {"mixup_alpha": 0, "cutmix_alpha": 0}])
def test_other_devices_give_what_the_cpu_gives(mixing):
    draws, images = recipe(24, **mixing), photos(24)
    result = augment(elsewhere(images), draws, MEAN, STD)
    assert isinstance(result, Elsewhere)  # so the other path was taken
    torch.testing.assert_close(fetched(result), augment(images, draws, MEAN, STD), rtol=0, atol=1e-5)


def test_flip_marked_views_only():
    images, flipped = photos(5), np.array([True, False, True, True, False])
    for batch in (images, elsewhere(images)):
        result = flip(batch, flipped)
        for view in range(5):
            expected = torch.from_numpy(images[view].numpy()[..., ::-1].copy()) if flipped[view] else images[view]
            assert torch.equal(result[view], expected)
    assert torch.equal(flip(images, np.ones(5, dtype=bool)), images.flip(-1))
    assert torch.equal(flip(images, np.zeros(5, dtype=bool)), images)


def test_histograms_are_the_same_on_every_device():
    bins = (photos(3).flatten(2) + 256 * torch.arange(9).view(3, 3, 1)).int().flatten()
    expected = torch.stack([torch.bincount(channel, minlength=256) for channel in photos(3).flatten(2).flatten(0, 1)])
    assert torch.equal(_histogram(bins, 9 * 256).view(9, 256), expected)
    assert torch.equal(_histogram(elsewhere(bins), 9 * 256).view(9, 256), expected)


def test_without_operations_augment_normalises():
    images = photos(4)
    torch.testing.assert_close(augment(images, idle(4), MEAN, STD), normalised(images), rtol=0, atol=1e-6)
    assert torch.equal(augment(images, idle(4), *PLAIN), images.float() * torch.tensor(1 / 255))


def test_augment_flips_then_transforms_then_normalises_then_erases():
    image, box = photo(), (5, 7, 20, 30)
    draws = idle(1, flip=np.array([True]), erased_box=np.array([box]), noise_seed=np.array([11]))
    draws.operations, draws.arguments = chain(("translate_x", 0.25), ("invert", None))
    result = augment(image[None], draws, MEAN, STD)[0]
    expected = normalised(ours(image.flip(-1), ("translate_x", 0.25), ("invert", None)))
    erased = torch.zeros(S, S, dtype=torch.bool)
    erased[5:25, 7:37] = True
    torch.testing.assert_close(result[:, ~erased], expected[:, ~erased], rtol=0, atol=1e-6)
    assert (result[:, erased] != expected[:, erased]).all()


def test_augment_mixes_last():
    images, draws = photos(2), recipe(2)
    draws.mix_ratio, draws.mix_box = np.array([0.25], dtype=np.float32), np.array([[0, 0, -1, -1]])
    draws.erased_box, draws.flip = np.array([[3, 4, 30, 20], [0, 0, 0, 0]]), np.array([True, False])
    unmixed = part(draws, 0, 2)
    unmixed.mix_ratio = unmixed.mix_box = None
    first, second = augment(images, unmixed, MEAN, STD)
    expected = torch.stack([0.25 * first + 0.75 * second, 0.25 * second + 0.75 * first])
    torch.testing.assert_close(augment(images, draws, MEAN, STD), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("place", [torch.Tensor.clone, elsewhere], ids=["cpu", "elsewhere"])
def test_out_is_used_and_returned(place):
    images, draws = photos(4), recipe(4)
    expected = augment(images, draws, MEAN, STD)
    out = place(torch.full((4, 3, S, S), torch.nan))
    result = augment(place(images), draws, MEAN, STD, out=out)
    assert result is out
    torch.testing.assert_close(fetched(result), expected, rtol=0, atol=1e-5)
    again = augment(place(images), draws, MEAN, STD, out=out)  # nothing of the last batch remains
    torch.testing.assert_close(fetched(again), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("place", [torch.Tensor.clone, elsewhere], ids=["cpu", "elsewhere"])
def test_crops_are_not_modified(place):
    images, draws = place(photos(24)), recipe(24)
    before = images.clone()
    augment(images, draws, MEAN, STD)
    assert torch.equal(images, before)


def test_memory_layout_does_not_matter():
    images, draws = photos(24), recipe(24)
    other = images.contiguous(memory_format=torch.channels_last)
    assert other.stride() != images.stride()
    expected = augment(images, draws, MEAN, STD)
    torch.testing.assert_close(augment(other, draws, MEAN, STD), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(fetched(augment(elsewhere(other), draws, MEAN, STD)), expected, rtol=0, atol=1e-5)
