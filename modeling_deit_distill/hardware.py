"""What a run computes on: devices, threads, cores and memory, counted, set and in words."""

import contextlib
import ctypes
import multiprocessing
import os
import platform
from pathlib import Path

import psutil
import torch
from transformers import TrainingArguments

from .output_folder import hardware_in, step_of
from .report import counted, say_once

# What sets the number of torch's threads. `accelerate launch` sets the first to 1 by default.
THREADS_VARIABLE = "OMP_NUM_THREADS"
MAX_WORKERS = 16
# Set by launchers: the number of processes of this machine. Set by srun: the ids of its tasks.
LAUNCHED, SLURM_TASKS = "LOCAL_WORLD_SIZE", "SLURM_GTIDS"
# How many microseconds of all cores, or max, a container may use in so many of the clock (Linux, control groups 2).
QUOTA = Path("/sys/fs/cgroup/cpu.max")
# Where a user has set how glibc keeps memory, that holds.
_USERS_MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
# Of glibc's `mallopt`: from how many bytes on memory is mapped for one block alone, and how many free ones are kept.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_LARGEST_MAPPED, _LARGEST_OF_OLD_GLIBC, _MOST_KEPT = 2**30, 2**25, 2**31 - 1
MOST_MEMORY, MEMORY_IN_USE = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")  # bytes, or max


def hardware(args: TrainingArguments) -> str:
    """The devices, for the card and the checkpoints."""
    if args.device.type == "cuda":
        return f"{args.world_size} × {torch.cuda.get_device_name(args.device)}"
    if args.device.type != "cpu":  # a Mac's "mps", Intel's "xpu"
        return f"{args.world_size} × {args.device.type}"
    return f"CPU ({platform.machine()}), {args.world_size} process(es) of {torch.get_num_threads()} thread(s)"


def num_cores() -> int:
    """Cores that this process may use: those that its scheduler, and the quota of its container, leave it."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
    try:
        allowed, period = QUOTA.read_text().split()
        return max(min(affinity, int(allowed) // int(period)), 1)
    except (OSError, ValueError):  # no Linux, no quota
        return affinity


def spare_memory() -> int:
    """Bytes of memory that this process may take: its share of what is free, or of what its container is left."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no Linux, no limit
        free = min(free, int(MOST_MEMORY.read_text()) - int(MEMORY_IN_USE.read_text()))
    return max(free, 0) // processes_of_machine()


def keep_freed_memory(device_type: str) -> bool:
    """On a CPU let this process use the memory of freed tensors again, where glibc would give it back to the system.

    The system clears each page that it gives out. A step that keeps its pages has a third of the page faults. It takes
    5 to 11 % less time and up to 10 % more memory (`examples/benchmarks/README.md`).

    Returns:
        Whether it is kept: not on another device, not with another C library, and not where an environment variable
        says how glibc keeps memory. `MALLOC_TRIM_THRESHOLD_=131072` is glibc's own default.
    """
    if device_type != "cpu" or platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _USERS_MALLOC):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    is_set = any(mallopt(_MMAP_THRESHOLD, size) for size in (_LARGEST_MAPPED, _LARGEST_OF_OLD_GLIBC))
    return is_set and bool(mallopt(_TRIM_THRESHOLD, _MOST_KEPT))


def workers_by_default(device_type: str) -> int:
    """Processes that decode images beside a training process: none where the CPU trains, which needs the cores.

    Else one for each core that this process may use, shared among the training processes of this machine; at most
    `MAX_WORKERS`. Where processes are spawned, as on Windows and macOS, none either: each would run the user's script
    once more.
    """
    # The first of all is the default; asking for the method in use would fix it.
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if device_type == "cpu" or method == "spawn":
        return 0
    return min(cores_of_process(), MAX_WORKERS)


def processes_of_machine() -> int:
    """The training processes that a launcher, or Slurm's srun, has started on this machine."""
    tasks = os.environ.get(SLURM_TASKS, "0").split(",")
    return int(os.environ.get(LAUNCHED, len(tasks)))


def cores_of_process() -> int:
    """This process's share of the cores; at least one."""
    shared = num_cores()
    if LAUNCHED not in os.environ and "SLURM_CPUS_ON_NODE" in os.environ:
        # Slurm may have bound this task to its share already, or may leave each task all cores of the job.
        shared = min(int(os.environ["SLURM_CPUS_ON_NODE"]), shared * processes_of_machine())
    return max(shared // processes_of_machine(), 1)


def workers_in_words(args: TrainingArguments, is_automatic: bool) -> str:
    """How many processes decode images, for the summary, and why."""
    number = args.dataloader_num_workers
    if number == 0:
        return "0: the training process decodes the images itself"
    if not is_automatic:
        return f"{number} in each process"
    cores = counted(cores_of_process(), "core")
    return f"{number} in each process, which has {cores}; --dataloader_num_workers overrides this"


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
