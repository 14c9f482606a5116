"""What a run was, for its card: its summary, the command, the versions, the machine."""

import contextlib
import os
import platform
import re
import shlex
from collections.abc import Collection, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from ..arguments import COPIES, DistillationTrainingArguments
from ..conversion.reading import timm_repository
from ..data.columns import has_heic
from ..errors import InputError
from ..files import without_folders, write_json
from ..hardware import hardware
from ..launcher import program
from ..output_folder import RUN_RECORD, STATE, read_run_file
from ..recipes import said_arguments, without_arguments, without_tokens

# Arguments that change nothing about the model that a run makes; many others are about reports or the Hub.
NO_MATTER = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "dry_run", "license")
NO_MATTER += ("do_train", "do_eval", "do_predict")  # without training nothing is compared; a run always evaluates
NO_MATTER += ("report_to", "run_name", "project", "disable_tqdm", "skip_memory_metrics")
# What a run stops at; one that is finished did not. And what is kept in memory or on the disk meanwhile.
NO_MATTER += ("on_bad_image", "max_bad_image_fraction", "max_nonfinite_steps", "allow_weak_teacher", "ddp_timeout")
NO_MATTER += ("keep_decoded_images", "torch_empty_cache_steps", "save_total_limit", "save_on_each_node")
NO_MATTER_BY_PREFIX = ("hub_", "push_", "log_", "trackio_")
TASK = "image-classification"
DATA_FOLDERS = ("dataset_name", "train_dir", "validation_dir", "unlabeled_dir")
DATA_TABLES = ("train_csv", "validation_csv")
SPLIT = re.compile(r"(train|training|val|valid|validation|dev|eval|test|testing)(?![a-z])", re.IGNORECASE)
LIBRARIES = ("modeling-deit-distill", "torch", "torchvision", "transformers", "datasets", "accelerate", "timm")


def write_run_record(plan, name: str | None = None) -> Path:
    """Keep in `run.json` what the card tells of how the model was made; no token, no folder of this machine.

    `name` is the model's repository; without one it is called by its folder.
    """
    model_args, data_args, args, summary = plan.model_args, plan.data_args, plan.args, plan.summary()
    teachers = plan.teacher_names
    folders = [model_args.model_name_or_path, *model_args.teacher_names, args.teacher_store]
    shown = {folder: without_folders(folder) for folder in folders if folder is not None} | names_apart(teachers)
    shown |= {path: _shown(key, path) for key in (*DATA_FOLDERS, *DATA_TABLES) if (path := getattr(data_args, key))}
    source = data_args.train_dir or data_args.train_csv or data_args.dataset_name
    dataset, parts = hub_id(data_args.dataset_name), _earlier_parts(args)
    splits = (plan.data.train, plan.data.validation, plan.data.unlabelled)
    # It goes on where an interrupted run was; only an extension is another command.
    words = plan.command_line if parts else without_arguments(plan.command_line, {"resume_from_checkpoint"})
    record = {
        "name": name or Path(args.output_dir).resolve().name,
        **({} if name else {"path": path_as_given(args.output_dir)}),
        **({"heic": True} if any(has_heic(rows) for rows in splits if rows is not None) else {}),
        "facts": {key: _renamed(shown, text) for key, text in summary.items() if key not in ("device", "output")},
        "command": command(words, args),
        "recipe": _said(words),
        "versions": versions(),
        "hardware": hardware(args),
        "hardware_by_step": plan.hardware,
        "finished": date.today().isoformat(),
        "base_model": base_model(model_args.model_name_or_path),
        "teacher": _one_or_all(list(filter(None, map(hub_id, model_args.teacher_names)))) if plan.distils else None,
        **({"teachers": [shown[name] for name in teachers]} if len(teachers) > 1 else {}),
        "dataset": {
            "name": shown[source],
            "id": dataset,
            "split": _renamed(shown, summary["held out"]),
        },
        **{copy: copy in args.copies for copy in COPIES},
        "revision": args.hub_revision if args.push_to_hub else None,
        **({"card": {"license": args.license}} if args.license else {}),
        **parts,
    }
    return write_json(Path(args.output_dir, RUN_RECORD), record)


# What the record tells of each part of a run that was extended, beside its results and how many steps it had.
TOLD_OF_A_PART = ("command", "finished", "versions", "hardware")


def note_part(output_dir: str | Path, results: dict[str, object]):
    """Note what a finished run was, before it is extended: under `parts`, the first part first."""
    path = Path(output_dir, RUN_RECORD)
    record, state = read_run_file(path), read_run_file(Path(output_dir, STATE))
    part = {name: record[name] for name in TOLD_OF_A_PART if name in record}
    part |= {"length": (record.get("facts") or {}).get("length"), "steps": state.get("global_step"), "results": results}
    write_json(path, {**record, "parts": [*record.get("parts", []), part]})


def _earlier_parts(args: DistillationTrainingArguments) -> dict[str, list]:
    parts = read_run_file(Path(args.output_dir, RUN_RECORD)).get("parts") if args.resume_from_checkpoint else None
    return {"parts": parts} if parts else {}


def note_repository(output_dir: str | Path, name: str, copies: Collection[str] = (), revision: str | None = None):
    """Note where a run is pushed to; of a run without a record, a library user's, this and what it ran on.

    Copies that the same repository has already stay noted.

    Args:
        output_dir: the run's folder.
        name: of the repository.
        copies: what is pushed besides the model, of `COPIES`.
        revision: the branch that the model goes to, if not the main one.
    """
    path = Path(output_dir, RUN_RECORD)
    record = read_run_file(path) or {"versions": versions()}
    record.pop("path", None)
    had = {copy for copy in COPIES if record.get(copy) and record.get("name") == name}
    noted = {copy: copy in had or copy in copies for copy in COPIES}
    write_json(path, {**record, "name": name, **noted, "revision": revision})


def note_exports(output_dir: str | Path, files: list[dict]):
    """Note the files of an export for browsers, as its `export.json` has them."""
    path = Path(output_dir, RUN_RECORD)
    write_json(path, {**read_run_file(path), "exports": files})


def note_words(output_dir: str | Path, words: dict[str, object]):
    """Note what a program says for the card: the arguments of `Trainer.create_model_card`, by name.

    Raises:
        InputError: a task other than image classification, or `dataset_args`, which the card has no place for.
    """
    said = {name: value for name, value in words.items() if value is not None}
    if not said:
        return
    if said.pop("tasks", TASK) not in (TASK, [TASK]):
        raise InputError(f"tasks is {words['tasks']!r}; the model's task is {TASK!r}: leave it out")
    if "dataset_args" in said:
        raise InputError("dataset_args has no place in our card; leave it out, and say it in dataset")
    path = Path(output_dir, RUN_RECORD)
    record = read_run_file(path) or {"versions": versions()}
    write_json(path, {**record, "card": {**record.get("card", {}), **said}})


def changed_arguments(output_dir: str | Path, arguments: list[str]) -> list[str]:
    """What a command says otherwise than the run in a folder did, by name; see `NO_MATTER` for what does not count."""
    earlier = read_run_file(Path(output_dir, RUN_RECORD)).get("recipe")
    if earlier is None:
        return []
    now = _said(arguments)
    differing = [name for name in {**earlier, **now} if str(earlier.get(name)) != str(now.get(name))]
    return sorted(name for name in differing if name not in NO_MATTER and not name.startswith(NO_MATTER_BY_PREFIX))


def command(arguments: list[str], args: DistillationTrainingArguments) -> str:
    """The command that does it again, as many threads included; tokens and folders of this machine are left out."""
    processes = f" --num_processes {args.world_size}" if args.world_size > 1 else ""
    threads = torch.get_num_threads() if args.device.type == "cpu" else 1  # the launcher's default
    processes += f" --num_cpu_threads_per_process {threads}" if threads > 1 else ""
    words = without_tokens(arguments)
    shown = (_without_folder(key, word) for key, word in zip(["", *words], words, strict=False))
    return f"accelerate launch --quiet{processes} {program()} {shlex.join(shown)}"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide what comes out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):  # run from its folder, without being installed
            found[name] = version(name)
    return found


def hub_id(name_or_path: str | None) -> str | None:
    """A name if it is one on the Hub: `owner/name`, and nothing on this machine."""
    if name_or_path is None or Path(name_or_path).exists() or name_or_path.count("/") != 1:
        return None
    return name_or_path if not name_or_path.startswith((".", "/", "~")) else None


def _one_or_all(values: list[str]) -> str | list[str] | None:
    return values if len(values) > 1 else next(iter(values), None)


def names_apart(names: Sequence[str]) -> dict[str, str]:
    """What is recorded of several names: of a folder of this machine the last part, or two where names share it."""
    shown = {name: without_folders(name) for name in names}
    alike = {name for name in names if list(shown.values()).count(shown[name]) > 1}
    return {name: path_in_set(name, is_table=True) if name in alike else short for name, short in shown.items()}


def base_model(name_or_path: str | None) -> str | None:
    """The Hub's name of what the student started from; of a name of timm's, that of the repository it stands for."""
    if name_or_path is None or "/" in name_or_path or Path(name_or_path).exists():
        return hub_id(name_or_path)
    return timm_repository(name_or_path)


def path_as_given(folder: str) -> str:
    """A relative path below the working folder as it was given, of any other the last part alone."""
    path = Path(folder)
    is_below = not path.is_absolute() and path.parts and not {"..", "~"} & set(path.parts)
    return path.as_posix() if is_below else Path(os.path.abspath(os.path.expanduser(folder))).name


def path_in_set(path: str, is_table: bool = False) -> str:
    """A folder or file of data by its path from the set's root: `clothing/train` of `/anywhere/clothing/train`.

    The root is the folder above one that is named as a split, and that of a table, to which its paths are relative; of
    any other it is the folder itself. A folder of somebody's home, or of the system, is not named.
    """
    whole = Path(os.path.abspath(os.path.expanduser(path)))
    root = whole.parent
    is_named = root.name and root != Path.home() and str(root.parent) not in ("/home", "/Users")
    has_root = is_named and (is_table or SPLIT.match(whole.name))
    return f"{root.name}/{whole.name}" if has_root else whole.name


def _shown(key: str, value: str) -> str:
    """What is recorded of an argument: of a folder of this machine its last part, of data the path in their set."""
    if key == "group_by":  # a regular expression may look like a path
        return value
    if key == "output_dir":
        return path_as_given(value)
    if (
        key in DATA_TABLES
        or key in DATA_FOLDERS
        and (key != "dataset_name" or os.path.exists(os.path.expanduser(value)))
    ):
        return path_in_set(value, key in DATA_TABLES)
    return without_folders(value)


def _said(arguments: list[str]) -> dict[str, object]:
    """What a command says, without folders of this machine."""
    said = said_arguments(arguments)
    return {
        key: _shown(key, value) if isinstance(value, str) else without_folders(value) for key, value in said.items()
    }


def _without_folder(key: str, word: str) -> str:
    """A word of a command, behind the word `key`."""
    if word.startswith("--"):
        key, equals, value = word.partition("=")
        return f"{key}={_shown(key.removeprefix('--'), value)}" if equals else word
    # A relative path of a recipe says where it lies in the project.
    is_recipe = word.endswith((".yaml", ".yml")) and not Path(word).expanduser().is_absolute()
    return word if is_recipe else _shown(key.removeprefix("--"), word)


def _renamed(shown: dict[str, str], text: str) -> str:
    """A text with other names for folders and files of this machine."""
    for path, name in sorted(shown.items(), key=lambda pair: -len(pair[0])):
        if os.path.isabs(os.path.expanduser(path)) or "/" in path:
            text = text.replace(path, name)
        elif text.startswith(f"{path}: "):  # the data by a short name, which may be a word of another text too
            text = name + text[len(path) :]
    return text
