"""The order of an epoch's views, and what takes the place of a broken image."""

import tracemalloc
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from helpers.distributions import NO_CHANCE, assert_uncorrelated, assert_uniform
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils.data import BatchSampler

from modeling_deit_distill import InputError
from modeling_deit_distill.data.datasets import ViewDataset
from modeling_deit_distill.data.views import (
    AugmentationSettings,
    View,
    ViewSampler,
    draw_replacement,
)


def images(sampler: ViewSampler) -> list[int]:
    return [view.image for view in sampler]


# ---- the order of an epoch ----


few_examples = hypothesis_settings(max_examples=50, deadline=None)


@st.composite
def samplers(draw) -> ViewSampler:
    """Of any dataset, smaller than a batch or larger."""
    sampler = ViewSampler(
        num_images=draw(st.integers(1, 200)),
        global_batch_size=draw(st.integers(1, 32)),
        repeats=draw(st.integers(1, 4)),
        seed=draw(st.integers(0, 1000)),
    )
    sampler.set_epoch(draw(st.integers(0, 50)))
    return sampler


@few_examples
@given(samplers())
def test_each_position_comes_once_in_whole_steps(sampler):
    views = list(sampler)
    assert [view.position for view in views] == list(range(len(sampler)))
    assert {view.epoch for view in views} == {sampler.epoch}
    assert {view.image for view in views} <= set(range(sampler.num_images))


@few_examples
@given(st.integers(1, 500), st.integers(1, 64))
def test_an_epoch_has_as_many_whole_steps_as_the_images_fill_and_at_least_one(num_images, batch):
    length = len(list(ViewSampler(num_images, batch)))
    assert length % batch == 0
    assert length == batch if num_images < batch else num_images - batch < length <= num_images


@few_examples
@given(samplers())
def test_drawn_images_take_turns_in_pairs_and_are_repeated(sampler):
    seen, repeats = images(sampler), sampler.repeats
    for begin in range(0, len(seen) - 2 * repeats + 1, 2 * repeats):
        a, b = seen[begin : begin + 2]
        assert seen[begin : begin + 2 * repeats] == [a, b] * repeats  # a₀ b₀ a₁ b₁ a₂ b₂
    drawn = [image for begin in range(0, len(seen), 2 * repeats) for image in seen[begin : begin + 2]]
    cycle = min(sampler.num_images, len(drawn))
    assert len(set(drawn[:cycle])) == cycle  # no image is drawn again before all have been
    assert drawn == [drawn[place % sampler.num_images] for place in range(len(drawn))]


@few_examples
@given(samplers())
def test_a_pair_never_shows_one_image_twice(sampler):
    seen = images(sampler)
    pairs = list(zip(seen[0::2], seen[1::2], strict=False))
    assert sampler.num_images == 1 or all(first != second for first, second in pairs)


@few_examples
@given(samplers(), st.floats(0, 1))
def test_a_start_in_mid_epoch_yields_the_tail(sampler, share):
    whole = list(sampler)
    sampler.start = round(share * len(whole))
    assert list(sampler) == whole[sampler.start :]
    assert len(sampler) == len(whole) - sampler.start


@few_examples
@given(st.integers(1, 200), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.data())
def test_any_split_into_processes_and_batches_gives_one_order(
    num_images, half_batch, num_processes, accumulation, repeats, data
):
    per_device = 2 * half_batch
    step = per_device * num_processes * accumulation
    split = ViewSampler(num_images, step, repeats)
    expected = list(split)
    split.start = step * data.draw(st.integers(0, len(split) // step - 1))
    batches = BatchSampler(split, per_device, drop_last=False)
    shards = [list(BatchSamplerShard(batches, num_processes, process)) for process in range(num_processes)]
    assert {len(batch) for shard in shards for batch in shard} == {per_device}
    together = [view for parts in zip(*shards, strict=True) for batch in parts for view in batch]
    assert together == expected[split.start :]


def test_views_carry_epoch_and_position():
    sampler = ViewSampler(20, 6)
    sampler.set_epoch(4)
    views = list(sampler)
    assert all(isinstance(view, View) for view in views)
    assert [view.position for view in views] == list(range(18))
    assert {view.epoch for view in views} == {4}


def test_an_epoch_is_rounded_down_to_whole_steps():
    cases = [(100, 10, 100), (109, 10, 100), (110, 10, 110), (10, 10, 10), (19, 10, 10), (100, 64, 64), (7, 2, 6)]
    for num_images, batch, length in cases:
        sampler = ViewSampler(num_images, batch)
        assert len(sampler) == len(images(sampler)) == length, (num_images, batch)


def test_small_data_are_not_floored_to_a_multiple_of_256():
    assert len(images(ViewSampler(200, 8))) == 200  # the public code's epoch would be empty
    assert len(images(ViewSampler(300, 8))) == 296


def test_less_data_than_a_batch_fill_one_cyclically():
    seen = images(ViewSampler(3, 8, repeats=1))
    assert sorted(seen[:3]) == [0, 1, 2]
    assert seen == [seen[place % 3] for place in range(8)]


def test_order_depends_on_seed_and_epoch_only():
    def order(seed: int, epoch: int, batch: int = 20) -> list[int]:
        sampler = ViewSampler(100, batch, seed=seed)
        sampler.set_epoch(epoch)
        return images(sampler)

    orders = [tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert order(1, 2) == order(1, 2) == order(1, 2, batch=4)


def test_a_sampler_is_iterated_again_and_again():
    sampler = ViewSampler(50, 10)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first == list(sampler)
    assert images(sampler) != [view.image for view in second]


def test_every_image_comes_as_often_as_any_other_over_many_epochs():
    sampler = ViewSampler(12, 12, repeats=3)
    first, counts = [], Counter()
    for epoch in range(1200):
        sampler.set_epoch(epoch)
        seen = images(sampler)
        first.append(seen[0])
        counts.update(set(seen))
    assert sum(counts.values()) == 1200 * 4
    assert min(counts.values()) > 300 and max(counts.values()) < 500  # of 400
    assert_uniform([first.count(image) for image in range(12)])


def test_plan_of_imagenet_is_small_and_without_duplicates():
    num_images = 1_281_167
    sampler = ViewSampler(num_images, 1024)
    tracemalloc.start()
    plan = sampler.plan()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(sampler) == 1_281_024
    assert plan.base is None and plan.nbytes < 2e6  # a third of the images, four bytes each
    assert peak < 8e6
    assert 427_008 <= len(plan) == len(np.unique(plan)) < 427_010
    assert plan.min() >= 0 and plan.max() < num_images
    assert stats.kstest(plan / num_images, "uniform").pvalue > NO_CHANCE
    assert_uncorrelated(plan[:-1], plan[1:])


@few_examples
@given(samplers())
def test_plan_holds_the_drawn_images_in_order_and_no_others(sampler):
    plan, repeats = sampler.plan(), sampler.repeats
    places = [2 * (place // (2 * repeats)) + place % 2 for place in range(len(sampler))]
    assert images(sampler) == [plan[place] for place in places]
    assert len(plan) == max(places) + 1


def of_a_run(batch_size: int, num_processes: int = 1, **settings) -> ViewSampler:
    step = batch_size * num_processes
    batch = {"train_batch_size": batch_size, "effective_batch_size": step}
    args = SimpleNamespace(**batch, repeated_augmentation=3, balanced_views=False, view_epochs=0)
    return ViewSampler.from_arguments(args, ViewDataset(range(100), AugmentationSettings(16, **settings)))


def test_odd_batch_with_mixing_is_refused():
    for num_processes in (1, 2):  # the sum over two processes is even, no help
        with pytest.raises(InputError, match="per_device_train_batch_size is 3, which is odd.*pairs.*an even one"):
            of_a_run(3, num_processes)


def test_odd_batch_without_mixing_is_fine():
    assert len(images(of_a_run(3, mixup_alpha=0.0, cutmix_alpha=0.0))) == 99


# ---- instead of a broken image ----


def test_replacements_are_a_function_of_seed_epoch_and_position():
    def rows(seed: int, epoch: int, position: int) -> tuple[int, ...]:
        return tuple(islice(draw_replacement(seed, epoch, position, 1000), 8))

    assert rows(1, 2, 3) == rows(1, 2, 3)
    assert len({rows(1, 2, 3), rows(0, 2, 3), rows(1, 0, 3), rows(1, 2, 0)}) == 4


def test_replacements_are_any_row():
    rows = [row for position in range(2000) for row in islice(draw_replacement(0, 0, position, 20), 2)]
    assert_uniform(np.bincount(rows, minlength=20))
    assert max(rows) == 19
    assert_uncorrelated(rows[0::2], rows[1::2])


def test_one_row_replaces_itself():
    assert list(islice(draw_replacement(0, 0, 0, 1), 3)) == [0, 0, 0]
