"""The draws of views: what they depend on, and that their distributions are the recipe's."""

import dataclasses
import random

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.distributions import (
    NO_CHANCE,
    assert_same_distribution,
    assert_share,
    assert_uncorrelated,
    assert_uniform,
)
from helpers.drawn import NUM_VIEWS, SIZE, columns, draws, seed_generators
from scipy import stats
from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation

from modeling_deit_distill.data.views import (
    NO_OPERATION,
    AugmentationSettings,
    Draws,
    crop_box,
    draw,
    draw_uniforms,
)

SETTINGS = AugmentationSettings(image_size=SIZE)
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
OF_PAIRS = ("mix_ratio", "mix_box")


@pytest.fixture(autouse=True)
def seed_timm():
    seed_generators()


# ---- what draws depend on ----


def test_uniforms_do_not_depend_on_the_batch():
    alone = {position: draw_uniforms(1, 2, [position])[0] for position in range(40)}
    for batch in ([*range(40)], [7, 8, 9, 30, 31, 2], [39, 38, 37], [5, 5, 6], [*range(20, 40), *range(20)]):
        assert np.array_equal(draw_uniforms(1, 2, batch), np.stack([alone[position] for position in batch]))
    assert draw_uniforms(1, 2, []).shape[0] == 0


def test_draws_do_not_depend_on_the_batch():
    def drawn_at(positions: list[int]) -> Draws:
        return draw(SETTINGS, 3, 5, positions, draw_uniforms(3, 5, positions))

    whole = drawn_at([*range(64)])
    shuffled = [62, 63, 0, 1, 20, 21, 22, 23, 8, 9]
    for batch in ([0, 1], [*range(32, 64)], shuffled):
        part = drawn_at(batch)
        for name in (field.name for field in dataclasses.fields(Draws)):
            places = np.array(batch[::2]) // 2 if name in OF_PAIRS else batch
            assert np.array_equal(getattr(part, name), getattr(whole, name)[places]), name


def test_no_column_of_the_uniforms_has_two_names():
    named = columns()
    assert {"_CROP_AREA", "_FLIP", "_NOISE_SEED"} <= named.keys()
    found = np.concatenate([*named.values()])
    assert len(np.unique(found)) == len(found), named


def test_uniforms_differ_by_seed_epoch_and_position():
    rows = np.concatenate([draw_uniforms(seed, epoch, range(20)) for seed in range(5) for epoch in range(5)])
    assert len(np.unique(rows)) == rows.size  # no number twice, so neither is one stream part of another


def test_draws_differ_by_seed_and_epoch():
    first = draws(200)
    for other in ({"seed": 1}, {"epoch": 1}):
        second = draws(200, **other)
        for name in ("flip", "operations", "arguments", "erased_box", "noise_seed", "mix_ratio", "mix_box"):
            assert not np.array_equal(getattr(first, name), getattr(second, name)), (name, other)
        assert not set(first.noise_seed) & set(second.noise_seed)
        by_mixup = first.mix_box[:, 2] < 0
        assert not set(first.mix_ratio[by_mixup]) & set(second.mix_ratio)


def test_draws_have_the_promised_shapes(drawn):
    assert drawn.flip.shape == (NUM_VIEWS,) and drawn.flip.dtype == bool
    assert drawn.operations.shape == drawn.arguments.shape == (NUM_VIEWS, 2)
    assert drawn.erased_box.shape == (NUM_VIEWS, 4)
    assert drawn.noise_seed.shape == (NUM_VIEWS,)
    assert drawn.mix_ratio.shape == (NUM_VIEWS // 2,) and drawn.mix_box.shape == (NUM_VIEWS // 2, 4)


def test_uniforms_are_uniform_and_independent():
    uniforms = draw_uniforms(0, 0, range(NUM_VIEWS))
    num_draws = uniforms.shape[1]
    assert uniforms.min() >= 0 and uniforms.max() < 1
    p_values = [stats.kstest(column, "uniform").pvalue for column in uniforms.T]
    assert min(p_values) > NO_CHANCE / num_draws
    # Neither draws of a view are correlated, nor those of neighbours (the pair that is mixed).
    both = np.corrcoef(uniforms[0::2].T, uniforms[1::2].T)
    assert np.abs(both - np.eye(2 * num_draws)).max() < 5.5 / np.sqrt(NUM_VIEWS // 2)


def test_draws_of_a_pair_are_independent_of_its_views(drawn):
    uniforms = draw_uniforms(0, 0, range(NUM_VIEWS))
    mixed = np.stack([drawn.mix_ratio, drawn.mix_box[:, 2] < 0]).astype(float)
    for views in (uniforms[0::2], uniforms[1::2]):
        assert np.abs(np.corrcoef(mixed, views.T)[:2, 2:]).max() < 5 / np.sqrt(NUM_VIEWS // 2)


def test_broken_pairs_are_refused_only_where_views_are_mixed():
    for positions in ([1, 2], [0, 2], [0], [0, 1, 2], [0, 1, 3, 2], [0, 1, 3, 4]):
        uniforms = draw_uniforms(0, 0, positions)
        with pytest.raises(ValueError, match="pairs"):
            draw(SETTINGS, 0, 0, positions, uniforms)
        unmixed = draw(AugmentationSettings(SIZE, mixup_alpha=0, cutmix_alpha=0), 0, 0, positions, uniforms)
        assert len(unmixed.flip) == len(positions)
        assert unmixed.mix_ratio is None and unmixed.mix_box is None


# ---- crop ----


def timm_box(height: int, width: int, scale=SCALE) -> tuple[int, int, int, int]:
    # An image of these sizes without its pixels: timm reads the size alone.
    image = PIL.Image.new("1", (width, height))
    return RandomResizedCropAndInterpolation.get_params(image, scale, RATIO)


@pytest.fixture(scope="module")
def uniforms() -> np.ndarray:
    return draw_uniforms(0, 0, range(NUM_VIEWS))


@pytest.mark.parametrize("height, width", [(375, 500), (500, 333), (64, 64), (120, 480), (20, 17)])
def test_crop_boxes_follow_the_recipe(uniforms, height, width):
    ours = np.array([crop_box(row, height, width, SCALE) for row in uniforms])
    random.seed(1)
    theirs = np.array([timm_box(height, width) for _ in range(NUM_VIEWS // 2)])
    for boxes in (ours, theirs):
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > 0).all()
        assert (boxes[:, 0] + boxes[:, 2] <= height).all() and (boxes[:, 1] + boxes[:, 3] <= width).all()
    assert_same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])  # area
    assert_same_distribution(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2])  # shape
    for column in range(4):
        assert_same_distribution(ours[:, column], theirs[:, column])
    assert np.corrcoef(ours.T) == pytest.approx(np.corrcoef(theirs.T), abs=0.06)


def test_crop_boxes_lie_anywhere(uniforms):
    # A box of 6 x 6 at most (area 36 of 1600, shape near 1) can begin anywhere along a side with one chance.
    boxes = np.array([crop_box(row, 40, 40, (0.0225, 0.0225)) for row in uniforms])
    for side in (0, 1):
        square = boxes[boxes[:, 2 + side] == 6]
        assert_uniform(np.bincount(square[:, side], minlength=35))
        assert square[:, side].max() == 34  # the last place included


def test_crop_area_is_uniform_where_every_box_fits(uniforms):
    boxes = np.array([crop_box(row, 4000, 4000, (0.08, 0.5)) for row in uniforms])
    area, ratio = boxes[:, 2] * boxes[:, 3] / 4000**2, boxes[:, 3] / boxes[:, 2]
    assert stats.kstest(area, stats.uniform(0.08, 0.42).cdf).pvalue > NO_CHANCE
    low, high = np.log(RATIO)
    assert stats.kstest(np.log(ratio), stats.uniform(low, high - low).cdf).pvalue > NO_CHANCE


def test_extreme_shapes_fall_back_to_the_centre(uniforms):
    for height, width, box in [
        (10, 1000, (0, 493, 10, 13)),  # 13 = round(10 · 4/3)
        (1000, 10, (493, 0, 13, 10)),
        (1, 1000, (0, 499, 1, 1)),
        (1000, 1, (499, 0, 1, 1)),
        (1, 1, (0, 0, 1, 1)),
    ]:
        assert {crop_box(row, height, width, SCALE) for row in uniforms[:200]} == {box}


def test_the_fallback_equals_the_recipe_at_every_size(uniforms):
    # Four times the image never fits, so both fall back.
    for height in range(1, 41):
        for width in [*range(1, 41), 400]:
            assert crop_box(uniforms[0], height, width, (4.0, 4.0)) == timm_box(height, width, (4.0, 4.0))


def test_crops_of_all_or_half(uniforms):
    for height, width in ((100, 100), (90, 120), (120, 90), (100, 110)):
        whole = {crop_box(row, height, width, (1.0, 1.0)) for row in uniforms[:500]}
        assert (0, 0, height, width) in whole
        assert all(box_height * box_width > 0.97 * height * width for _, _, box_height, box_width in whole)
    halves = np.array([crop_box(row, 200, 200, (0.5, 0.5)) for row in uniforms[:2000]])
    assert np.abs(halves[:, 2] * halves[:, 3] / 200**2 - 0.5).max() < 0.005  # rounding a side of 122 to 163
    ratio = halves[:, 3] / halves[:, 2]
    assert ratio.min() == pytest.approx(3 / 4, rel=0.01) and ratio.max() == pytest.approx(4 / 3, rel=0.01)


# ---- flip ----


def test_flips_come_by_chance():
    for prob in (0.5, 0.2):
        flips = draws(horizontal_flip_prob=prob).flip
        assert_share(flips, prob)
        assert_uncorrelated(flips[:-1], flips[1:])


def test_flips_never_or_always():
    assert not draws(2000, horizontal_flip_prob=0.0).flip.any()
    assert draws(2000, horizontal_flip_prob=1.0).flip.all()


# ---- erasing ----


class Recorder:
    """Stands in for an image: remembers the box that timm's `RandomErasing` fills."""

    box = (0, 0, 0, 0)

    def __setitem__(self, where, value):
        _, rows, columns = where
        self.box = (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)


def timm_erased_boxes(prob: float, size: int, number: int) -> np.ndarray:
    eraser = RandomErasing(prob, device="cpu")
    recorders = [Recorder() for _ in range(number)]
    for recorder in recorders:
        eraser._erase(recorder, 3, size, size, torch.float32)
    return np.array([recorder.box for recorder in recorders])


@pytest.mark.parametrize("size", [224, 32])
def test_erased_boxes_follow_the_recipe(size):
    ours = draws(image_size=size, random_erasing_prob=1.0).erased_box
    theirs = timm_erased_boxes(1.0, size, NUM_VIEWS // 2)
    assert (ours[:, 2] > 0).mean() > 0.999  # ten attempts all but always find a box
    ours, theirs = ours[ours[:, 2] > 0], theirs[theirs[:, 2] > 0]
    assert_same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])  # area
    assert_same_distribution(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3])  # shape
    for column in range(4):
        assert_same_distribution(ours[:, column], theirs[:, column])
    assert np.corrcoef(ours.T) == pytest.approx(np.corrcoef(theirs.T), abs=0.06)
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] < size).all()
    assert (ours[:, 0] + ours[:, 2] <= size).all() and (ours[:, 1] + ours[:, 3] <= size).all()
    # The last row and column are reached.
    assert (ours[:, 0] + ours[:, 2]).max() == (ours[:, 1] + ours[:, 3]).max() == size
    share = ours[:, 2] * ours[:, 3] / size**2
    rounding = 1.2 / size
    assert share.min() > 0.02 - rounding and share.max() < 1 / 3 + rounding


def test_erasing_comes_by_chance():
    for prob in (0.25, 0.1):
        boxes = draws(random_erasing_prob=prob).erased_box
        erased = boxes[:, 2] > 0
        assert_share(erased, prob)
        assert (boxes[~erased] == 0).all()
        assert_uncorrelated(erased[:-1], erased[1:])


def test_erasing_is_independent_of_flip_and_operations(drawn):
    erased = drawn.erased_box[:, 2] > 0
    assert_uncorrelated(erased, drawn.flip)
    assert_uncorrelated(erased, drawn.operations[:, 0] != NO_OPERATION)


def test_erasing_is_off_at_zero():
    assert not draws(2000, random_erasing_prob=0.0).erased_box.any()


def test_noise_seeds_are_in_range_and_distinct(drawn):
    assert drawn.noise_seed.min() >= 0 and drawn.noise_seed.max() < 2**31
    assert len(set(drawn.noise_seed)) == NUM_VIEWS
    assert stats.kstest(drawn.noise_seed / 2**31, "uniform").pvalue > NO_CHANCE


# ---- mixup and cutmix ----


def timm_mixing(mixup_alpha: float, cutmix_alpha: float, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Ratios and boxes (top, left, height, width; height -1 for mixup) of timm's `Mixup`."""
    mixup = Mixup(mixup_alpha, cutmix_alpha, mode="pair")
    ratios, by_box = mixup._params_per_elem(number)
    boxes = np.tile([0, 0, -1, -1], (number, 1))
    for pair in np.flatnonzero(by_box):
        (top, bottom, left, right), ratios[pair] = cutmix_bbox_and_lam((3, SIZE, SIZE), ratios[pair])
        boxes[pair] = top, left, bottom - top, right - left
    return ratios, boxes


@pytest.mark.parametrize("mixup_alpha, cutmix_alpha", [(0.8, 1.0), (0.2, 3.0)])
def test_mixing_follows_the_recipe(mixup_alpha, cutmix_alpha):
    ours = draws(mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)
    ratios, boxes = timm_mixing(mixup_alpha, cutmix_alpha, NUM_VIEWS // 2)
    by_box = ours.mix_box[:, 2] >= 0
    assert_share(by_box, 0.5)
    assert_same_distribution(ours.mix_ratio[~by_box], ratios[boxes[:, 2] < 0])
    assert_same_distribution(ours.mix_ratio[by_box], ratios[boxes[:, 2] >= 0])
    for column in range(4):
        assert_same_distribution(ours.mix_box[by_box][:, column], boxes[boxes[:, 2] >= 0][:, column])
    assert stats.kstest(ours.mix_ratio[~by_box], stats.beta(mixup_alpha, mixup_alpha).cdf).pvalue > NO_CHANCE


def test_ratio_of_a_box_is_what_was_really_kept(drawn):
    by_box = drawn.mix_box[:, 2] >= 0
    top, left, height, width = drawn.mix_box[by_box].T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= SIZE).all() and (left + width <= SIZE).all()
    kept = (1 - height * width / SIZE**2).astype(np.float32)
    assert np.array_equal(drawn.mix_ratio[by_box], kept)
    assert (drawn.mix_box[~by_box][:, 2] == -1).all()
    # A box is square unless the border cuts it.
    whole = (top > 0) & (left > 0) & (top + height < SIZE) & (left + width < SIZE)
    assert whole.any() and (~whole).any()
    assert np.array_equal(height[whole], width[whole])
    assert (height[~whole] != width[~whole]).any()


@pytest.mark.parametrize("mixup_alpha, cutmix_alpha", [(0.8, 0.0), (0.0, 1.0)])
def test_one_kind_of_mixing_alone(mixup_alpha, cutmix_alpha):
    ours = draws(6000, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)
    ratios, boxes = timm_mixing(mixup_alpha, cutmix_alpha, 3000)
    assert ((ours.mix_box[:, 2] >= 0) == (cutmix_alpha > 0)).all()
    assert ((boxes[:, 2] >= 0) == (cutmix_alpha > 0)).all()
    assert_same_distribution(ours.mix_ratio, ratios)
    assert ours.mix_ratio.min() >= 0 and ours.mix_ratio.max() <= 1


def test_no_mixing():
    assert not AugmentationSettings(SIZE, mixup_alpha=0, cutmix_alpha=0).mixes
    assert AugmentationSettings(SIZE, mixup_alpha=0.8, cutmix_alpha=0).mixes
    assert AugmentationSettings(SIZE, mixup_alpha=0, cutmix_alpha=1.0).mixes
    off = draws(10, mixup_alpha=0, cutmix_alpha=0)
    assert off.mix_ratio is None and off.mix_box is None
