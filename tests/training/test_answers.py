"""What the teacher's store says of the held-out images counts for these images alone."""

from types import SimpleNamespace

import numpy as np
import pytest
from accelerate import Accelerator

from modeling_deit_distill.training.answers import Answers

KEPT = {"accuracy": 0.5, "answers": [1, 0], "labels": [1, 1]}


@pytest.mark.parametrize("labels", [[1, 1], [1, 0], [1], [1, 1, 1]])
def test_kept_answers_about_other_images_are_passed_over(labels):
    args = SimpleNamespace(device="cpu", distillation_type="hard", distillation_temperature=1.0)
    answers = Answers(args, None, None, None, 2)
    answers.store = SimpleNamespace(read_validation={"a view": KEPT}.get)
    dataset = [{"labels": label} for label in labels]
    found = answers.about_held_out(None, "a view", Accelerator(cpu=True), None, dataset, True)
    if labels == [1, 1]:
        assert found["accuracy"] == 0.5 and np.array_equal(found["answers"], [1, 0])
    else:
        assert found is None
