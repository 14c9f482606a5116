"""Runs that label digits with small teachers."""

import dataclasses

import pytest
from helpers.labelling import NUM_IMAGES, Run, save_teacher
from helpers.teachers import DIGITS

from modeling_deit_distill.data.sources import ImageData, load_image_data
from modeling_deit_distill.recipes import parse_arguments


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    reversed_ = save_teacher(folder / "reversed", 2, DIGITS[::-1])
    return {"mine": save_teacher(folder / "mine", 2), "other": save_teacher(folder / "other", 3), "reversed": reversed_}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    data = load_image_data("digits")
    return dataclasses.replace(
        data, train=data.train.select(range(NUM_IMAGES)), validation=data.validation.select(range(12))
    )


@pytest.fixture
def run_of(tmp_path, teachers, digits):
    """`run_of(*arguments)`; `teacher=None` names none."""

    def make(*arguments: str, teacher: str | None = "mine", data: ImageData = digits) -> Run:
        base = {
            "dataset_name": "digits",
            "image_size": 16,
            "per_device_train_batch_size": 8,
            "use_cpu": "true",
            "bf16": "false",
        }
        base |= {"output_dir": tmp_path / "out", "teacher_store": tmp_path / "answers", "report_to": "none"}
        if teacher:
            base["teacher_name_or_path"] = teachers[teacher]
        words = [word for key, value in base.items() for word in (f"--{key}", str(value))]
        return Run(parse_arguments([*words, *arguments]), data)

    return make


@pytest.fixture
def filled(run_of):
    """A run with its teacher and a store that has the first of its epochs."""
    run = run_of()
    teacher, store = run.prepare()
    run.fill(store, teacher)
    return run, teacher, store
