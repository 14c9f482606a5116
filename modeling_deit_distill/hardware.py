"""What a run computes on, in words: devices, threads and cores."""

import os
import platform
from pathlib import Path

import torch
from transformers import TrainingArguments

from .output_folder import hardware_in, step_of
from .report import say_once

# What sets the number of torch's threads. `accelerate launch` sets the first to 1 by default.
THREADS_VARIABLE = "OMP_NUM_THREADS"


def hardware(args: TrainingArguments) -> str:
    """The devices, for the card and the checkpoints."""
    if args.device.type == "cuda":
        return f"{args.world_size} × {torch.cuda.get_device_name(args.device)}"
    return f"CPU ({platform.machine()}), {args.world_size} process(es) of {torch.get_num_threads()} thread(s)"


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_in_words(args: TrainingArguments) -> str:
    """The device, for the summary; of a CPU with the threads of each process, and what set their number."""
    if args.device.type != "cpu":
        return str(args.device)
    reason = f" ({THREADS_VARIABLE})" if os.environ.get(THREADS_VARIABLE) else ""
    each = " in each process" if args.world_size > 1 else ""
    return f"cpu, {torch.get_num_threads()} of {num_cores()} cores{each}{reason}"


def hardware_going_on(checkpoint: Path | str | None, args: TrainingArguments) -> dict[str, str]:
    """What each part of a run is computed on that goes on from a checkpoint, or begins; a change is said.

    Args:
        checkpoint: a whole one, or None.
        args: of the run.
    """
    earlier, now = hardware_in(checkpoint), hardware(args)
    if words := change_in_words(earlier, now):
        say_once(words)
    return hardware_by_step(earlier, 0 if checkpoint is None else step_of(Path(checkpoint)), now)


def hardware_by_step(earlier: dict[str, str], step: int, now: str) -> dict[str, str]:
    """The hardware of each part of a run, by the step before its first one.

    Args:
        earlier: the same of the checkpoint that the run goes on from; empty for a new run, or where nobody knows.
        step: of the checkpoint, or 0.
        now: this machine's, as [`hardware`] tells it.
    """
    if not earlier:
        return {str(step): now}
    return earlier if [*earlier.values()][-1] == now else {**earlier, str(step): now}


def parts_in_words(parts: dict[str, str]) -> str:
    """[`hardware_by_step`] in words."""
    (_, words), *later = parts.items()
    return words + "".join(f"; from step {int(step):,} on {each}" for step, each in later)


def change_in_words(earlier: dict[str, str], now: str) -> str | None:
    """A warning where a run goes on on other hardware, or on another number of threads; None where it does not."""
    before = [*earlier.values()][-1] if earlier else now
    if before == now:
        return None
    return (
        f"the checkpoint is of a run on {before}, this one goes on on {now}: the last bits of its weights will be "
        "others than those of a run that was not interrupted"
    )
