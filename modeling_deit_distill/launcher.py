"""Who started this process: `accelerate launch`, `torchrun` or nobody, and the words that start it again."""

import os
import shlex
from pathlib import Path

from transformers import TrainingArguments

from .hardware import THREADS_VARIABLE

# `accelerate launch` sets it for each process, and nothing else does.
ACCELERATES_VARIABLE = "ACCELERATE_DYNAMO_USE_FULLGRAPH"
TORCHRUNS_VARIABLE = "TORCHELASTIC_RUN_ID"
COMMAND_LINE = "/proc/{}/cmdline"  # of a process, on Linux


def is_of_accelerate() -> bool:
    """Whether `accelerate launch` started this process."""
    return ACCELERATES_VARIABLE in os.environ


def launching(args: TrainingArguments, script: str = "train_deit.py") -> str:
    """The beginning of a command that starts a script as this run was started, up to the script's name.

    Where the system tells the launcher's command line, as Linux does, it has all of the launcher's arguments.
    """
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
    try:
        words = Path(COMMAND_LINE.format(os.getppid())).read_bytes().decode().rstrip("\0").split("\0")
    except (OSError, UnicodeDecodeError):
        return []
    places = [place for place, word in enumerate(words) if Path(word).name == script]
    words = words[: places[0]] if places else []
    names = [Path(word).name for word in words[:2]]
    if names[1:] in (["accelerate"], ["torchrun"]):  # an interpreter runs an installed script
        return [names[1], *words[2:]]
    if names[:1] in (["accelerate"], ["torchrun"]):
        return [names[0], *words[1:]]
    return ["python", *words[1:]] if words[1:2] == ["-m"] else []
