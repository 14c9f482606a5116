"""Teacher, views and store together: what a run needs, and who is asked about what."""

import numpy as np
import pytest
import torch
from helpers.labelling import NUM_IMAGES, asked_directly, content, count_asked, forget
from helpers.teachers import DIGITS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_deit_distill.arguments import ModelArguments
from modeling_deit_distill.teachers.entries import decode_top_k
from modeling_deit_distill.teachers.labelling import (
    ask,
    decisions,
    fill,
    planned_views,
)
from modeling_deit_distill.teachers.store import TeacherStore
from modeling_deit_distill.teachers.teacher import load_teacher
from modeling_deit_distill.teachers.training import TeacherTraining, training_record

# The examples of a property share its fixtures; each makes anew what it changes.
FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ---- how a teacher is trained ----


def test_a_new_teacher_is_trained_at_the_size_at_which_it_is_asked(run_of):
    words = ["--train_teacher", "true", "--teacher_image_size", "24"]
    new = run_of(*words, "--teacher_config_name", "resnet", teacher=None)
    fine_tuned = run_of(*words, teacher="mine")
    for run, image_size in ((new, 24), (fine_tuned, 16)):
        record = training_record(TeacherTraining(run.describe(), run.data, run.arguments.model, run.args, 16))
        assert record["image_size"] == image_size


def test_a_teacher_that_labels_needs_no_folder_without_checkpoints(run_of, tmp_path):
    (tmp_path / "out" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "out" / "checkpoint-2" / "model.safetensors").touch()  # of a student that was trained before
    run = run_of()
    teacher, store = run.prepare()
    run.fill(store, teacher)
    assert store.count(0) == 24


# ---- which views a run needs ----


PLANNED = [
    (["--num_train_epochs", "2"], {0: 24, 1: 24}),
    (["--num_train_epochs", "1"], {0: 24}),
    (["--num_train_epochs", "0.1"], {0: 8}),  # 0.3 steps are one
    (["--num_train_epochs", "0.5"], {0: 16}),
    (["--num_train_epochs", "1.5"], {0: 24, 1: 16}),
    (["--num_train_epochs", "5", "--max_steps", "1"], {0: 8}),
    (["--max_steps", "3"], {0: 24}),
    (["--max_steps", "7"], {0: 24, 1: 24, 2: 8}),
    (["--num_train_epochs", "2", "--per_device_train_batch_size", "4"], {0: 28, 1: 28}),
    (["--num_train_epochs", "2", "--gradient_accumulation_steps", "2"], {0: 16, 1: 16}),
    (["--max_steps", "3", "--gradient_accumulation_steps", "2"], {0: 16, 1: 16, 2: 16}),
    (["--num_train_epochs", "2", "--per_device_train_batch_size", "40"], {0: 40, 1: 40}),  # fewer images than that
    (["--num_train_epochs", "1.5", "--per_device_train_batch_size", "40"], {0: 40, 1: 40}),
]


def test_planned_views_by_hand(run_of):
    for arguments, expected in PLANNED:
        run = run_of(*arguments)
        assert planned_views(run.args, run.views) == expected, arguments


@FEW
@given(steps=st.integers(1, 20), batch=st.sampled_from([2, 4, 8, 14, 28, 40]), accumulation=st.integers(1, 4))
def test_planned_views_are_whole_steps_of_whole_epochs_but_for_the_last(run_of, steps, batch, accumulation):
    words = [
        "--max_steps",
        steps,
        "--per_device_train_batch_size",
        batch,
        "--gradient_accumulation_steps",
        accumulation,
    ]
    run = run_of(*map(str, words))
    planned = list(planned_views(run.args, run.views).items())
    of_a_step = batch * accumulation
    of_an_epoch = max(NUM_IMAGES // of_a_step, 1) * of_a_step
    assert [epoch for epoch, _ in planned] == list(range(len(planned)))
    assert sum(views for _, views in planned) == steps * of_a_step
    assert all(views == of_an_epoch for _, views in planned[:-1])
    assert 0 < planned[-1][1] <= of_an_epoch


def test_planned_views_are_those_that_the_trainer_asks_for(run_of, tmp_path):
    from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification, DistillationTrainer

    run = run_of("--num_train_epochs", "1.7", "--save_strategy", "no", "--disable_tqdm", "true")
    teacher, store = run.prepare()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    student = DeiTDistillForImageClassification(DeiTDistillConfig(**sizes, image_size=16, patch_size=8, num_labels=10))
    DistillationTrainer(student, run.args, teacher, store, train_dataset=run.views).train()
    planned = planned_views(run.args, run.views)
    assert planned == {0: 24, 1: 24}
    assert {epoch: store.count(epoch) for epoch in store.epochs()} == planned
    assert store.holds(planned)


# ---- fill ----


def test_filled_entries_are_what_the_teacher_says(run_of):
    run = run_of()
    teacher, store = run.prepare()
    for epochs in ([0], [0, 3]):
        epoch = epochs[-1]
        assert run.fill(store, teacher, [epoch]) == [(epoch, 8)] * 3
        assert store.epochs() == epochs and store.count(epoch) == store.count(epoch, 24) == 24
        said = asked_directly(run, teacher, epoch).argmax(1)
        assert len(said.unique()) > 3  # else nothing is tested
        assert (content(store, epoch)[:24] == said.numpy() + 1).all()


def test_soft_entries_are_what_the_teacher_says(run_of):
    run = run_of("--distillation_type", "soft", "--teacher_store_top_k", "10", "--distillation_temperature", "2")
    teacher, store = run.prepare()
    run.fill(store, teacher)
    found = decode_top_k(content(store)[:24], 10, 2.0, "cpu")
    torch.testing.assert_close(found, asked_directly(run, teacher), rtol=2**-10, atol=1e-3)


def test_a_second_fill_asks_nothing(filled):
    run, teacher, store = filled
    asked, before = count_asked(teacher), content(store)
    assert run.fill(store, teacher) == [] == asked
    assert run.fill(TeacherStore(store.directory), teacher, batch_size=6) == [] == asked
    assert (content(store) == before).all()


def test_only_batches_with_holes_are_asked_and_only_holes_are_written(filled):
    run, teacher, store = filled
    expected = content(store)
    forget(store, [3, 9, 10])
    store.write(0, np.array([2]), np.array([11 - expected[2]], store.dtype))  # somebody's answer: to be left
    kept = content(store)[2]
    asked = count_asked(teacher)
    assert run.fill(store, teacher, batch_size=2) == [(0, 1), (0, 1), (0, 1)]
    assert asked == [2, 2, 2]  # pairs 2-3, 8-9 and 10-11
    expected[2] = kept
    assert (content(store) == expected).all()


def test_a_deleted_epoch_is_asked_again_and_no_other(filled):
    run, teacher, store = filled
    run.fill(store, teacher, [1, 2])
    before = [content(store, epoch) for epoch in range(3)]
    store.path(1).unlink()
    store = TeacherStore(store.directory)
    asked = count_asked(teacher)
    assert run.fill(store, teacher, range(3)) == [(1, 8)] * 3
    assert asked == [8] * 3
    assert all((content(store, epoch) == before[epoch]).all() for epoch in range(3))


def test_decisions_depend_neither_on_the_batch_nor_on_workers(filled):
    run, teacher, store = filled
    expected = content(store)
    for batch_size, num_workers in ((2, 0), (6, 0), (24, 0), (100, 0), (6, 2)):
        store.path(0).unlink()
        store = TeacherStore(store.directory)
        run.fill(store, teacher, batch_size=batch_size, num_workers=num_workers)
        assert (content(store) == expected).all(), (batch_size, num_workers)


def test_shares_are_disjoint_and_together_complete(filled):
    run, teacher, whole = filled
    expected = content(whole)
    whole.path(0).unlink()
    store, asked = TeacherStore(whole.directory), count_asked(teacher)
    assert run.fill(store, teacher, batch_size=4, rank=0, num_processes=2) == [(0, 4)] * 3
    known = store.read(0, np.arange(24))[1].reshape(6, 4)
    assert known.all(1).tolist() == [True, False] * 3 and known.sum() == 12
    assert run.fill(store, teacher, batch_size=4, rank=1, num_processes=2) == [(0, 4)] * 3
    assert asked == [4] * 6
    assert (content(store) == expected).all()


@settings(FEW, max_examples=7)
@given(st.integers(1, 4).flatmap(lambda number: st.tuples(st.just(number), st.lists(st.integers(0, number - 1)))))
def test_shares_stay_disjoint_whoever_is_ahead(filled, case):
    (num_processes, turns), (run, teacher, whole) = case, filled
    run.fill(whole, teacher, [0])
    expected = content(whole)
    for epoch in TeacherStore(whole.directory).epochs():
        whole.path(epoch).unlink()
    asked = count_asked(teacher)
    shares = []
    for rank in range(num_processes):
        store, share = TeacherStore(whole.directory), {"rank": rank, "num_processes": num_processes}
        shares.append(fill(store, teacher, run.views, run.sampler, [0, 1], batch_size=2, **share))
    steps = [next(shares[rank], None) for rank in turns]
    steps += [step for share in shares for step in share]
    assert asked == [2] * 24  # nothing twice
    assert sorted(filter(None, steps)) == [(0, 2)] * 12 + [(1, 2)] * 12
    store = TeacherStore(whole.directory)
    assert (content(store) == expected).all() and store.holds({0: 24, 1: 24})


def test_a_run_with_one_epoch_more_asks_about_that_alone(filled, run_of):
    _, teacher, store = filled
    longer = run_of("--num_train_epochs", "2", "--per_device_train_batch_size", "4")
    assert longer.fill(store, teacher, range(2), batch_size=4) == [(0, 4)] + [(1, 4)] * 7
    assert store.holds(planned_views(longer.args, longer.views))


def test_unmixed_views_need_no_pairs(run_of):
    run = run_of("--mixup_alpha", "0", "--cutmix_alpha", "0", "--per_device_train_batch_size", "5")
    teacher, store = run.prepare()
    assert run.fill(store, teacher, batch_size=7) == [(0, 7)] * 3 + [(0, 4)]
    assert (content(store)[:25] == asked_directly(run, teacher).argmax(1).numpy() + 1).all()


# ---- verify ----

LAYOUTS = pytest.mark.parametrize("distillation_type", ["hard", "soft"])


@LAYOUTS
def test_verify_agrees_with_the_right_teacher_and_not_with_another(run_of, teachers, distillation_type):
    run = run_of("--distillation_type", distillation_type)
    teacher, store = run.prepare()
    run.fill(store, teacher, range(3))
    before = [content(store, epoch) for epoch in range(3)]
    assert run.verify(store, teacher) == (72, 72)
    alike, compared = run.verify(
        store, load_teacher(ModelArguments(teacher_name_or_path=teachers["other"]), DIGITS, 16)
    )
    assert compared == 72 and alike < 36
    assert all((content(store, epoch) == before[epoch]).all() for epoch in range(3))


def test_verify_compares_about_as_many_as_were_asked_for_from_all_epochs(filled):
    run, teacher, store = filled
    run.fill(store, teacher, range(1, 4))
    asked = count_asked(teacher)
    assert run.verify(store, teacher, 16) == (16, 16)
    assert sum(asked) == 16
    assert run.verify(store, teacher, 16) == (16, 16)


def test_verify_finds_what_was_tampered_with(filled):
    run, teacher, store = filled
    run.fill(store, teacher, [1])
    entries = content(store)[:24]
    store.write(0, np.arange(24), entries % 10 + 1)
    assert run.verify(store, teacher) == (24, 48)


def test_verify_compares_whole_pairs_of_an_incomplete_epoch(filled):
    run, teacher, store = filled
    forget(store, [0, 5, 20, 21])
    assert run.verify(store, teacher) == (18, 18)  # 0-1, 4-5 and 20-21 are left out
    run.fill(store, teacher)
    assert run.verify(store, teacher) == (24, 24)


def test_verify_of_an_empty_store_compares_nothing(run_of):
    run = run_of()
    teacher, store = run.prepare()
    assert run.verify(store, teacher) == (0, 0)
    store.path(2).touch()
    assert run.verify(store, teacher) == (0, 0)


def test_verify_takes_an_epoch_of_an_odd_number_of_views(run_of):
    run = run_of("--mixup_alpha", "0", "--cutmix_alpha", "0", "--per_device_train_batch_size", "5")
    teacher, store = run.prepare()
    run.fill(store, teacher)
    alike, compared = run.verify(store, teacher)
    assert alike == compared >= 24


def test_decisions_of_both_layouts(run_of):
    hard = run_of()
    teacher, store = hard.prepare()
    batch = hard.views.__getitems__(list(hard.sampler))
    said = asked_directly(hard, teacher).argmax(1).tolist()
    assert decisions(ask(store, teacher, batch)).tolist() == said
    assert decisions(np.zeros(2, store.dtype)).tolist() == [-1, -1]
    soft = run_of("--distillation_type", "soft", "--teacher_store", str(store.directory.with_name("soft")))
    assert decisions(ask(soft.prepare()[1], teacher, batch)).tolist() == said
