"""What the teacher's store says of the held-out images counts for these images alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers.stores import SOFT, make

from modeling_deit_distill.teachers.entries import decode_top_k
from modeling_deit_distill.teachers.entry_files import entries_of_text
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


@pytest.mark.parametrize(("is_soft", "keeps"), [(True, True), (True, False), (False, True)])
def test_a_store_of_logits_keeps_those_about_the_held_out_images(tmp_path, is_soft, keeps):
    kind = {"distillation_type": "soft" if is_soft else "hard", "temperature": 1.0}
    args = SimpleNamespace(device="cpu", distillation_temperature=1.0, **kind)
    answers = Answers(args, torch.nn.Identity(), None, None, 3)
    store = answers.store = make(tmp_path, num_classes=3, **{**SOFT, **kind})
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [0.5, 1.0, 0.0]])
    labels = torch.tensor([0, 2, 2])
    batches = [{"pixel_values": logits[part], "labels": labels[part]} for part in (slice(2), slice(2, 3))]
    dataset = [{"labels": label} for label in labels.tolist()]
    found = answers.about_held_out(lambda name: batches, "a view", Accelerator(cpu=True), None, dataset, keeps)
    assert found["accuracy"] == pytest.approx(2 / 3)
    kept = store.validation()
    assert (kept is not None) == keeps and ("entries" in (kept or {})) == (is_soft and keeps)
    if "entries" in (kept or {}):
        assert torch.equal(decode_top_k(entries_of_text(kept["entries"], store.dtype), 3, 1.0, "cpu"), logits)
