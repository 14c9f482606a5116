"""Checkpoints that are whole or not there: written beside, flushed, checked and renamed; found again and compared."""

import contextlib
import dataclasses
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch.utils.data import Dataset
from transformers import PreTrainedConfig

from ..arguments import DistillationTrainingArguments
from ..errors import InputError, LocalInputError, one_line
from ..report import say

MANIFEST = "complete.json"
PREFIX = "checkpoint-"
# What a kill may leave behind, and the next start removes: a checkpoint half written, one half removed.
SAVING, REMOVING = "_saving-", "_removing-"
# Not needed to resume, never read, and never pushed.
UNLISTED = (MANIFEST, "training_args.bin")
# What the optimiser is told besides learning rate and weight decay, or does to its gradients.
OF_THE_OPTIMISER = ("optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")
# What a configuration says of the library and of the machine, not of the model.
NOT_OF_THE_MODEL = ("transformers_version", "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype")


def facts_of(args: DistillationTrainingArguments, dataset: Dataset) -> dict[str, object]:
    """What a run and the checkpoint that it goes on from must agree about, besides the model's configuration.

    Batch, seeds, data and augmentation decide which views come next; of a stream the number of processes does too.
    What the optimiser is told (learning rate, weight decay, betas) comes back with its state, so that other values
    would be ignored without a word. What the objective or the schedule is cannot change in the middle: the card would
    claim the last for the whole run. Only its length may, which the trainer says.
    """
    is_stream = not hasattr(dataset, "__len__")
    settings = getattr(dataset, "settings", None)
    return {
        **({} if settings is None else json.loads(json.dumps(dataclasses.asdict(settings)))),
        **({"processes": args.world_size} if is_stream else {}),
        "effective_batch_size": args.effective_batch_size,
        "seed": args.seed,
        "data_seed": getattr(dataset, "seed", args.data_seed),
        "num_images": None if is_stream else len(dataset),
        "repeated_augmentation": args.repeated_augmentation,
        "learning_rate": args.learning_rate,
        "weight_decay": args.weight_decay,
        "optim": str(getattr(args.optim, "value", args.optim)),
        **{name: getattr(args, name) for name in OF_THE_OPTIMISER},
        "lr_scheduler_type": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "lr_scheduler_kwargs": args.lr_scheduler_kwargs or None,
        "warmup_epochs": args.warmup_epochs,
        # The trainer writes there what the epochs of warm-up are in steps.
        "warmup_steps": None if args.warmup_epochs > 0 else args.warmup_steps,
        "warmup_learning_rate": args.warmup_learning_rate,
        "min_learning_rate": args.min_learning_rate,
        "code_compatible": args.code_compatible,
        "distillation_type": args.distillation_type,
        "distillation_alpha": args.distillation_alpha,
        "distillation_temperature": args.distillation_temperature,
        "label_smoothing_factor": args.label_smoothing_factor,
        "ema_decay": args.weight_average_decay,
        "bf16": args.bf16,  # unless given, another machine may choose otherwise
        "fp16": args.fp16,
    }


def commit(saved: Path, checkpoint: Path, facts: dict[str, object]):
    """Make a folder that was just written a checkpoint: flush it, describe it, rename it.

    A kill before the renaming leaves no checkpoint, one after it a whole one. One of the same step is replaced; if
    the kill comes between, [`clear_leftovers`] completes it.

    Args:
        saved: in a folder of its own beside `checkpoint`, which is removed.
        checkpoint: the folder to be.
        facts: see [`facts_of`].
    """
    write_manifest(saved, facts)
    for folder in (*(path for path in saved.rglob("*") if path.is_dir()), saved, saved.parent):
        _flush(folder)
    if checkpoint.exists():
        checkpoint.rename(saved.parent / "replaced")
    saved.rename(checkpoint)
    _flush(checkpoint.parent)
    shutil.rmtree(saved.parent, ignore_errors=True)


def write_manifest(folder: Path, facts: dict[str, object]):
    """Flush every file and list them, with sizes and checksums, in `complete.json`; it comes last.

    CRC-32 finds what disks and half copies do to files, at a gigabyte a second (an optimiser's state and weights of
    DeiT-B are one). It is no protection from somebody who changes them on purpose; loading without code is
    (`weights_only`).
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "crc32": _checksum(path)}
        for path in paths
        if path.name not in UNLISTED
    }
    for path in paths:
        _flush(path)
    (folder / MANIFEST).write_text(json.dumps({"format": 1, "facts": facts, "files": files}, indent=2) + "\n")
    _flush(folder / MANIFEST)


def damage(checkpoint: Path, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint, in words; None if one can resume from it.

    One without `complete.json` (of an earlier version, or of another trainer) is taken if what is needed is there.

    Args:
        checkpoint: its folder.
        contents: compare checksums too, which reads every file.
    """
    if not checkpoint.is_dir():
        return "there is no such folder"
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return "trainer_state.json is missing or cut off"
    if not any(checkpoint.glob("optimizer*")):
        return "it has no optimiser's state"
    if not (checkpoint / MANIFEST).exists():
        missing = (name for name in ("model.safetensors", "config.json") if not (checkpoint / name).exists())
        return next((f"{name} is missing" for name in missing), None)
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        files, _ = manifest["files"], dict(manifest["facts"])
        found = (_file_damage(checkpoint / name, kept, contents) for name, kept in files.items())
        return next((words for words in found if words), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints of a run, whole or not, in the order of their steps."""
    found = [path for path in Path(output_dir).glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says."""
    return int(checkpoint.name.removeprefix(PREFIX))


def last_complete(output_dir: str | Path, contents: bool = True) -> tuple[Path | None, dict[Path, str]]:
    """The last checkpoint that is whole, and what is wrong with those after it; see [`damage`]."""
    passed_over = {}
    for checkpoint in reversed(list_checkpoints(output_dir)):
        words = damage(checkpoint, contents)
        if words is None:
            return checkpoint, passed_over
        passed_over[checkpoint] = words
    return None, passed_over


def find_checkpoint(args: DistillationTrainingArguments) -> str | None:
    """The checkpoint to resume from, or None to start from the beginning; nothing of an earlier run goes unnoticed.

    The main process looks and says what it found; all processes get its answer.

    Raises:
        InputError: checkpoints of an unfinished run that nobody mentioned, or a damaged one that was asked for.
    """
    return _as_the_main_process(args, lambda: _find_checkpoint(args))


def check_whole(checkpoint: str | Path):
    """Refuse a checkpoint that was named if it is damaged.

    Raises:
        InputError: with what is wrong, and the remedy.
    """
    words = damage(Path(checkpoint))
    if words is not None:
        raise InputError(
            f"resume_from_checkpoint {str(checkpoint)!r} is no complete checkpoint: {words}; give one, or true for the "
            "last"
        )


def check_fits(checkpoint: str | Path | None, facts: dict[str, object], config: PreTrainedConfig):
    """Refuse to go on from a checkpoint of another model, or of a run that saw other views.

    Another number of processes is no obstacle, as long as the effective batch is the same.

    Args:
        checkpoint: its folder; None if the run starts from the beginning.
        facts, config: of this run.

    Raises:
        InputError: the first difference, with both values and the remedy.
    """
    if checkpoint is None:
        return
    checkpoint = Path(checkpoint)
    theirs, ours = _model_facts(type(config).from_pretrained(checkpoint)), _model_facts(config)
    if (checkpoint / MANIFEST).exists():
        theirs, ours = theirs | json.loads((checkpoint / MANIFEST).read_text())["facts"], ours | facts
    for field, value in ours.items():
        if field in theirs and theirs[field] != value:
            raise InputError(
                f"{checkpoint} was made with {field} {_short(theirs[field])}, this run has {_short(value)}; give the "
                "same to go on, or --overwrite_output_dir true without --resume_from_checkpoint, or another "
                "--output_dir, to start again"
            )


def check_sharding(checkpoint: str | Path, is_sharded: bool):
    """Refuse to go on with FSDP from a checkpoint without it, or the other way round.

    The optimiser's state is kept in another file and under other names. How many processes share it does not matter.

    Args:
        checkpoint: its folder.
        is_sharded: whether this run trains with FSDP.

    Raises:
        InputError: with the remedy.
    """
    theirs, ours = ("without", "with") if is_sharded else ("with", "without")
    if Path(checkpoint, "optimizer.pt").exists() == is_sharded:
        raise InputError(
            f"{checkpoint} was made {theirs} FSDP, this run is launched {ours} it, and the optimiser's states differ; "
            f"launch it {theirs} FSDP to go on, or start anew from its weights with --model_name_or_path {checkpoint}"
        )


def means_the_last(wanted: str | bool) -> bool:
    """Whether `resume_from_checkpoint` names no checkpoint but asks for the last one."""
    return str(wanted).lower() in ("true", "yes")


def rotate(output_dir: Path, limit: int | None, keep: set[Path]):
    """Remove checkpoints beyond `limit`: damaged ones first, then the oldest; never those to keep.

    Trainer's own goes by the time of modification, for which a damaged one may be the newest.
    """
    if limit is None or limit <= 0:
        return
    removable = [path for path in list_checkpoints(output_dir) if path not in keep]
    removable.sort(key=lambda path: (damage(path, contents=False) is None, step_of(path)))
    for checkpoint in removable[: max(len(removable) + len(keep) - limit, 0)]:
        remove(checkpoint)


def remove(checkpoint: Path):
    """Remove a checkpoint; renamed first, since half of one is never to be found."""
    removing = checkpoint.with_name(f"{REMOVING}{checkpoint.name}")
    shutil.rmtree(removing, ignore_errors=True)
    checkpoint.rename(removing)
    shutil.rmtree(removing, ignore_errors=True)


def clear_leftovers(output_dir: str | Path, goes_on: bool = True):
    """Remove what a kill left of a checkpoint.

    Args:
        output_dir: of the run.
        goes_on: one that was whole but not yet renamed becomes what it was to be; not of a run that starts again.
    """
    for saving in Path(output_dir).glob(f"{SAVING}*"):
        for saved in saving.glob(f"{PREFIX}*") if goes_on else ():
            place = saving.parent / saved.name
            if (saved / MANIFEST).exists() and not place.exists() and damage(saved) is None:
                saved.rename(place)
        shutil.rmtree(saving, ignore_errors=True)
    for removing in Path(output_dir).glob(f"{REMOVING}*"):
        shutil.rmtree(removing, ignore_errors=True)


@contextlib.contextmanager
def disk_errors_explained(output_dir: str | Path, what: str) -> Iterator[None]:
    """A full disk, and whatever else the disk refuses, as one line that names what is safe.

    Raises:
        LocalInputError: instead of what the libraries raise, each in its own words.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save's own words for what the disk refuses.
        is_torchs = "PytorchStreamWriter" in str(error) or "inline_container" in str(error)
        if isinstance(error, RuntimeError) and not is_torchs:
            raise
        kept = last_complete(output_dir, contents=False)[0]
        remedy = "there is no earlier checkpoint; make room, or choose another --output_dir"
        if kept is not None:
            remedy = f"{kept.name} is intact: make room, then go on with --resume_from_checkpoint true"
        words = f"{what} cannot be written to {output_dir}, whose disk may be full ({one_line(error)})"
        raise LocalInputError(f"{words}; {remedy}") from error


def _find_checkpoint(args: DistillationTrainingArguments) -> str | None:
    wanted, checkpoints = args.resume_from_checkpoint, list_checkpoints(args.output_dir)
    if wanted is None:
        if checkpoints and not args.overwrite_output_dir and not args.dry_run:
            raise InputError(
                f"output_dir {args.output_dir!r} holds {len(checkpoints)} checkpoint(s) of an unfinished run; add "
                "--resume_from_checkpoint true to go on, --overwrite_output_dir true to start again, or choose another"
            )
        return None
    if args.overwrite_output_dir:
        raise InputError(
            "resume_from_checkpoint goes on with the run in output_dir, overwrite_output_dir starts it again; keep one"
        )
    if not args.dry_run:
        clear_leftovers(args.output_dir)
    if not means_the_last(wanted):
        check_whole(wanted)
        _check_alone(wanted, args.output_dir)
        return wanted
    found, passed_over = last_complete(args.output_dir)
    for checkpoint, words in passed_over.items():
        say(args, f"passing over {checkpoint}: {words}")
    if found is None:
        what = "no complete checkpoint" if passed_over else "no checkpoint"
        say(args, f"{what} in {args.output_dir} yet: starting from the beginning")
        return None
    say(args, f"resuming from {found}")
    return str(found)


def _check_alone(checkpoint: str, output_dir: str):
    step = json.loads(Path(checkpoint, "trainer_state.json").read_text())["global_step"]
    later = [path.name for path in list_checkpoints(output_dir) if step_of(path) > step]
    if later:
        raise InputError(
            f"resume_from_checkpoint {checkpoint!r} is of step {step}, but {output_dir!r} holds {later[-1]}, "
            "which a later start would take for this run's; remove it, or choose another --output_dir"
        )


def _as_the_main_process(args: DistillationTrainingArguments, decide: Callable[[], object]) -> object:
    """What `decide` returns or raises on the main process, on all of them."""
    answer, error = None, None
    if args.process_index == 0:
        try:
            answer = decide()
        except InputError as raised:
            error = str(raised)
    answer, error = broadcast_object_list([answer, error])
    if error is not None:
        raise InputError(error)
    return answer


def _file_damage(path: Path, kept: dict, contents: bool) -> str | None:
    if not path.exists():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != kept["bytes"]:
        return f"{path.name} has {size:,} bytes instead of {kept['bytes']:,}"
    if contents and _checksum(path) != kept["crc32"]:
        return f"{path.name} has changed since it was written (checksum {_checksum(path)}, not {kept['crc32']})"
    return None


def _checksum(path: Path) -> str:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}"


def _flush(path: Path):
    """Until a file, or the names in a folder, are on the disk and not on their way to it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _model_facts(config: PreTrainedConfig) -> dict[str, object]:
    return {key: value for key, value in config.to_dict().items() if key not in NOT_OF_THE_MODEL}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:70]}..."
