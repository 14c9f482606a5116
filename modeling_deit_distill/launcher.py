"""Who started this process: `accelerate launch`, `torchrun` or nobody, and the words that start it again."""

import os
import shlex
import sys
from pathlib import Path

from transformers import TrainingArguments

from .hardware import THREADS_VARIABLE

SCRIPT, MODULE = "train_deit.py", "modeling_deit_distill.train"
# `accelerate launch` sets it for each process, and nothing else does.
ACCELERATES_VARIABLE = "ACCELERATE_DYNAMO_USE_FULLGRAPH"
TORCHRUNS_VARIABLE = "TORCHELASTIC_RUN_ID"


def has_ended() -> bool:
    """Whether a launcher started this process and is gone: it was ended alone, and passed nothing on."""
    return (is_of_accelerate() or TORCHRUNS_VARIABLE in os.environ) and os.getppid() != _parent


def is_of_accelerate() -> bool:
    """Whether `accelerate launch` started this process."""
    return ACCELERATES_VARIABLE in os.environ


def _words_of(process: int) -> list[str]:
    """The command line of a process; empty where the system does not tell it, as Linux does."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    except (OSError, UnicodeDecodeError):
        return []


_parent, _parents_words = os.getppid(), _words_of(os.getppid())  # now: a launcher may end before this process


def program() -> str:
    """What stands for the program in a command that trains: the script, or the module where this process runs that."""
    started = getattr(sys.modules["__main__"], "__spec__", None)
    return f"-m {MODULE}" if started is not None and started.name == MODULE else SCRIPT


def launching(args: TrainingArguments, script: str | None = None) -> str:
    """The beginning of a command that starts a script as this run was started, up to the script's name.

    Args:
        args: of the run.
        script: its name; by default that of this run's, or its module.

    Where the system tells the launcher's command line, as Linux does, it has all of the launcher's arguments.
    """
    script = script or program()
    threads = os.environ.get(THREADS_VARIABLE, "") if args.device.type == "cpu" else ""
    is_accelerate = is_of_accelerate()
    if not (is_accelerate or TORCHRUNS_VARIABLE in os.environ):
        words = ["python"] if args.world_size == 1 else ["the same launcher and"]
        words = [f"{THREADS_VARIABLE}={threads}", *words] if threads else words
        return f"{' '.join(words)} {script}"
    words = _words_of_parent(script) or _words_by_variables(args, is_accelerate)
    if is_accelerate and threads not in ("", "1") and not _names_threads(words):
        words += ["--num_cpu_threads_per_process", threads]
    elif not is_accelerate and threads not in ("", "1"):
        words = [f"{THREADS_VARIABLE}={threads}", *words]
    return f"{shlex.join(words)} {script}"


def _words_by_variables(args: TrainingArguments, is_accelerate: bool) -> list[str]:
    if is_accelerate:
        return ["accelerate", "launch", "--quiet"] + _several("--num_processes", args.world_size)
    return ["torchrun"] + _several("--nproc_per_node", int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size)))


def _several(option: str, number: int) -> list[str]:
    return [option, str(number)] if number > 1 else []


def _names_threads(words: list[str]) -> bool:
    return any(word.lstrip("-").replace("-", "_").startswith("num_cpu_threads_per_process") for word in words)


def _words_of_parent(script: str) -> list[str]:
    """The launcher's words before the script, without the folders of its programs; none where nobody tells them."""
    name = script.split()[-1]
    places = [place for place, word in enumerate(_parents_words) if Path(word).name == name]
    words = _parents_words[: places[0]] if places else []
    words = words[:-1] if words[-1:] in (["-m"], ["--module"]) else words
    names = [Path(word).name for word in words[:2]]
    if names[1:] in (["accelerate"], ["torchrun"]):  # an interpreter runs an installed script
        return [names[1], *words[2:]]
    if names[:1] in (["accelerate"], ["torchrun"]):
        return [names[0], *words[1:]]
    return ["python", *words[1:]] if words[1:2] == ["-m"] else []
