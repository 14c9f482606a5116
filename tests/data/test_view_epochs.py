"""Repeated views: the same ones, in another order, in whole blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from modeling_deit_distill import DistillationTrainingArguments, InputError
from modeling_deit_distill.data.datasets import ViewDataset
from modeling_deit_distill.data.loaders import views_repeat
from modeling_deit_distill.data.views import AugmentationSettings, ViewSampler
from modeling_deit_distill.teachers.labelling import planned_views


@st.composite
def rounds(draw) -> tuple[ViewSampler, int]:
    """An order of repeated views, and a training epoch that repeats another."""
    view_epochs = draw(st.integers(1, 5))
    num_images, seed = draw(st.integers(2, 120)), draw(st.integers(0, 1000))
    labels = np.arange(num_images) % 3 if num_images > 3 and draw(st.booleans()) else None
    sampler = ViewSampler(num_images, draw(st.integers(1, 32)), draw(st.integers(1, 4)), seed, labels, view_epochs)
    return sampler, draw(st.integers(view_epochs, 40))


def shown(sampler: ViewSampler, epoch: int) -> list:
    sampler.set_epoch(epoch)
    return list(sampler)


@hypothesis_settings(max_examples=50, deadline=None)
@given(rounds())
def test_the_views_are_those_of_the_epoch_that_is_repeated(order):
    sampler, epoch = order
    first = shown(sampler, epoch % sampler.view_epochs)
    again = shown(sampler, epoch)
    assert sorted(again) == sorted(first)
    assert {view.epoch for view in again} == {epoch % sampler.view_epochs}


@hypothesis_settings(max_examples=50, deadline=None)
@given(rounds())
def test_blocks_stay_whole_and_pairs_together(order):
    sampler, epoch = order
    positions, block = [view.position for view in shown(sampler, epoch)], 2 * sampler.repeats
    whole = len(positions) // block * block
    for begin in range(0, whole, block):
        assert positions[begin] % block == 0
        assert positions[begin : begin + block] == list(range(positions[begin], positions[begin] + block))
    assert positions[whole:] == list(range(whole, len(positions)))


@hypothesis_settings(max_examples=50, deadline=None)
@given(rounds(), st.data())
def test_an_order_can_begin_anywhere_and_is_always_the_same(order, data):
    sampler, epoch = order
    whole = shown(sampler, epoch)
    sampler.start = data.draw(st.integers(0, len(whole)))
    assert shown(sampler, epoch) == whole[sampler.start :]


def test_each_round_has_an_order_of_its_own():
    sampler = ViewSampler(300, 30, 3, seed=1, view_epochs=2)
    orders = [tuple(view.position for view in shown(sampler, epoch)) for epoch in range(8)]
    assert orders[0] == orders[1] == tuple(range(300))
    assert len({*orders[2:]}) == 6 and orders[0] not in orders[2:]
    other = ViewSampler(300, 30, 3, seed=2, view_epochs=2)
    assert tuple(view.position for view in shown(other, 2)) != orders[2]


def test_without_rounds_every_epoch_has_views_of_its_own():
    plain, rounds = ViewSampler(50, 10), ViewSampler(50, 10, view_epochs=3)
    for epoch in range(3):
        assert shown(plain, epoch) == shown(rounds, epoch)
    assert shown(plain, 3) != shown(rounds, 3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_train_epochs": 4, "view_epochs": 2}, {0: 96, 1: 96}),
        ({"num_train_epochs": 4, "view_epochs": 0}, {0: 96, 1: 96, 2: 96, 3: 96}),
        ({"num_train_epochs": 1.5, "view_epochs": 3}, {0: 96, 1: 48}),
        ({"max_steps": 7, "view_epochs": 1}, {0: 96}),  # one epoch and a part of its second round
    ],
)
def test_a_run_plans_the_views_of_the_first_epochs_alone(changes, expected, tmp_path):
    args = DistillationTrainingArguments(str(tmp_path), per_device_train_batch_size=16, use_cpu=True, **changes)
    assert planned_views(args, ViewDataset(range(100), AugmentationSettings(16))) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_train_epochs": 4, "view_epochs": 3}, True),
        ({"num_train_epochs": 4, "view_epochs": 4}, False),
        ({"num_train_epochs": 4, "view_epochs": 0}, False),
        ({"num_train_epochs": 4.1, "view_epochs": 4}, True),
        ({"max_steps": 13, "num_train_epochs": 4, "view_epochs": 2}, True),  # of six steps an epoch
        ({"max_steps": 12, "num_train_epochs": 4, "view_epochs": 2}, False),
    ],
)
def test_views_repeat_in_a_run_of_more_epochs(changes, expected, tmp_path):
    args = DistillationTrainingArguments(str(tmp_path), per_device_train_batch_size=16, use_cpu=True, **changes)
    assert views_repeat(args, num_images=100) is expected
    assert views_repeat(args) is ("max_steps" in changes or expected)  # before anything is read


def test_fewer_than_no_epochs_are_refused(tmp_path):
    with pytest.raises(InputError, match="view_epochs is -1; it must be at least 0"):
        DistillationTrainingArguments(str(tmp_path), view_epochs=-1)
