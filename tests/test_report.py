"""What a run prints."""

import re

from hypothesis import given
from hypothesis import strategies as st

from modeling_deit_distill.report import ACCURACY_NAMES, aligned, duration, results_table, summary_table


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


@given(st.floats(0, 10**6))
def test_a_duration_is_off_by_less_than_its_last_unit(seconds):
    number_of = {unit: int(number) for number, unit in re.findall(r"(\d+) (h|min|s)", duration(seconds))}
    told = number_of.get("h", 0) * 3600 + number_of.get("min", 0) * 60 + number_of.get("s", 0)
    assert abs(told - seconds) <= (60 if "h" in number_of else 0.5)
    assert number_of.get("s", 0) < 60 and number_of.get("min", 0) < 60


def test_the_table_has_a_row_for_what_was_measured_alone():
    for key, name in ACCURACY_NAMES.items():
        lines = results_table({key: 0.98765, "eval_loss": 0.1, "num_parameters": 5}).splitlines()
        assert len(lines) == 3 and set(lines[0]) == set(lines[2]) == {"-"}
        assert name in lines[1] and lines[1].endswith("98.77 %")  # per cent, two digits


def test_the_table_in_full():
    results = {"train_runtime": 200.0, "bad_images": 1234} | {key: 0.5 for key in reversed(ACCURACY_NAMES)}
    rows = results_table(results).splitlines()[1:-1]
    names = [*ACCURACY_NAMES.values(), "images that could not be read", "training time"]
    for row, name in zip(rows, names, strict=True):
        assert row.strip().startswith(name)
    assert rows[-2].endswith(" 1,234") and rows[-1].endswith("3 min 20 s")
    assert len({row.index("50.00 %") for row in rows[:-2]}) == 1


def test_the_table_says_that_every_image_could_be_read():
    (row,) = results_table({"bad_images": 0}).splitlines()[1:-1]
    assert "images that could not be read" in row and row.endswith(" 0")


def test_the_table_of_a_run_that_did_not_count_bad_images():
    assert "could not be read" not in results_table({"bad_images": None, "eval_accuracy": 0.5})


def test_the_table_takes_one_hundred_per_cent():
    assert "100.00 %" in results_table({"eval_accuracy": 1.0})


def test_summary_is_aligned():
    first, second = summary_table({"data": "digits", "learning rate": 0.001}).splitlines()
    assert first.split() == ["data", "digits"] and second.split() == ["learning", "rate", "0.001"]
    assert first.index("digits") == second.index("0.001")


def test_a_table_has_names_to_the_left_and_figures_to_the_right():
    assert aligned([["class", "images"], ["t-shirt", "7"], ["hat", ""]]) == "class    images\nt-shirt       7\nhat"
