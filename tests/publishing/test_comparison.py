"""Student and teacher beside each other, and the verdict: hand-worked values."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_deit_distill.publishing.comparison import (
    Outcome,
    comparison,
    kept,
    never_answered,
    results_table,
    verdict,
)

NAMES = ["ant", "bee", "cat"]
SMALL_TEACHER = {
    "num_parameters": 700_000,
    "teacher_num_parameters": 310_000,
    "milliseconds_per_image": 3.0,
    "teacher_milliseconds_per_image": 1.25,
}
LARGE_TEACHER = {
    "num_parameters": 5_700_000,
    "teacher_num_parameters": 83_600_000,
    "milliseconds_per_image": 4.0,
    "teacher_milliseconds_per_image": 40.0,
}


def outcome_of(student, teacher=None, costs=SMALL_TEACHER, num_images=(50, 30, 20)):
    """An outcome of 100 images of three classes, on the first of which so many the answer is wrong."""
    labels = np.repeat(np.arange(3), num_images)

    def decided(num_right):
        return np.where(np.arange(len(labels)) < len(labels) - num_right, (labels + 1) % 3, labels)

    decisions = {"labels": labels, "fused": decided(student)}
    if teacher is not None:
        decisions["teacher"] = decided(teacher)
    results = {"eval_accuracy": student / 100, "teacher_accuracy": (teacher or 0) / 100, **costs}
    return Outcome(results, decisions, NAMES)


# The verdict


def test_a_better_teacher_that_is_smaller_and_faster_is_to_be_kept():
    words = verdict(outcome_of(student=60, teacher=90))
    assert words == (
        "keep the teacher: the student is right on 60.00 % of 100 held-out images, the teacher on 90.00 % (p < 0.001, "
        "McNemar's test). The teacher is smaller (0.31 M against 0.70 M parameters) and faster (1.25 against 3.00 ms "
        "an image). The student is not known to be better than always answering ant (50.00 %)."
    )


def test_a_better_teacher_that_is_larger_and_slower_leaves_a_choice():
    words = verdict(outcome_of(student=80, teacher=95, costs=LARGE_TEACHER))
    assert words.startswith("keep the teacher, unless size or time decide: the student is right on 80.00 %")
    assert words.endswith(
        "The student is smaller (5.70 M against 83.60 M parameters) and faster (4.00 against 40.00 ms an image)."
    )


def test_a_better_student_is_to_be_kept():
    words = verdict(outcome_of(student=95, teacher=70, costs=LARGE_TEACHER))
    assert words.startswith(
        "keep the student: the student is right on 95.00 % of 100 held-out images, the teacher on 70"
    )
    assert verdict(outcome_of(student=95, teacher=70, costs={})).endswith("(p < 0.001, McNemar's test).")


def test_a_difference_that_so_few_images_cannot_tell_is_called_so():
    # One image of a hundred: p is 1. Of two that are alike in this, the smaller and faster one is named.
    words = verdict(outcome_of(student=94, teacher=95, costs=LARGE_TEACHER))
    assert words.startswith(
        "too close to tell: the student is right on 94.00 % of 100 held-out images, the teacher on 95"
    )
    assert "(p = 1, McNemar's test); the difference is within the uncertainty of 100 images." in words
    assert " Keep the student: it is smaller (5.70 M against 83.60 M parameters) and faster" in words
    words = verdict(outcome_of(student=94, teacher=95))
    assert " Keep the teacher: it is smaller (0.31 M against 0.70 M parameters) and faster" in words
    mixed = {**SMALL_TEACHER, "milliseconds_per_image": 1.0}
    words = verdict(outcome_of(student=94, teacher=95, costs=mixed))
    assert "images. The student is faster (1.00 against 1.25 ms an image), the teacher is smaller (0.31" in words
    assert verdict(outcome_of(student=94, teacher=95, costs={})).endswith("the uncertainty of 100 images.")


def test_what_is_hardly_smaller_is_not_called_smaller():
    alike = {"num_parameters": 100, "teacher_num_parameters": 105}
    unlike = {"num_parameters": 1000, "teacher_num_parameters": 1100}
    assert "smaller" not in verdict(outcome_of(student=94, teacher=95, costs=alike))
    assert "smaller (1,000 against 1,100 parameters)" in verdict(outcome_of(student=94, teacher=95, costs=unlike))


def test_balanced_accuracy_that_orders_them_otherwise_is_mentioned():
    labels = np.repeat([0, 1], [90, 10])
    student, teacher = labels.copy(), np.zeros(100, dtype=int)
    student[:20] = 1
    words = verdict(Outcome({}, {"labels": labels, "fused": student, "teacher": teacher}, NAMES[:2]))
    # the teacher always says the one: 90 % right, balanced 50 %; the student 70 of 90 and 10 of 10
    assert "the student is the better one (student 88.89 %, teacher 50.00 %)." in words
    assert words.endswith("Neither is known to be better than always answering ant (90.00 %).")


def test_two_that_have_learned_nothing_of_use_are_named_together():
    words = verdict(outcome_of(student=50, teacher=52))
    assert words.startswith(
        "keep neither as it is: the student is right on 50.00 % of 100 held-out images, the teacher"
    )
    assert words.endswith("Neither is known to be better than always answering ant (50.00 %).")
    assert kept(outcome_of(student=50, teacher=52)) is None


def test_few_images_are_too_few_to_say_anything():
    labels = np.repeat([0, 1, 2], [5, 4, 4])
    student, teacher = np.array([0] * 5 + [1, 1, 0, 0] + [2, 0, 0, 0]), np.array([0] * 5 + [1, 1, 1, 0] + [2, 2, 0, 0])
    outcome = Outcome(SMALL_TEACHER, {"labels": labels, "fused": student, "teacher": teacher}, NAMES)
    assert verdict(outcome) == (
        "too few held-out images (13) to say: the student is right on 8, the teacher is right on 10 and always ant is "
        "right on 5; hold out more."
    )
    assert kept(outcome) is None
    alone = Outcome({}, {"labels": labels, "fused": student}, NAMES)
    assert verdict(alone).startswith("too few held-out images (13) to say: the student is right on 8 and always ant")
    sure = Outcome({}, {"labels": labels, "fused": student * 0, "teacher": labels}, NAMES)  # eight alone: p = 0.0078
    assert verdict(sure).startswith("keep the teacher: ") and kept(sure) == "teacher"


@pytest.mark.parametrize(
    ("student", "teacher", "which"), [(60, 90, "teacher"), (95, 70, "student"), (94, 95, "teacher")]
)
def test_who_is_kept_is_who_the_verdict_says(student, teacher, which):
    outcome = outcome_of(student, teacher)
    assert kept(outcome) == which and f"eep the {which}" in verdict(outcome)


def test_without_a_teacher_the_largest_class_is_the_measure():
    words = verdict(outcome_of(student=90))
    assert words == (
        "the student is better than always answering ant (50.00 %): it is right on 90.00 % of 100 images (p < 0.001)."
    )
    assert verdict(outcome_of(student=50)).startswith("the student is not known to be better than always answering ant")


def test_without_decisions_there_is_no_verdict():
    assert verdict(Outcome({"eval_accuracy": 0.5, "teacher_accuracy": 0.9})) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=60))
def test_who_is_to_be_kept_is_never_right_less_often(images):
    labels, student, teacher = np.array(images).T
    words = verdict(Outcome({}, {"labels": labels, "fused": student, "teacher": teacher}, NAMES))
    difference = np.mean(student == labels) - np.mean(teacher == labels)
    assert not words.startswith("keep the student") or difference > 0
    assert not words.startswith("keep the teacher") or difference < 0


# The table


def test_the_table_has_student_teacher_and_the_largest_class_beside_each_other():
    results = {
        "eval_accuracy": 0.9,
        "eval_balanced_accuracy": 0.875,
        "eval_macro_f1": 0.8,
        "teacher_accuracy": 0.95,
        "teacher_balanced_accuracy": 0.9,
        "teacher_macro_f1": 0.85,
        **SMALL_TEACHER,
    }
    heads, rows = comparison(Outcome(results, outcome_of(90, 95).decisions, NAMES))
    assert heads == ["student", "teacher", "always ant"]
    assert rows == [
        ("accuracy", "90.00 %", "95.00 %", "50.00 %"),
        ("balanced accuracy", "87.50 %", "90.00 %", "33.33 %"),
        ("macro-F1", "80.00 %", "85.00 %", "22.22 %"),  # of the one 2 · 0.5 / 1.5, of the others 0
        ("parameters", "0.70 M", "0.31 M", "–"),
        ("milliseconds an image", "3.00", "1.25", "–"),
    ]


def test_without_a_teacher_there_is_no_column_for_it():
    heads, rows = comparison(Outcome({"eval_accuracy": 0.9, "num_parameters": 5e6}, outcome_of(90).decisions, NAMES))
    assert heads == ["student", "always ant"]
    assert ("parameters", "5.00 M", "–") in rows and all(name != "milliseconds an image" for name, *_ in rows)


def test_of_a_teacher_in_a_store_the_accuracy_alone_is_known():
    results = {"eval_accuracy": 0.9, "teacher_accuracy": 0.95, "num_parameters": 700_000, "milliseconds_per_image": 3.0}
    outcome = Outcome(results, outcome_of(90, 95).decisions, NAMES)
    assert ("parameters", "0.70 M", "–", "–") in comparison(outcome)[1]
    assert "smaller" not in verdict(outcome)


def test_the_table_of_results_alone_has_what_they_say():
    lines = results_table(Outcome({"eval_accuracy": 0.98765, "bad_images": 0, "train_runtime": 200.0})).splitlines()
    assert set(lines[0]) == set(lines[-1]) == {"-"}
    assert [line.split("  ")[1] for line in lines[2:-1]] == [
        "accuracy",
        "images that could not be read",
        "training time",
    ]
    assert [re.split(" {2,}", line)[-1] for line in lines[1:-1]] == ["student", "98.77 %", "0", "3 min 20 s"]
    assert "could not be read" not in results_table(Outcome({"bad_images": None, "eval_accuracy": 0.5}))
    assert results_table(Outcome({})) == "\n"  # and no heads of columns that are not there


def test_the_table_counts_and_names_the_classes_that_are_never_answered():
    labels, names = np.arange(12), [f"c{index}" for index in range(12)]
    outcome = Outcome({}, {"labels": labels, "fused": np.zeros(12, dtype=int), "teacher": labels}, names)
    lines = results_table(outcome).splitlines()
    (student,) = [line for line in lines if "never answered by the student" in line]
    assert student.endswith("11 of 12 classes: c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, and 1 others")
    (teacher,) = [line for line in lines if "never answered by the teacher" in line]
    assert teacher.endswith("none")


def test_a_class_without_images_cannot_be_missed():
    outcome = Outcome({}, {"labels": np.array([0, 0, 1]), "fused": np.array([0, 0, 0])}, NAMES)
    assert never_answered(outcome.judged["student"]) == [1]


def test_the_table_fits_a_terminal_and_keeps_its_columns():
    lines = results_table(outcome_of(60, 90)).splitlines()
    assert max(map(len, lines)) <= 120
    assert all(line.startswith("  ") for line in lines[1:-1])
    column = lines[1].index("student") + len("student")
    assert [line[column - 3 : column] for line in lines[2:7]] == ["0 %", "  –", "  –", "0 M", ".00"]


@pytest.mark.parametrize("name", ["two\nlines", "x" * 60, "\x1b[31mred"])
def test_odd_names_of_classes_keep_the_table_whole(name):
    outcome = Outcome(
        {"eval_accuracy": 1.0}, {"labels": np.array([0, 1, 1]), "fused": np.array([0, 0, 0])}, ["a", name]
    )
    table = results_table(outcome)
    assert "\x1b" not in table and len(table.splitlines()) == len({*table.splitlines()}) + 1  # the rule alone twice


def test_several_teachers_are_an_ensemble_and_each_has_its_own_row():
    results = {**SMALL_TEACHER, "teacher_1_accuracy": 0.9, "teacher_2_accuracy": 0.8, "teacher_views_asked": 64}
    results["teacher_accuracy"] = 0.95
    outcome = Outcome(results, outcome_of(50, 95).decisions, NAMES, ["one", "two"])
    assert comparison(outcome)[0][1] == "ensemble of 2 teachers"
    table = " ".join(results_table(outcome).split())
    assert "teacher 1 alone 90.00 % (one) teacher 2 alone 80.00 % (two)" in table
    assert "views the teachers were asked about 64, by each of 2: 128 answers" in table
    assert "keep the ensemble of 2 teachers" in table and "the teacher " not in table
