"""Checkpoints: which one a run goes on from, whether it fits, and when a folder becomes one.

What makes a checkpoint whole is in `output_folder.py`. Trainer writes the files; `complete.json`, written in the event
`on_save`, is the commit.
"""

import contextlib
import dataclasses
import json
import logging
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, TrainerCallback

from ..arguments import DistillationTrainingArguments
from ..augmentation.augment import AUGMENTATION_VERSION
from ..data.views import with_current_names
from ..errors import InputError, one_line
from ..files import write_json
from ..hardware import hardware_going_on
from ..output_folder import (
    STATE,
    agreed_in,
    begin_checkpoint,
    best_in,
    checkpoint_folder,
    commit_checkpoint,
    damage,
    disk_errors_explained,
    is_checkpoint,
    last_complete,
    list_checkpoints,
    remove_old_checkpoints,
    remove_unfinished_checkpoints,
    step_of,
    unfinished_checkpoints,
)
from ..report import say
from ..teachers.identity import FIELD, teacher_going_on
from .early_stopping import has_stopped
from .objective import weights_of_classes

logger = logging.getLogger(__name__)

# Arguments that a run and the checkpoint that it goes on from must agree about. Batch and seed decide which views come
# next. The optimiser's settings come back with its state, so that another value would be ignored without a word.
# The objective and the schedule cannot change in the middle: the card would claim the last for the whole run.
AGREED_ARGUMENTS = (
    "effective_batch_size",
    "seed",
    "repeated_augmentation",
    "balanced_views",
    "view_epochs",
    "learning_rate",
    "weight_decay",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_epochs",
    "warmup_steps",
    "warmup_learning_rate",
    "min_learning_rate",
    "code_compatible",
    "distillation_type",
    "distillation_alpha",
    "distillation_temperature",
    "label_smoothing_factor",
    "freeze_blocks",
    "layer_decay",
    "bf16",  # the default depends on the machine
    "fp16",
)
# What checkpoints of earlier versions did without and do not mention.
NOT_THERE_BEFORE = {"class_weights": None, "freeze_blocks": None, "layer_decay": None, "view_epochs": 0}
NOT_THERE_BEFORE |= {"num_unlabelled": 0, "augmentation_version": 1}
# What a configuration says of the library and of the machine, not of the model.
NOT_OF_THE_MODEL = ("transformers_version", "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype")


def agreement(args: DistillationTrainingArguments, dataset: Dataset, config: PreTrainedConfig) -> dict[str, object]:
    """What a run and the checkpoint that it goes on from must agree about, besides the model's configuration.

    Only the length of a run may change, which the trainer says. Of a stream the number of processes decides too which
    views come next.
    """
    is_stream = not hasattr(dataset, "__len__")
    settings = getattr(dataset, "settings", None)
    values = {name: getattr(args, name) for name in AGREED_ARGUMENTS}
    agreed = {
        **({} if settings is None else dataclasses.asdict(settings)),
        **({"processes": args.world_size} if is_stream else {}),
        **{name: getattr(value, "value", value) for name, value in values.items()},
        "lr_scheduler_kwargs": args.lr_scheduler_kwargs or None,
        # The trainer writes there what the epochs of warm-up are in steps.
        "warmup_steps": None if args.warmup_epochs > 0 else args.warmup_steps,
        "data_seed": getattr(dataset, "seed", args.data_seed),
        "num_unlabelled": getattr(dataset, "num_unlabelled", 0),
        "num_images": None if is_stream else len(dataset),
        "ema_decay": args.weight_average_decay,
        # Themselves, since a file may change or move.
        "class_weights": weights_of_classes(args, dataset, config),
        # Last: where a setting differs too, that one is named.
        **({} if settings is None else {"augmentation_version": AUGMENTATION_VERSION}),
    }
    return json.loads(json.dumps(agreed))  # as it is read back


class Checkpoints(TrainerCallback):
    """The checkpoints of a training: the one to resume from, and each that Trainer writes.

    A kill while one is written leaves a folder that the next start removes. Earlier ones beyond `save_total_limit` go
    after a new one is whole, never before; those of an earlier training in the same folder first. A checkpoint names
    the best one without its folder, since a run may move.

    Args:
        args: the [`DistillationTrainingArguments`].
    """

    def __init__(self, args):
        self.limit = args.save_total_limit  # None for all
        self.resumed: Path | None = None
        self._resumed_step: int | None = None
        self._planned_steps: int | None = None  # of the run that made the checkpoint to resume from
        self._has_stopped = False  # early
        self._agreed: dict[str, object] = {}
        self._teacher: list[dict[str, object]] | None = None  # see `teacher_identity`
        self._hardware: dict[str, str] = {}
        self._earlier: set[Path] = set()  # of a training that this one does not go on from

    def open(
        self, wanted: str | bool | None, args, dataset: Dataset, model, is_sharded: bool, teacher: nn.Module | None
    ) -> str | None:
        """The checkpoint to resume from, checked; called by all processes before training.

        Args:
            wanted: a checkpoint's folder, or True for the last complete one; None to start from the beginning.
            args, dataset, model: of the run.
            is_sharded: whether the run trains with FSDP.
            teacher: the live one, if there is one.

        Raises:
            InputError: no such checkpoint, or one of another run.
        """
        self.limit = args.save_total_limit
        if wanted and not means_the_last(wanted):
            check_whole(wanted)  # while an unfinished one is still there to be named
        if args.should_save:
            remove_unfinished_checkpoints(args.output_dir, goes_on=bool(wanted))
        PartialState().wait_for_everyone()
        self.resumed = self._resumed_step = self._planned_steps = None
        self._has_stopped = False
        self._agreed = agreement(args, dataset, model.config)
        if not wanted:
            self._hardware = hardware_going_on(None, args)
            self._teacher = teacher_going_on(None, teacher) if args.should_save else None
            self._note_earlier(args)
            return None
        checkpoint = _resolve(wanted, args.output_dir)
        check_fits(checkpoint, self._agreed, model.config)
        check_sharding(checkpoint, is_sharded)
        self._teacher = teacher_going_on(checkpoint, teacher)
        state = json.loads((checkpoint / STATE).read_text())
        self.resumed, self._resumed_step = checkpoint, state["global_step"]
        self._planned_steps = state.get("max_steps")
        self._hardware = hardware_going_on(checkpoint, args)
        self._note_earlier(args)
        self._has_stopped = has_stopped(state.get("log_history", []), args)
        return str(checkpoint)

    def _note_earlier(self, args):
        after = -1 if self._resumed_step is None else self._resumed_step
        self._earlier = {path for path in list_checkpoints(args.output_dir) if step_of(path) > after}
        if self._earlier and args.should_save:
            last = max(self._earlier, key=step_of).name
            logger.warning(
                f"{args.output_dir} holds {len(self._earlier)} checkpoint(s) of an earlier training, up to {last}: "
                "save_total_limit removes them first, and resume_from_checkpoint true would go on from the highest step"
            )

    def begin(self, folder: str | None, args):
        """Called by all processes before Trainer saves a model into a folder, which may be a checkpoint's."""
        if folder is None or not is_checkpoint(folder, args.output_dir):
            return
        if args.should_save:
            begin_checkpoint(Path(folder))
        PartialState().wait_for_everyone()

    def epochs_left(self, num_epochs: int, num_steps: int) -> int:
        """How many epochs to train; none where the resumed run is over, and Trainer would take one more step.

        Raises:
            InputError: the checkpoint's step is beyond the run's last.
        """
        if self._resumed_step is None:
            return num_epochs
        if self._planned_steps not in (None, num_steps) and PartialState().is_main_process:
            logger.warning(
                f"the checkpoint's run was to take {self._planned_steps:,} steps, this one takes {num_steps:,}: from "
                "here on the learning rate is that of the new length"
            )
        if self._resumed_step > num_steps:
            raise InputError(
                f"the checkpoint to resume from is of step {self._resumed_step:,}, this run ends at {num_steps:,}; "
                "resume from an earlier one, or train as long"
            )
        if self._has_stopped and PartialState().is_main_process:
            logger.warning(
                f"the run stopped early at step {self._resumed_step:,}, so nothing is left to train; a larger "
                "--early_stopping_patience, or none, goes on"
            )
        return num_epochs if self._resumed_step < num_steps and not self._has_stopped else 0

    def on_train_begin(self, args, state, control, **kwargs):
        """Count fractions of the run in steps again, and find the best checkpoint so far in this run's output folder.

        It may be older than the best evaluation, which a run that saves more rarely than it evaluates has no
        checkpoint of. Checkpoints of earlier versions name none, but their states the evaluation's step.

        Raises:
            InputError: `load_best_model_at_end`, and the best checkpoint is not in the output folder.
        """
        if self._resumed_step is None:
            return
        for name, fraction in _fractions(args).items():
            setattr(state, name, math.ceil(fraction * state.max_steps))
        if not state.best_global_step:
            return
        named = best_in(self.resumed)
        best = Path(args.output_dir, named or checkpoint_folder("", state.best_global_step).name)
        if best.is_dir():
            state.best_model_checkpoint = str(best)
        elif named and args.load_best_model_at_end:
            raise InputError(
                f"load_best_model_at_end: {best.name}, the best so far, is not in {args.output_dir}; bring it there, "
                "or add --load_best_model_at_end false"
            )

    def on_save(self, args, state, control, model=None, **kwargs):
        """Commit the checkpoint, then remove the oldest beyond the limit."""
        PartialState().wait_for_everyone()  # each process has written its share
        if not args.should_save:
            return
        checkpoint = checkpoint_folder(args.output_dir, state.global_step)
        # Fractions of the run as they were given, so that Trainer sees no difference when it resumes.
        noted = {**json.loads((checkpoint / STATE).read_text()), **_fractions(args), "best_model_checkpoint": None}
        write_json(checkpoint / STATE, noted)
        if not (checkpoint / "config.json").exists():  # FSDP's shards come without
            model.config.save_pretrained(checkpoint)
        commit_checkpoint(checkpoint, {**self._agreed, FIELD: self._teacher}, _best(state), self._hardware)
        self._earlier.discard(checkpoint)
        remove_old_checkpoints(args.output_dir, self.limit, {checkpoint, _best(state) or checkpoint}, self._earlier)

    def end(self, args, state):
        """After training: of one checkpoint to keep, keep the best, as Trainer does."""
        if args.should_save and self.limit == 1 and (best := _best(state)) is not None:
            remove_old_checkpoints(args.output_dir, 1, {best})

    @contextlib.contextmanager
    def errors_explained(self, args) -> Iterator[None]:
        """Around training: what fails while a checkpoint is written is removed, and a full disk gets one clear line.

        Raises:
            InputError: a checkpoint holds a pickle that is more than numbers.
            LocalInputError: the disk is full; the earlier checkpoints are intact.
        """
        try:
            with args.done_by_callbacks():
                yield
        except pickle.UnpicklingError as error:
            raise InputError(
                f"{self.resumed} holds a pickle with more than numbers in it, which is not loaded "
                f"({one_line(error)[:120]}); resume from a checkpoint that you trust"
            ) from error
        except BaseException as error:
            unfinished = unfinished_checkpoints(args.output_dir)
            if not unfinished:
                raise
            if args.should_save:
                remove_unfinished_checkpoints(args.output_dir)
            with disk_errors_explained(args.output_dir, unfinished[-1].name):
                raise error


def find_checkpoint(args: DistillationTrainingArguments) -> str | None:
    """The checkpoint to resume from, or None to start from the beginning; nothing of an earlier run goes unnoticed.

    The main process looks and says what it found; all processes get its answer.

    Raises:
        InputError: checkpoints of an unfinished run that nobody mentioned, or a damaged one that was asked for.
    """
    return as_the_main_process(args, lambda: _find_checkpoint(args))


def as_the_main_process(args: DistillationTrainingArguments, decide: Callable[[], object]) -> object:
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


def check_fits(checkpoint: str | Path | None, agreed: dict[str, object], config: PreTrainedConfig):
    """Refuse to go on from a checkpoint of another model, or of a run that saw other views.

    Another number of processes is no obstacle, as long as the effective batch is the same.

    Args:
        checkpoint: its folder; None if the run starts from the beginning.
        agreed: see [`agreement`].
        config: the student's.

    Raises:
        InputError: the first difference, with both values and the remedy.
    """
    if checkpoint is None:
        return
    theirs = _of_the_model(type(config).from_pretrained(checkpoint)) | NOT_THERE_BEFORE
    theirs |= with_current_names(agreed_in(Path(checkpoint)))
    for field, value in {**_of_the_model(config), **agreed}.items():
        if field in theirs and theirs[field] != value:
            remedy = "give the same to go on"
            if field == "augmentation_version":
                remedy = "go on with the version of this library that made it"
            raise InputError(
                f"{checkpoint} was made with {field} {_short(theirs[field])}, this run has {_short(value)}; {remedy}, "
                "or --overwrite_output_dir true without --resume_from_checkpoint, or another --output_dir, to start "
                "again"
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


def _resolve(wanted: str | bool, output_dir: str) -> Path:
    if not means_the_last(wanted):
        check_whole(wanted)
        return Path(wanted)
    found, _ = last_complete(output_dir)
    if found is None:
        raise InputError(f"there is no complete checkpoint in {output_dir}; leave out resuming to start")
    return found


def _fractions(args) -> dict[str, float]:
    """Those of Trainer's intervals that are fractions of the run."""
    intervals = {name: getattr(args, name) for name in ("logging_steps", "eval_steps", "save_steps")}
    return {name: interval for name, interval in intervals.items() if interval and interval < 1}


def _best(state) -> Path | None:
    return None if state.best_model_checkpoint is None else Path(state.best_model_checkpoint)


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
        remove_unfinished_checkpoints(args.output_dir)
    if not means_the_last(wanted):
        check_whole(wanted)
        _check_alone(wanted, args.output_dir)
        return wanted
    found, passed_over = last_complete(args.output_dir)
    for checkpoint, words in passed_over.items():
        say(args, f"passing over {checkpoint}: {words}")
    if found is None:
        what = "no complete checkpoint" if passed_over else "no checkpoint"
        say(args, f"{what} of the student in {args.output_dir} yet: its training starts from the beginning")
        return None
    say(args, f"resuming from {found}")
    return str(found)


def _check_alone(checkpoint: str, output_dir: str):
    step = json.loads(Path(checkpoint, STATE).read_text())["global_step"]
    later = [path.name for path in list_checkpoints(output_dir) if step_of(path) > step]
    if later:
        raise InputError(
            f"resume_from_checkpoint {checkpoint!r} is of step {step}, but {output_dir!r} holds {later[-1]}, "
            "which a later start would take for this run's; remove it, or choose another --output_dir"
        )


def _of_the_model(config: PreTrainedConfig) -> dict[str, object]:
    return {key: value for key, value in config.to_dict().items() if key not in NOT_OF_THE_MODEL}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:70]}..."
