"""A finished run that goes on: with more epochs or steps, or after an early stop with more patience."""

from pathlib import Path

from ..arguments import DistillationTrainingArguments
from ..errors import InputError
from ..output_folder import RESULTS, STATE, last_complete, read_run_file
from ..report import counted, say
from .checkpoints import as_the_main_process, means_the_last
from .early_stopping import has_stopped


def is_extended(args: DistillationTrainingArguments) -> bool:
    """Whether `output_dir` holds a finished run that is to go on to a greater length; says so.

    The main process looks; all processes get its answer.

    Raises:
        InputError: it left no checkpoint to go on from.
    """
    if args.overwrite_output_dir or args.dry_run or not args.resume_from_checkpoint:
        return False
    return as_the_main_process(args, lambda: _is_extended(args))


def holds_shorter_run(args: DistillationTrainingArguments) -> bool:
    """Whether `output_dir` holds a finished run that a resumed one would go on from."""
    state = read_run_file(Path(args.output_dir, STATE))
    is_finished = Path(args.output_dir, RESULTS).exists() and state.get("max_steps") and state.get("global_step")
    return bool(is_finished) and is_longer(state, args)


def _is_extended(args: DistillationTrainingArguments) -> bool:
    if not holds_shorter_run(args):
        return False
    state = read_run_file(Path(args.output_dir, STATE))
    checkpoint = last_complete(args.output_dir, contents=False)[0]
    if means_the_last(args.resume_from_checkpoint) and checkpoint is None:
        raise InputError(
            f"the finished run in output_dir {args.output_dir!r} left no whole checkpoint to go on from; start from "
            f"its weights (--model_name_or_path {args.output_dir}, another --output_dir), or train it again "
            "(--overwrite_output_dir true without --resume_from_checkpoint)"
        )
    taken = counted(state["global_step"], "step")
    length = counted(args.max_steps, "step") if args.max_steps > 0 else counted(args.num_train_epochs, "epoch")
    say(
        args,
        f"{args.output_dir} holds a finished run of {taken}; it goes on to {length}, with the learning rate of that "
        "length from here on",
    )
    return True


def is_longer(state: dict, args: DistillationTrainingArguments) -> bool:
    """Whether a run would go on where another has ended.

    Args:
        state: as Trainer keeps it at the end: `max_steps`, `global_step`, `epoch` and `log_history`.
        args: of the run.
    """
    taken, planned = state["global_step"], state["max_steps"]
    if args.max_steps > 0:
        is_longer = args.max_steps > planned
    else:
        is_longer = args.num_train_epochs > state["epoch"] * planned / taken + 1e-6
    stopped_early = taken < planned
    return not has_stopped(state.get("log_history", []), args) and (is_longer or stopped_early)
