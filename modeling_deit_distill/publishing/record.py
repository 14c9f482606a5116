"""What a run was, for its summary and its card: facts in words, the command, the versions, the machine."""

import json
import math
import platform
import shlex
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset

from ..arguments import DataArguments, DistillationTrainingArguments, ModelArguments, said_arguments, without_tokens
from ..conversion.checkpoint import Checkpoint
from ..conversion.reading import timm_repository
from ..data.sources import ImageData
from ..files import without_folders, write_json
from ..modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification
from ..precision import precision_in_words
from ..student import what_is_kept
from ..teachers.labelling import planned_views
from ..training.schedule import schedule_in_words

RECORD = "run.json"
# Arguments that change nothing about what a run makes.
NO_MATTER = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "dry_run")
LIBRARIES = ("modeling-deit-distill", "torch", "torchvision", "transformers", "datasets", "accelerate", "timm")


def write_run_record(
    output_dir: str | Path,
    facts: dict[str, str],
    arguments: list[str],
    parsed: tuple[ModelArguments, DataArguments, DistillationTrainingArguments],
    name: str,
    known_folders: Sequence[str] = (),
) -> Path:
    """Keep in `run.json` what the card tells of how the model was made; no token, no folder of this machine.

    Args:
        facts: as of [`run_facts`].
        arguments: the command line.
        parsed: what [`arguments.parse_arguments`] made of it.
        name: the model's: that of its repository, else of its folder.
        known_folders: folders besides the arguments' that `facts` may name.
    """
    model_args, data_args, args = parsed
    sources = (model_args.model_name_or_path, model_args.teacher_name_or_path, args.teacher_store)
    folders = [*sources, *known_folders, data_args.dataset_name, data_args.train_dir, data_args.validation_dir]
    record = {
        "name": name,
        "facts": {key: _without(folders, text) for key, text in facts.items() if key not in ("device", "output")},
        "command": command(arguments, args),
        "recipe": without_folders(said_arguments(arguments)),
        "versions": versions(),
        "hardware": hardware(args),
        "finished": date.today().isoformat(),
        "base_model": base_model(model_args.model_name_or_path),
        "teacher": hub_id(model_args.teacher_name_or_path) if args.distillation_type != "none" else None,
        "dataset": {key: value and _without(folders, value) for key, value in dataset(data_args, facts).items()},
        "native": args.push_native,
        "revision": args.hub_revision if args.push_to_hub else None,
    }
    return write_json(Path(output_dir, RECORD), record)


def note_repository(output_dir: str | Path, name: str, native: bool, revision: str | None = None):
    """Note where a run is pushed to; of a run without a record, a library user's, this and what it ran on.

    A native export that the same repository has already stays noted.
    """
    path = Path(output_dir, RECORD)
    record = json.loads(path.read_text()) if path.exists() else {"versions": versions()}
    native = native or bool(record.get("native") and record.get("name") == name)
    write_json(path, {**record, "name": name, "native": native, "revision": revision})


def changed_arguments(output_dir: str | Path, arguments: list[str]) -> list[str]:
    """What a command says otherwise than the run in a folder did, by name; what is about pushing does not count."""
    path = Path(output_dir, RECORD)
    earlier = json.loads(path.read_text()).get("recipe") if path.exists() else None
    if earlier is None:
        return []
    now = without_folders(said_arguments(arguments))
    names = [name for name in {**earlier, **now} if not name.startswith(("hub_", "push_")) and name not in NO_MATTER]
    return sorted(name for name in names if str(earlier.get(name)) != str(now.get(name)))


def command(arguments: list[str], args: DistillationTrainingArguments) -> str:
    """The command that does it again, tokens and folders of this machine left out."""
    launcher = "accelerate launch"
    if args.world_size > 1:
        launcher += f" --num_processes {args.world_size}"
    return f"{launcher} train_deit.py {shlex.join(map(_without_folder, without_tokens(arguments)))}"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide what comes out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except ImportError:  # run from its folder, without being installed
            continue
    return found


def hardware(args: DistillationTrainingArguments) -> str:
    """The devices in words."""
    if args.device.type == "cuda":
        return f"{args.world_size} × {torch.cuda.get_device_name(args.device)}"
    return f"CPU ({platform.machine()}), {args.world_size} process(es) of {torch.get_num_threads()} thread(s)"


def hub_id(name_or_path: str | None) -> str | None:
    """A name if it is one on the Hub: `owner/name`, and nothing on this machine."""
    if name_or_path is None or Path(name_or_path).exists() or name_or_path.count("/") != 1:
        return None
    return name_or_path if not name_or_path.startswith((".", "/", "~")) else None


def base_model(name_or_path: str | None) -> str | None:
    """The Hub's name of what the student started from; of a name of timm's, that of the repository it stands for."""
    if name_or_path is None or "/" in name_or_path or Path(name_or_path).exists():
        return hub_id(name_or_path)
    return timm_repository(name_or_path)


def dataset(data_args: DataArguments, facts: dict[str, str]) -> dict[str, str | None]:
    """What it was trained and evaluated on."""
    identity = hub_id(data_args.dataset_name)
    name = data_args.dataset_name or data_args.train_dir
    return {"name": identity or Path(name).name, "id": identity, "split": facts["held out"]}


def _without_folder(word: str) -> str:
    key, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    # A relative path of a recipe says where it lies in the project.
    is_kept = value.endswith((".yaml", ".yml")) and not Path(value).expanduser().is_absolute()
    return key + equals + (value if is_kept else without_folders(value))


def _without(folders: list[str | None], text: str) -> str:
    for folder in folders:
        if folder is not None:
            text = text.replace(folder, without_folders(folder))
    return text


def run_facts(
    model_args: ModelArguments,
    args: DistillationTrainingArguments,
    data: ImageData,
    config: DeiTDistillConfig,
    start: Checkpoint | None,
    teacher_config,
    views,
    store,
) -> dict[str, str]:
    """What will run, in words: for the summary and the card."""
    with torch.device("meta"):
        num_parameters = DeiTDistillForImageClassification(config).num_parameters()
    tokens = "class and distillation token" if config.use_distillation_token else "class token"
    rate = f"{args.learning_rate:g}"
    if args.base_learning_rate is not None:
        rate += f" ({args.base_learning_rate:g} × {args.effective_batch_size} / 512)"
    length = f"{args.max_steps:,} steps" if args.max_steps > 0 else _epochs(args.num_train_epochs)
    num_images = f"{len(data.train):,}" if isinstance(data.train, Dataset) else "a stream of"
    names = ", ".join(data.class_names[:10]) + (", ..." if len(data.class_names) > 10 else "")
    return {
        "data": f"{data.source}: {num_images} images",
        "held out": f"{len(data.validation):,} images, {data.validation_source}",
        "classes": f"{len(data.class_names)}: {names}",
        "teacher": teacher_in_words(model_args, args, teacher_config, store),
        "student": f"DeiT, hidden {config.hidden_size}, {config.num_hidden_layers} layers, "
        f"{config.num_attention_heads} heads, {tokens}, patch {config.patch_size} of {config.image_size} pixels",
        **({} if start is None else {"starts from": f"{model_args.model_name_or_path}: {what_is_kept(start, config)}"}),
        "parameters": f"{num_parameters:,}",
        "distillation": distillation_in_words(args),
        **store_in_words(args, views, store),
        "effective batch": f"{args.effective_batch_size} ({args.per_device_train_batch_size} per device, "
        f"{args.gradient_accumulation_steps} accumulation step(s), {args.world_size} process(es))",
        "learning rate": f"{rate}, {schedule_in_words(args)}",
        **average_in_words(args),
        **code_in_words(args, config),
        "length": length,
        "precision": precision_in_words(args.precision, args.device.type, args.bf16_is_automatic),
        "device": str(args.device),
        "output": str(args.output_dir),
    }


def teacher_in_words(model_args: ModelArguments, args: DistillationTrainingArguments, teacher_config, store) -> str:
    """The teacher, how it comes to be, and where its answers are kept."""
    if args.distillation_type == "none":
        return "none"
    if teacher_config is None:
        name = str(store.about.get("teacher"))
    else:
        name = model_args.teacher_name_or_path or f"a new {teacher_config.model_type}"
        if model_args.train_teacher:
            epochs = _epochs(model_args.teacher_num_train_epochs)
            name += f", trained first for {epochs} (or found in the output folder)"
    return name


def _epochs(number: float) -> str:
    return f"{number:g} epoch" + "s" * (number != 1)


def store_in_words(args: DistillationTrainingArguments, views, store) -> dict[str, str]:
    """How much of this run the teacher's store knows already."""
    if args.teacher_store is None or args.distillation_type == "none":
        return {}
    if store is None:
        return {"teacher's store": f"{args.teacher_store}, new"}
    planned = planned_views(args, views)
    missing, total = sum(store.missing(planned).values()), sum(planned.values())
    known = f"all {total:,} views known, no teacher is loaded or trained"
    if missing:
        known = f"{total - missing:,} of {total:,} views known, the teacher is asked about the others"
    return {"teacher's store": f"{args.teacher_store}, {known}"}


def code_in_words(args: DistillationTrainingArguments, config: DeiTDistillConfig) -> dict[str, str]:
    """What is done as the public code does it, if so asked."""
    words = ["learning-rate schedule"]
    if args.distillation_type == "soft":
        words.append("divergence also divided by the classes")
    if config.use_distillation_token:
        words.append("distillation token decayed")
    return {"as the public code": ", ".join(words)} if args.code_compatible else {}


def average_in_words(args: DistillationTrainingArguments) -> dict[str, str]:
    """The moving average of the weights, if there is one."""
    decay = args.weight_average_decay
    if decay is None:
        return {}
    half_life = math.log(0.5) / math.log(decay)
    return {"average of weights": f"decay {decay:.8g} a step (half-life {half_life:,.0f} steps), kept if it is better"}


def distillation_in_words(args: DistillationTrainingArguments) -> str:
    """The objective with its figures."""
    words = {
        "none": "none: labels alone",
        "soft": f"soft, weight {args.distillation_alpha:g}, temperature {args.distillation_temperature:g}",
        "hard": f"hard, weight {args.distillation_alpha:g}",
    }
    return words[args.distillation_type]
