"""The teacher asked about several batches at once, or about parts of one: the same answers, counted alike."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.runs import SHORT_RUN, words_of
from helpers.trainers import CLASSES, CountingTeacher, rows, snapshot, student, trainer, views_trainer
from hypothesis import given
from hypothesis import strategies as st

from modeling_deit_distill.data.columns import NO_LABEL
from modeling_deit_distill.output_folder import last_complete
from modeling_deit_distill.teachers.store import create_store
from modeling_deit_distill.training.answers import ASKED, Answers, chunks_of

LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=5)


@given(LENGTHS, st.integers(1, 12))
def test_chunks_hold_all_views_in_their_order(lengths, size):
    views = torch.arange(sum(lengths))
    sizes = [min(size, len(views) - begin) for begin in range(0, len(views), size)]
    chunks = list(chunks_of(views.split(lengths), sizes))
    assert [len(chunk) for chunk in chunks] == sizes
    assert torch.equal(torch.cat(chunks), views)


def test_what_lies_in_one_batch_is_not_copied():
    one, other = torch.arange(4), torch.arange(4, 8)
    first, second, third = chunks_of([one, other], [3, 2, 3])
    assert first.data_ptr() == one.data_ptr() and third.data_ptr() == other[1:].data_ptr()
    assert second.tolist() == [3, 4]


def asked_sizes(run) -> list[int]:
    """How many views the trainer's teacher is asked about each time."""
    sizes, forward = [], run.answers.teacher.forward
    run.answers.teacher.forward = lambda pixel_values: (sizes.append(len(pixel_values)), forward(pixel_values))[1]
    return sizes


SETTINGS = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 4, "num_train_epochs": 1}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (None, [4] * 16),
        (4, [4] * 16),
        (3, [3, 1] * 16),
        (1, [1] * 64),
        (6, [6, 6, 4] * 4),
        (8, [8] * 8),
        (16, [16] * 4),
        (1000, [16] * 4),
    ],
)
@pytest.mark.slow
def test_the_weights_do_not_depend_on_how_many_are_asked_about_at_once(tmp_path, size, expected):
    ordinary = views_trainer(tmp_path / "ordinary", rows(64), **SETTINGS)
    ordinary.train()
    run = views_trainer(tmp_path / "other", rows(64), teacher_batch_size=size, **SETTINGS)
    sizes = asked_sizes(run)
    run.train()
    assert sizes == expected
    assert run.progress.counts() == ordinary.progress.counts()
    ours, theirs = snapshot(run.model), snapshot(ordinary.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run.seen == ordinary.seen


def test_soft_answers_are_the_same_up_to_rounding(tmp_path):
    made = []
    for size in (None, 16):
        run = views_trainer(
            tmp_path / str(size), rows(32), distillation_type="soft", teacher_batch_size=size, **SETTINGS
        )
        run.train()
        made.append(snapshot(run.model))
    for name, value in made[0].items():
        torch.testing.assert_close(made[1][name], value)


def test_images_without_labels_and_without_mixing_go_with_it(tmp_path):
    some = rows(32)
    labels = [NO_LABEL if row % 3 else label for row, label in enumerate(some["label"][:])]
    some = some.remove_columns("label").add_column("label", labels, feature=some.features["label"])
    made = []
    for size in (None, 16):
        run = views_trainer(
            tmp_path / str(size), some, mixup_alpha=0.0, cutmix_alpha=0.0, teacher_batch_size=size, **SETTINGS
        )
        run.train()
        made.append(snapshot(run.model))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_a_training_set_that_is_not_of_views_goes_with_it(tmp_path):
    made, settings = [], {"gradient_accumulation_steps": 2, "max_steps": 2}
    for size in (None, 12):
        teacher = CountingTeacher()
        run = trainer(tmp_path / str(size), student(), teacher, teacher_batch_size=size, **settings)
        sizes = asked_sizes(run)
        run.train()
        assert sizes == ([8] * 4 if size is None else [12, 4] * 2)
        made.append(snapshot(run.model))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_a_teacher_is_asked_in_inference_mode(tmp_path):
    run, modes = views_trainer(tmp_path, rows(16), **SETTINGS), []
    forward = run.answers.teacher.forward
    run.answers.teacher.forward = lambda pixels: (modes.append(torch.is_inference_mode_enabled()), forward(pixels))[1]
    run.train()
    assert modes and all(modes)


def answers_of(teacher, store=None, size=None, kind="hard"):
    args = SimpleNamespace(device=torch.device("cpu"), distillation_type=kind, teacher_batch_size=size)
    args.train_batch_size, args.distillation_temperature = 4, 3.0
    made = Answers(args, teacher, None, None, CLASSES)
    made.store = store
    return made


def test_an_answer_that_is_not_finite_is_that_of_its_batch_alone():
    pixels = [torch.randn(4, 3, 16, 16) for _ in range(3)]
    pixels[1][2] = torch.nan
    answers = answers_of(CountingTeacher(), size=12)
    asked = [each[ASKED] for each in answers.about([{}] * 3, pixels)]
    assert [bool(are_finite) for _, are_finite in asked] == [True, False, True]


def test_a_store_is_asked_for_first_and_whole_chunks_are_asked_about(tmp_path):
    fingerprint = {"num_classes": CLASSES, "num_views": 16, "distillation_type": "hard"}
    store = create_store(tmp_path / "store", fingerprint, {})
    pixels = [torch.randn(4, 3, 16, 16) for _ in range(4)]
    batches = [{"epoch": np.zeros(4, int), "position": np.arange(first, first + 4)} for first in range(0, 16, 4)]
    alone = [answers_of(CountingTeacher()).about([{}], [each])[0][ASKED][0] for each in pixels]
    known = np.array([0, 1, 2, 3, 4, 5, 9])
    store.write(0, known, store.encode(torch.nn.functional.one_hot(torch.cat(alone)[known], CLASSES).float()))
    teacher = CountingTeacher()
    answers = answers_of(teacher, store, size=6)
    asked = [each[ASKED][0] for each in answers.about(batches, pixels)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(asked, alone, strict=True))
    assert teacher.asked == 10  # chunks 0 to 5, all known, 6 to 11, and 12 to 15
    assert answers.num_asked == 9  # view 9 was known
    assert store.known(0).all()
    again = [each[ASKED][0] for each in answers_of(None, store, size=6).about(batches, pixels)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, alone, strict=True))


@pytest.mark.parametrize(
    ("size", "batches", "ahead"), [(None, 4, False), (4, 4, False), (5, 4, True), (5, 1, False), (64, 2, True)]
)
def test_the_teacher_is_asked_ahead_where_a_step_has_several_batches_and_it_takes_more_than_one(size, batches, ahead):
    assert answers_of(CountingTeacher(), size=size).asks_ahead(batches) is ahead
    assert not answers_of(None, size=size).asks_ahead(batches)
    assert not answers_of(CountingTeacher(), size=size, kind="none").asks_ahead(batches)


# --- runs of the script ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(photos, random_teacher):
    """`words(folder, **changes)`: the command line of eight steps of eight views, in accumulation steps of two."""
    given = {**SHORT_RUN, "num_train_epochs": 2, "per_device_train_batch_size": 2, "train_dir": photos}
    given |= {"teacher_name_or_path": random_teacher, "resume_from_checkpoint": "true"}
    return lambda folder, **changes: words_of({**given, "output_dir": folder, **changes})


def end_of(folder) -> tuple[bytes, int]:
    """The weights of a finished run, and about how many views its teacher was asked."""
    asked = json.loads((folder / "all_results.json").read_text())["teacher_views_asked"]
    return (folder / "model.safetensors").read_bytes(), asked


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "view_epochs"), [(1, 0), (2, 0), (2, 1)])
def test_processes_and_a_kill_change_no_bit_when_more_are_asked_about_at_once(
    forked, words, tmp_path, processes, view_epochs
):
    changes = {"gradient_accumulation_steps": 4 // processes, "view_epochs": view_epochs}
    at_once = {**changes, "teacher_batch_size": 8 // processes}  # a step's views of a process
    for name, chosen in (("ordinary", changes), ("at once", at_once)):
        done = forked.run(words(tmp_path / name, **chosen), processes=processes)
        assert done.codes == [0] * processes, done.printed
    assert f"about {8 // processes} views at once" in done.printed
    expected = end_of(tmp_path / "ordinary")
    assert end_of(tmp_path / "at once") == expected and expected[1] == (32 if view_epochs else 64)

    for part in range(9, 14):  # about the fifth of eight steps; how many calls two processes make is not certain
        folder = tmp_path / f"run{part}"
        killed = forked.run(words(folder, **at_once), "SIGKILL", done.calls["train"] * part // 16, processes=processes)
        assert killed.codes[0] == -9, killed.printed
        if last_complete(folder)[0] is not None:
            break
    again = forked.run(words(folder, **{**at_once, "teacher_batch_size": 3}), processes=processes)
    assert again.codes == [0] * processes and "resuming from" in again.printed
    assert end_of(folder) == expected
