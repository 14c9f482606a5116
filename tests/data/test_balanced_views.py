"""The order of an epoch in which each class is drawn equally often."""

import dataclasses
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from helpers.views import PLAIN, by_position, photos
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils.data import BatchSampler, DataLoader

from modeling_deit_distill import InputError
from modeling_deit_distill.data.datasets import ViewDataset, collate
from modeling_deit_distill.data.loaders import training_sampler
from modeling_deit_distill.data.views import ViewSampler

few_examples = settings(max_examples=40, deadline=None)
# The rows of the classes lie mixed, some classes have none, and one may have a single row.
labels_of_sets = st.lists(st.sampled_from([0, 1, 2, 3, 5, 8]), min_size=2, max_size=150).filter(
    lambda labels: len(set(labels)) > 1
)
counts_of_two_or_more = st.lists(st.integers(1, 40), min_size=2, max_size=8)


def sampler_of(labels, batch=8, repeats=1, seed=0, epoch=0) -> ViewSampler:
    sampler = ViewSampler(len(labels), batch, repeats, seed, np.array(labels))
    sampler.set_epoch(epoch)
    return sampler


def unbalanced(counts) -> np.ndarray:
    return np.random.RandomState(0).permutation(np.repeat(np.arange(len(counts)), counts))


# ---- the law ----


@few_examples
@given(labels_of_sets, st.integers(1, 40), st.integers(1, 4), st.integers(0, 100), st.integers(0, 50))
def test_each_class_is_drawn_n_or_one_more_times_wherever_the_epoch_ends(labels, batch, repeats, seed, epoch):
    drawn = np.array(labels)[sampler_of(labels, batch, repeats, seed, epoch).plan()]
    classes = set(labels)
    for end in range(1, len(drawn) + 1):
        counts = Counter(drawn[:end].tolist())
        fewest = end // len(classes)
        assert all(fewest <= counts[label] <= fewest + 1 for label in classes)


@few_examples
@given(counts_of_two_or_more, st.integers(1, 3), st.integers(1, 12))
def test_the_images_of_a_class_repeat_evenly_over_the_epochs(counts, repeats, num_epochs):
    labels = unbalanced(counts)
    seen, skipped = Counter(), Counter()
    for epoch in range(num_epochs):
        plan = sampler_of(labels, 1, repeats, epoch=epoch).plan()
        seen.update(plan.tolist())
        by_class = Counter(labels[plan].tolist())
        # Where the draws are no whole rounds, a class that is left out of the last one passes over one image.
        skipped.update(label for label in range(len(counts)) if by_class[label] < -(-len(plan) // len(counts)))
    for label in range(len(counts)):
        times = [seen[row] for row in np.flatnonzero(labels == label).tolist()]
        assert max(times) - min(times) <= 1 + skipped[label]


@few_examples
@given(counts_of_two_or_more, st.integers(1, 12))
def test_in_whole_rounds_no_image_of_a_class_is_seen_twice_more_than_another(counts, num_epochs):
    counts[0] += -sum(counts) % len(counts)
    labels, seen = unbalanced(counts), Counter()
    for epoch in range(num_epochs):
        seen.update(sampler_of(labels, 1, epoch=epoch).plan().tolist())
    for label in range(len(counts)):
        times = [seen[row] for row in np.flatnonzero(labels == label).tolist()]
        assert max(times) - min(times) <= 1


@few_examples
@given(labels_of_sets, st.integers(1, 20), st.integers(1, 4), st.integers(0, 20))
def test_a_pair_is_of_two_classes(labels, half_batch, repeats, epoch):
    seen = [labels[view.image] for view in sampler_of(labels, 2 * half_batch, repeats, epoch=epoch)]
    assert all(first != second for first, second in zip(seen[0::2], seen[1::2], strict=True))


@few_examples
@given(labels_of_sets, st.integers(1, 20), st.integers(1, 20), st.integers(1, 4), st.integers(0, 20))
def test_another_batch_size_changes_no_view_but_how_many_there_are(labels, batch, other, repeats, epoch):
    one, two = (list(sampler_of(labels, size, repeats, epoch=epoch)) for size in (batch, other))
    shorter = min(len(one), len(two))
    assert one[:shorter] == two[:shorter]


@few_examples
@given(labels_of_sets, st.integers(1, 32), st.integers(1, 4))
def test_an_epoch_keeps_its_length_and_its_repeats(labels, batch, repeats):
    balanced, plain = sampler_of(labels, batch, repeats), ViewSampler(len(labels), batch, repeats)
    assert len(balanced) == len(plain) == len(list(balanced))
    seen = [view.image for view in balanced]
    for begin in range(0, len(seen) - 2 * repeats + 1, 2 * repeats):
        pair = seen[begin : begin + 2]
        assert seen[begin : begin + 2 * repeats] == pair * repeats


@few_examples
@given(labels_of_sets, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.data())
def test_any_number_of_processes_and_a_start_in_mid_epoch_give_one_order(
    labels, half_batch, num_processes, repeats, data
):
    step = 2 * half_batch * num_processes
    split = sampler_of(labels, step, repeats, epoch=3)
    expected = list(split)
    split.start = step * data.draw(st.integers(0, len(split) // step - 1))
    batches = BatchSampler(split, 2 * half_batch, drop_last=False)
    shards = [list(BatchSamplerShard(batches, num_processes, process)) for process in range(num_processes)]
    together = [view for parts in zip(*shards, strict=True) for batch in parts for view in batch]
    assert together == expected[split.start :]


def test_the_order_is_a_function_of_seed_and_epoch():
    labels = unbalanced([30, 5, 12])
    plan = sampler_of(labels, seed=1, epoch=2).plan()
    np.testing.assert_array_equal(plan, sampler_of(labels, seed=1, epoch=2).plan())
    for seed, epoch in ((0, 2), (1, 0)):
        assert not np.array_equal(plan, sampler_of(labels, seed=seed, epoch=epoch).plan())


def test_each_image_of_a_class_comes_first_equally_often():
    labels = unbalanced([20, 4])
    firsts = Counter()
    for seed in range(2000):
        plan = sampler_of(labels, seed=seed).plan()
        firsts[next(row for row in plan.tolist() if labels[row] == 1)] += 1
    assert stats.chisquare([firsts[row] for row in np.flatnonzero(labels == 1).tolist()]).pvalue > 1e-4


def test_one_class_alone_cannot_be_balanced():
    with pytest.raises(InputError, match=r"the training images are of 1 class\(es\); leave it out"):
        sampler_of([3, 3, 3, 3])


# ---- of a run ----


def of_a_run(dataset, **changes) -> ViewSampler:
    settings = {"train_batch_size": 8, "effective_batch_size": 16, "repeated_augmentation": 3, "balanced_views": True}
    settings["view_epochs"] = 0
    return training_sampler(dataset, SimpleNamespace(**{**settings, **changes}))


def labelled(counts):
    rows = photos(bad=()).select(range(sum(counts)))
    return rows.remove_columns("label").add_column("label", np.repeat(np.arange(len(counts)), counts).tolist())


def test_a_run_balances_if_it_is_asked_to():
    dataset = ViewDataset(labelled([30, 10, 5]), PLAIN, seed=5)
    drawn = [dataset.rows[row]["label"] for row in of_a_run(dataset).plan().tolist()]
    assert sorted(Counter(drawn).values()) == [len(drawn) // 3] * 2 + [len(drawn) - 2 * (len(drawn) // 3)]
    plain = ViewSampler(45, 16, 3, seed=5)
    np.testing.assert_array_equal(of_a_run(dataset, balanced_views=False).plan(), plain.plan())


def test_a_dataset_without_positions_cannot_be_balanced():
    with pytest.raises(InputError, match="balanced_views .* a dataset of views"):
        of_a_run(list(range(20)))


def test_workers_and_batch_sizes_change_nothing():
    dataset = ViewDataset(labelled([30, 10, 5]), dataclasses.replace(PLAIN, mixup_alpha=0.8), seed=5)
    sampler = of_a_run(dataset)
    settings = {"sampler": sampler, "collate_fn": collate}
    expected = by_position(DataLoader(dataset, 16, **settings))
    assert by_position(DataLoader(dataset, 8, num_workers=2, **settings)) == expected
