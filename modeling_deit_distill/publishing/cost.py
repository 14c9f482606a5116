"""What an answer costs on this machine: parameters and milliseconds an image, of student and teacher."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..configuration_deit_distill import as_pair
from ..modeling_deit_distill import DeiTDistillForImageClassification
from ..teachers.ensemble import Ensemble
from ..teachers.teacher import Teacher

ROUNDS, FEWEST, WARM_UP, MAX_SECONDS = 30, 5, 3, 3.0


def measure_costs(output_dir: str | Path, teacher: Teacher | Ensemble | None, device: torch.device) -> dict[str, float]:
    """Of the model in a run's folder and of its teacher, by their names in `all_results.json`.

    Each gets one image at a time, at its own size, in fp32, whatever the run's precision was. They take turns, and
    the fastest round of each counts: other programs can make a round many times slower, never faster.

    Args:
        output_dir: the run's folder, in which the model was saved.
        teacher: None without one, or if only its stored answers are there; then nothing is said of it. Of several the
            sums: they answer one after the other.
    """
    student = DeiTDistillForImageClassification.from_pretrained(output_dir).to(device).eval()
    members = [] if teacher is None else list(teacher.members)
    calls = [
        _answering(member.model, (member.view.image_size,) * 2, device, member.memory_format) for member in members
    ]
    own, *times = _milliseconds([_answering(student, as_pair(student.config.image_size), device), *calls], device)
    if teacher is None:
        return {"milliseconds_per_image": own}
    return {
        "teacher_num_parameters": sum(member.model.num_parameters() for member in members),
        "milliseconds_per_image": own,
        "teacher_milliseconds_per_image": round(sum(times), 3),
    }


def _answering(
    model: torch.nn.Module, size: tuple[int, int], device, memory_format=torch.contiguous_format
) -> Callable[[], object]:
    """A call that answers one image; not compiled, since the compiled teacher is one for batches."""
    pixel_values = torch.zeros(1, 3, *size, device=device).contiguous(memory_format=memory_format)
    return lambda: model.forward(pixel_values=pixel_values)


@torch.inference_mode()
def _milliseconds(calls: list[Callable[[], object]], device) -> list[float]:
    """The shortest time of each call, after a warm-up; of slow ones fewer rounds are measured."""
    times: list[list[float]] = [[] for _ in calls]
    began = time.perf_counter()
    for number in range(WARM_UP + ROUNDS):
        if number >= WARM_UP + FEWEST and time.perf_counter() - began > MAX_SECONDS:
            break
        for call, measured in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            if number >= WARM_UP:
                measured.append(1000 * (time.perf_counter() - started))
    return [round(min(measured), 3) for measured in times]
