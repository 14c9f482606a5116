"""Operations on pixels against Pillow's, alone and in chains."""

import itertools

import pytest
import torch
from helpers.augmented import ARGUMENTS, IMAGES, MEAN, chain, constant, ours, photo, theirs

from modeling_deit_distill.augmentation.augment import rand_augment
from modeling_deit_distill.augmentation.geometry import FILL, GEOMETRIC
from modeling_deit_distill.data.views import OPERATIONS

# ---- operations against Pillow ----


@pytest.mark.parametrize("name", ARGUMENTS)
def test_operation_equals_pillow_within_one_level(name):
    worst, shares = {}, {}
    for image, argument in itertools.product(IMAGES, ARGUMENTS[name]):
        result = ours(IMAGES[image], (name, argument))
        difference = (result - theirs(IMAGES[image], (name, argument))).abs()
        worst[image, argument] = difference.max().item()
        shares[image, argument] = (difference > 0).float().mean().item()
        assert torch.equal(result, result.round()) and result.min() >= 0 and result.max() <= 255
    assert max(worst.values()) <= 1, worst
    if name not in GEOMETRIC:
        assert max(shares.values()) < 0.05, shares  # a level of auto_contrast's rounding


def test_fill_is_the_mean_colour_as_in_the_recipe():
    assert tuple(round(255 * mean) for mean in MEAN) == FILL


def test_every_operation_is_tested_and_does_something():
    assert {*ARGUMENTS, "rotate"} == set(OPERATIONS)
    image = IMAGES["dim"]
    for name, arguments in {**ARGUMENTS, "rotate": [5]}.items():
        assert any(not torch.equal(ours(image, (name, argument)), image.float()) for argument in arguments), name


@pytest.mark.parametrize("size", [16, 33, 224])
def test_operation_equals_pillow_at_other_sizes(size):
    image, worst = photo(4, size), {}
    for name, arguments in ARGUMENTS.items():
        step = (name, arguments[-1])
        worst[name] = (ours(image, step) - theirs(image, step)).abs().max().item()
    assert max(worst.values()) <= 1, worst


def test_factor_one_changes_nothing():
    for name in ("color", "contrast", "brightness", "sharpness"):
        assert torch.equal(ours(photo(), (name, 1.0)), photo().float()), name


def test_posterize_at_one_bit_is_two_levels():
    assert ours(photo(), ("posterize", 1)).unique().tolist() == [0, 128]


def test_solarize_by_hand():
    image = constant(0).clone()
    image[0, 0, :4] = torch.tensor([99, 100, 101, 255], dtype=torch.uint8)
    assert ours(image, ("solarize", 100))[0, 0, :5].tolist() == [99, 155, 154, 0, 0]
    assert ours(image, ("solarize_add", 50))[0, 0, :5].tolist() == [149, 150, 151, 255, 50]


# ---- chains of two ----


CHAINS = [
    (("invert", None), ("solarize", 26)),
    (("solarize", 26), ("invert", None)),
    (("posterize", 1), ("equalize", None)),
    (("equalize", None), ("posterize", 1)),
    (("brightness", 1.9), ("contrast", 0.1)),
    (("contrast", 0.1), ("brightness", 1.9)),
    (("sharpness", 1.9), ("color", 0.1)),
    (("invert", None), ("invert", None)),
    (("solarize_add", 99), ("solarize_add", 99)),
    (("invert", None), ("translate_x", 0.25)),  # what is filled is not inverted
    (("translate_x", 0.25), ("invert", None)),  # and here it is
    (("auto_contrast", None), ("translate_y", -0.25)),
    (("translate_y", -0.25), ("auto_contrast", None)),
]


def test_two_operations_come_in_the_drawn_order():
    image, found = IMAGES["dim"], {}
    for first, second in CHAINS:
        difference = (ours(image, first, second) - theirs(image, first, second)).abs()
        found[first, second] = difference.max().item(), difference.mean().item()
        if first != second:
            assert not torch.equal(ours(image, first, second), ours(image, second, first)), (first, second)
    # A level of the first, passed on by the second.
    assert all(largest <= 2 and mean < 0.1 for largest, mean in found.values()), found


def test_the_second_operation_alone():
    operations, arguments = chain(("invert", None))
    alone = rand_augment(photo()[None].float(), operations[:, ::-1].copy(), arguments)
    assert torch.equal(alone[0], 255 - photo().float())
