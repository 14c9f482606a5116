"""The draws of RandAugment: the public policy, its arguments and their distributions."""

import random

import numpy as np
import PIL.Image
import pytest
from helpers.distributions import (
    NO_CHANCE,
    assert_same_distribution,
    assert_same_shares,
    assert_share,
    assert_uncorrelated,
    assert_uniform,
)
from helpers.drawn import draws, seed_generators
from scipy import stats
from timm.data.auto_augment import rand_augment_transform

from modeling_deit_distill.augmentation.augment import AUGMENTATION_VERSION
from modeling_deit_distill.data.views import (
    NO_OPERATION,
    OPERATION_ARGUMENTS,
    OPERATIONS,
    Draws,
)


@pytest.fixture(autouse=True)
def seed_timm():
    seed_generators()


@pytest.fixture(scope="module")
def timm_operations() -> list:
    hparams = {"img_mean": (124, 116, 104), "interpolation": PIL.Image.Resampling.BICUBIC}
    return rand_augment_transform("rand-m9-mstd0.5-inc1", hparams).ops


def timm_arguments(operation, number: int, magnitude: float | None = None) -> np.ndarray:
    """What timm's operation gives its function, `number` times; the same for each operation whatever came before."""
    seed_generators()
    given = []
    prob, aug_fn, old = operation.prob, operation.aug_fn, operation.magnitude
    operation.prob, operation.aug_fn = 1.0, lambda image, *arguments, **_: given.append(arguments[0])
    operation.magnitude = old if magnitude is None else magnitude
    for _ in range(number):
        operation(None)
    operation.prob, operation.aug_fn, operation.magnitude = prob, aug_fn, old
    return np.array(given, dtype=float)


WITHOUT_ARGUMENT = ("auto_contrast", "equalize", "invert")
WITH_ARGUMENT = [name for name in OPERATIONS if name not in WITHOUT_ARGUMENT]


def arguments_of(drawn: Draws, name: str) -> np.ndarray:
    return drawn.arguments[drawn.operations == OPERATIONS.index(name)]


def test_operations_are_the_public_policy(timm_operations):
    names = [operation.name.removesuffix("Increasing").removesuffix("Rel") for operation in timm_operations]
    assert [name.replace("_", "") for name in OPERATIONS] == [name.lower() for name in names]


def test_each_operation_has_an_argument_or_needs_none():
    assert {*OPERATION_ARGUMENTS, *WITHOUT_ARGUMENT} == set(OPERATIONS)


def test_other_operations_are_another_version():
    """A draw chooses an operation by its index, so another list gives other pixels to the same view."""
    assert (len(OPERATIONS), OPERATIONS[-1], AUGMENTATION_VERSION) == (15, "translate_y", 1)


def test_two_operations_each_with_half_a_chance_uniform_and_independent(drawn):
    applied = drawn.operations != NO_OPERATION
    assert_uniform(np.bincount(applied[:, 0] + 2 * applied[:, 1], minlength=4))  # none, first, second, both
    for slot in (0, 1):
        assert_uniform(np.bincount(drawn.operations[applied[:, slot], slot], minlength=len(OPERATIONS)))
    first, second = drawn.operations[applied.all(axis=1)].T  # the same twice included
    assert_uniform(np.bincount(len(OPERATIONS) * first + second, minlength=len(OPERATIONS) ** 2))


def test_arguments_follow_the_recipe(drawn, timm_operations):
    for name in WITH_ARGUMENT:
        ours = arguments_of(drawn, name)
        theirs = timm_arguments(timm_operations[OPERATIONS.index(name)], 20_000)
        assert len(ours) > 1000, name
        if name == "posterize":
            assert_same_shares(ours, np.maximum(theirs, 1), name)
        else:
            assert_same_distribution(ours, theirs, name)
            assert ours.min() == pytest.approx(theirs.min(), rel=0.06, abs=9), name  # of hundreds; the draws' tails
            assert ours.max() == pytest.approx(theirs.max(), rel=0.06), name


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_every_strength_gives_the_recipes_argument(timm_operations, monkeypatch, sign):
    monkeypatch.setattr(random, "random", lambda: 1.0 if sign < 0 else 0.0)  # timm negates above a half
    magnitudes = np.linspace(0, 10, 2001)
    for name in WITH_ARGUMENT:
        level_fn = timm_operations[OPERATIONS.index(name)].level_fn
        theirs = np.array([level_fn(magnitude, {})[0] for magnitude in magnitudes], dtype=float)
        if name == "posterize":
            assert theirs[-1] == 0  # what Pillow refuses
            theirs = np.maximum(theirs, 1)
        ours = OPERATION_ARGUMENTS[name](magnitudes / 10, np.full(2001, sign))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12, err_msg=name)


def test_arguments_follow_the_recipe_at_other_magnitudes(timm_operations):
    for magnitude in (1, 5, 10):
        drawn = draws(6000, rand_augment_magnitude=magnitude, mixup_alpha=0, cutmix_alpha=0)
        for name in WITH_ARGUMENT:
            ours = arguments_of(drawn, name)
            theirs = timm_arguments(timm_operations[OPERATIONS.index(name)], 5000, magnitude)
            if name == "posterize":
                assert_same_shares(ours, np.maximum(theirs, 1), (name, magnitude))
            else:
                assert_same_distribution(ours, theirs, (name, magnitude))


def test_strength_is_clipped_at_ten():
    # With mean 15 and deviation 0.5 every magnitude is clipped, so only the largest arguments remain.
    drawn = draws(2000, rand_augment_magnitude=15.0, mixup_alpha=0, cutmix_alpha=0)
    for name, strongest in {
        "rotate": {-30, 30},
        "posterize": {1},  # the public code keeps 0 bits here
        "solarize": {0},
        "solarize_add": {110},
        "color": {0.1, 1.9},
        "contrast": {0.1, 1.9},
        "brightness": {0.1, 1.9},
        "sharpness": {0.1, 1.9},
        "shear_x": {-0.3, 0.3},
        "shear_y": {-0.3, 0.3},
        "translate_x": {-0.45, 0.45},
        "translate_y": {-0.45, 0.45},
    }.items():
        ours = arguments_of(drawn, name)
        assert len(ours) > 50, name
        assert set(ours.tolist()) == {float(np.float32(value)) for value in strongest}, name


def test_signs_are_fair(drawn):
    for name in ("rotate", "color", "contrast", "brightness", "sharpness", "shear_x", "translate_y"):
        neutral = 1 if name in ("color", "contrast", "brightness", "sharpness") else 0
        assert_share(arguments_of(drawn, name) > neutral, 0.5)


def test_posterize_keeps_at_least_a_bit(drawn):
    bits = arguments_of(drawn, "posterize")
    assert set(bits.tolist()) == {1, 2}  # 4 - int(4 · 0.9) = 1, and 4 - 4 kept at 1; 2 below magnitude 7.5
    assert_share(bits == 2, stats.norm(9, 0.5).cdf(7.5))


def test_the_two_operations_have_strengths_and_signs_of_their_own(drawn):
    geometric = {"rotate": 30, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.45, "translate_y": 0.45}
    levels = np.full(drawn.arguments.shape, np.nan)
    for name, strongest in geometric.items():
        chosen = drawn.operations == OPERATIONS.index(name)
        levels[chosen] = drawn.arguments[chosen] / strongest
    both = levels[~np.isnan(levels).any(axis=1)]
    assert len(both) > 400
    assert_uncorrelated(np.abs(both[:, 0]), np.abs(both[:, 1]))
    assert_uncorrelated(np.sign(both[:, 0]), np.sign(both[:, 1]))
    magnitudes = 10 * np.abs(levels[~np.isnan(levels)])
    assert magnitudes.max() == pytest.approx(10, abs=1e-5)
    assert_share(magnitudes > 10 - 1e-5, stats.norm(9, 0.5).sf(10))  # clipped
    inner = magnitudes[magnitudes < 9.5]
    bounded = stats.truncnorm(-np.inf, 1, loc=9, scale=0.5)
    assert stats.kstest(inner, bounded.cdf).pvalue > NO_CHANCE


def test_magnitude_zero_is_off():
    off = draws(2000, rand_augment_magnitude=0.0)
    assert (off.operations == NO_OPERATION).all()
    assert off.operations.shape == off.arguments.shape == (2000, 2)
