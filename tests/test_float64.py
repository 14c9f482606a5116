"""No float64 reaches the training device: a Mac's (MPS) has none. Seen without a Mac, on fake tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.fake_device import augment_on_fake_gpu, every_operation, on_fake_gpu
from helpers.process_worker import make
from helpers.trainers import CLASSES, CountingTeacher, student
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_deit_distill.augmentation.augment import mix_labels
from modeling_deit_distill.augmentation.operations import contrast
from modeling_deit_distill.losses import hard_distillation_loss, label_loss, soft_distillation_loss
from modeling_deit_distill.teachers.entries import decode_top_k
from modeling_deit_distill.training.average import update_average
from modeling_deit_distill.training.finite import gradient_norm
from modeling_deit_distill.training.metrics import decide


class Float64(TorchDispatchMode):
    """Collects the operations that take or give float64 (or complex128) on a type of device."""

    def __init__(self, device: str = "cuda"):
        super().__init__()
        self.device, self.found, self.count = device, [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == self.device:
                self.count += 1
                if leaf.dtype in (torch.float64, torch.complex128):
                    self.found.append(str(function))
        return result


def test_float64_on_the_device_is_found():
    with FakeTensorMode(), Float64() as seen:
        values = torch.ones(3, device="cuda")
        torch.where(values > 0, values, 1.0)  # Python's numbers take the dtype of the tensor beside them
        torch.ones(3, dtype=torch.float64)  # the host may
        assert not seen.found
        values.sum(dim=0, dtype=torch.float64)
        torch.ones(3, dtype=torch.float64).to("cuda")
    assert seen.found == ["aten.sum.dim_IntList", "aten._to_copy.default"]


@pytest.mark.slow
def test_augmenting_needs_none():
    draws = every_operation(1)
    wide = replace(draws, arguments=draws.arguments.astype(float), mix_ratio=draws.mix_ratio.astype(float))
    for given_draws in (draws, wide):  # whatever the host computes in
        with FakeTensorMode(allow_non_fake_inputs=True), Float64() as seen:
            augment_on_fake_gpu(given_draws)
            labels = torch.zeros(len(draws.flip), dtype=torch.long, device="cuda")
            assert mix_labels(labels, given_draws.mix_ratio, CLASSES).dtype == torch.float32
        assert not seen.found and seen.count > 100


def test_the_losses_need_none():
    with FakeTensorMode(allow_non_fake_inputs=True), Float64() as seen:
        logits = torch.ones(4, CLASSES, device="cuda", requires_grad=True)
        teacher, labels = torch.ones(4, CLASSES, device="cuda"), torch.zeros(4, dtype=torch.long, device="cuda")
        loss = label_loss(logits, labels, 0.1) + label_loss(logits, teacher, 0.1)
        loss = loss + hard_distillation_loss(logits, labels)
        for code_compatible in (False, True):
            loss = loss + soft_distillation_loss(logits, teacher, 3.0, code_compatible)
        decide((logits, logits, logits), labels)
    assert not seen.found and seen.count > 20


def test_a_stored_answer_needs_none():
    entry = np.dtype([("log_sum_exp", "<f4"), ("logits", "<f2", 2), ("classes", "<u2", 2)])
    with FakeTensorMode(allow_non_fake_inputs=True), Float64() as seen:
        decode_top_k(np.zeros(4, dtype=entry), CLASSES, 3.0, "cuda")
    assert not seen.found and seen.count > 10


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.slow
def test_a_training_step_needs_none(tmp_path, kind):
    run = make(tmp_path, per_device_train_batch_size=16, distillation_type=kind)
    batch = next(iter(run.get_train_dataloader()))
    model, teacher = student(drop_path_rate=0.1).train(), CountingTeacher().eval().requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        run.model, run.answers.teacher = on_fake_gpu(model), on_fake_gpu(teacher)
        tensors = {
            name: torch.empty_like(value, device="cuda") for name, value in batch.items() if torch.is_tensor(value)
        }
        with Float64() as seen:
            loss = run.compute_loss(run.model, {**batch, **tensors})
    assert loss.device.type == "cuda" and not seen.found and seen.count > 500


def test_gradients_the_optimiser_and_the_average_need_none(tmp_path):
    """On the CPU, with values: autograd does not run on a device that is not there. These take the same way on all."""
    run = make(tmp_path, per_device_train_batch_size=16, distillation_type="soft")
    model, batch = student(drop_path_rate=0.1).train(), next(iter(run.get_train_dataloader()))
    loss = run.compute_loss(model, batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    with Float64("cpu") as seen:
        loss.backward()
        skipped = ~gradient_norm(optimizer).isfinite()
        optimizer.step()
        weights = list(model.parameters())
        update_average([torch.zeros_like(weight) for weight in weights], weights, 0.9, skipped)
    assert not seen.found and seen.count > 500


@given(st.lists(st.integers(0, 255), min_size=16, max_size=16), st.sampled_from([1, 24, 128]))
def test_the_mean_grey_of_contrast_is_rounded_half_up(levels, times):
    """With factor 0 the result is the mean; a view of side 4 * 128 has a sum that float32 cannot hold."""
    view = torch.tensor(levels, dtype=torch.float32).view(1, 1, 4, 4).repeat(1, 3, times, times)
    expected = (2 * sum(levels) + 16) // 32
    assert (contrast(view, torch.zeros(1)) == expected).all()
