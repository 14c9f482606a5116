"""A training step never makes the host wait for the device, seen without one: its operations run on fake tensors."""

import traceback

import pytest
import torch
from helpers.fake_device import augment_on_fake_gpu, every_operation, on_fake_gpu
from helpers.process_worker import make
from helpers.trainers import CountingTeacher, student
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_deit_distill.data.views import OPERATIONS

# What needs values on the host, or a size that depends on values.
READERS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount")


class Waits(TorchDispatchMode):
    """Collects the operations for which a host waits; fake tensors refuse the rest."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, tensors = str(function), [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        crosses = len(devices) > 1 if "copy_." in name else "_to_copy" in name and target not in devices | {None}
        unhurried = kwargs.get("non_blocking") or "copy_." in name and len(args) > 2 and args[2]
        by_mask = "index" in name and any(tensor.dtype == torch.bool for tensor in tensors[1:])
        if crosses and not unhurried or "cuda" in devices and (by_mask or any(reader in name for reader in READERS)):
            self.found.append((name, traceback.extract_stack(limit=8)))
        return function(*args, **kwargs)


class Sent(TorchDispatchMode):
    """Counts the operations with tensors of the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        self.count += any(tensor.device.type == "cuda" for tensor in tensors)
        return result


def test_a_wait_is_found():
    with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits:
        values = torch.ones(3).to("cuda", non_blocking=True)
        assert not waits.found
        values + torch.ones(3).to("cuda")
        values.copy_(torch.ones(3))
    assert [name for name, _ in waits.found] == ["aten._to_copy.default", "aten.copy_.default"]


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_step_is_sent_to_the_device_without_waiting(tmp_path, kind):
    run = make(tmp_path, per_device_train_batch_size=16, distillation_type=kind)
    batch = next(iter(run.get_train_dataloader()))
    model, teacher = student(drop_path_rate=0.1).train(), CountingTeacher().eval().requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        run.model, run.answers.teacher = on_fake_gpu(model), on_fake_gpu(teacher)
        tensors = {
            name: torch.empty_like(value, device="cuda") for name, value in batch.items() if torch.is_tensor(value)
        }
        with Waits() as waits:
            loss = run.compute_loss(run.model, {**batch, **tensors})
            loss = run.compute_loss(run.model, {**batch, **tensors})
    assert loss.device.type == "cuda" and teacher.asked == 32
    assert not waits.found


def test_every_operation_is_sent_without_waiting_and_a_larger_batch_by_no_more_kernels():
    sent = []
    for draws in map(every_operation, (1, 3)):
        with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits, Sent() as operations:
            assert augment_on_fake_gpu(draws).device.type == "cuda"
        assert not waits.found
        sent.append(operations.count)
    assert sent[0] == sent[1] > len(OPERATIONS)


def test_what_the_host_computes_stays_there_whatever_the_default_device():
    draws = every_operation(1)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        assert augment_on_fake_gpu(draws).device.type == "cuda"
