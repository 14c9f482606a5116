"""What a run prints."""

import re

from hypothesis import given
from hypothesis import strategies as st

from modeling_deit_distill.report import aligned, duration, how_to_use, summary_table


def test_duration():
    for seconds, text in (
        (0, "0 s"),
        (42.4, "42 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599, "59 min 59 s"),
        (3599.7, "1 h 00 min"),
        (3725, "1 h 02 min"),
        (90_000, "25 h 00 min"),
    ):
        assert duration(seconds) == text


def test_the_teacher_that_is_to_be_kept_comes_first():
    assert how_to_use("my out").startswith(
        "Use it:     python -m modeling_deit_distill.predict 'my out' FOLDER_OR_FILES "
    )
    first, second, third = how_to_use("out", "out/teacher").splitlines()
    assert first.startswith("Use the teacher:  python -m modeling_deit_distill.predict out/teacher FOLDER_OR_FILES ")
    assert second.startswith("Or the student:   python -m modeling_deit_distill.predict out FOLDER_OR_FILES ")
    lines = """from transformers import pipeline; pipeline("image-classification", model='out/teacher')("photo.jpg")"""
    assert third == f"In Python:        {lines}"


@given(st.floats(0, 10**6))
def test_a_duration_is_off_by_less_than_its_last_unit(seconds):
    number_of = {unit: int(number) for number, unit in re.findall(r"(\d+) (h|min|s)", duration(seconds))}
    parsed = number_of.get("h", 0) * 3600 + number_of.get("min", 0) * 60 + number_of.get("s", 0)
    assert abs(parsed - seconds) <= (60 if "h" in number_of else 0.5)
    assert number_of.get("s", 0) < 60 and number_of.get("min", 0) < 60


def test_summary_is_aligned():
    first, second = summary_table({"data": "digits", "learning rate": 0.001}).splitlines()
    assert first.split() == ["data", "digits"] and second.split() == ["learning", "rate", "0.001"]
    assert first.index("digits") == second.index("0.001")


def test_a_table_has_names_to_the_left_and_figures_to_the_right():
    assert aligned([["class", "images"], ["t-shirt", "7"], ["hat", ""]]) == "class    images\nt-shirt       7\nhat"
