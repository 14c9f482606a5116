"""Signals that end a run: training saves a checkpoint after the step under way, and ends; see `stopping.py`.

`<output_dir>/interrupted.json` says so, since launchers turn every exit code into 1: a job script that finds it puts
the job back into the queue.
"""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from transformers import TrainingArguments

from ..errors import InputError
from ..launcher import launching
from ..output_folder import (
    INTERRUPTED,
    MODEL_ALONE,
    PARTIAL_TEACHER,
    RESULTS,
    STATE,
    TEACHER,
    damage,
    last_complete,
    list_checkpoints,
    read_run_file,
)
from ..recipes import without_arguments
from ..signals import ENDING, Interrupted, handling, leave
from ..stopping import leave_word


@contextlib.contextmanager
def ending_in_order(args: TrainingArguments, command_line: list[str]) -> Iterator[None]:
    """Around a whole run: outside training a signal ends it at once, since nothing is lost but what began last.

    An earlier run's `interrupted.json` is removed.

    Args:
        args: of the run.
        command_line: the words that they were read from.

    Raises:
        Interrupted: a signal came, to this process or to another of the run; with what is kept, and how to go on.
    """
    earlier = _stamps(args.output_dir) if args.overwrite_output_dir else {}
    if args.process_index == 0 and not args.dry_run:
        Path(args.output_dir, INTERRUPTED).unlink(missing_ok=True)
    with handling(leave, takes_ctrl_c=True):
        try:
            yield
        except InputError:
            raise
        except Interrupted as interrupted:
            raise _explained(args, interrupted.number, command_line, earlier) from None
        except Exception:
            # Where one process left, what the others do together with it fails.
            number = _signal_of_another(args)
            if number is None:
                raise
            raise _explained(args, number, command_line, earlier) from None


def _explained(args, number: int, command_line: list[str], earlier: dict[Path, int]) -> Interrupted:
    """The exception to raise, after a word was left in the output folder.

    Args:
        args, command_line: of the run.
        number: the signal.
        earlier: what an earlier run left that this one was to replace, as [`_stamps`] found it at the start.
    """
    if args.dry_run:
        return Interrupted(number)
    is_replacing = bool(earlier) and earlier.items() <= _stamps(args.output_dir).items()
    checkpoint = None if is_replacing else last_complete(args.output_dir, contents=False)[0]
    if args.process_index == 0 or _signal_of_another(args) is None:
        leave_word(args, number, checkpoint)
    teachers, _ = last_complete(Path(args.output_dir, PARTIAL_TEACHER), contents=False)
    if not is_replacing and Path(args.output_dir, RESULTS).exists():
        kept = f"the run in {args.output_dir} is finished"
        # What may be left to do: a push, the predictions, an extension.
        if not (args.push_to_hub or args.do_predict or args.resume_from_checkpoint):
            return Interrupted(number, kept)
    elif checkpoint is not None:
        kept = f"{checkpoint} is whole"
    elif alone := _of_the_model_alone(args.output_dir):
        remedy = f"start from its weights with --model_name_or_path {shlex.quote(str(alone))} and another --output_dir"
        return Interrupted(number, f"{alone} holds the model alone (save_only_model)", remedy)
    elif teachers is not None:
        kept = f"{teachers} of the teacher is whole"
    elif is_replacing:
        kept = "nothing of this run is kept yet, and the earlier one is as it was"
    else:
        kept = "no checkpoint was made yet"
        kept += ", the teacher is trained" if Path(args.output_dir, TEACHER).is_dir() else ""
    return Interrupted(number, kept, f"go on with {_command(args, command_line, starts_again=is_replacing)}")


def _of_the_model_alone(output_dir: str) -> Path | None:
    """The last checkpoint of those without the optimiser's state."""
    found = (path for path in reversed(list_checkpoints(output_dir)) if damage(path, contents=False) == MODEL_ALONE)
    return next(found, None)


def _command(args: TrainingArguments, command_line: list[str], starts_again: bool) -> str:
    """What a user types to go on; tokens left out."""
    words = without_arguments(command_line, {"hub_token"})
    if not starts_again:
        words = without_arguments(words, {"overwrite_output_dir", "resume_from_checkpoint"})
        # A recipe may say otherwise, and the command line goes over it.
        words += ["--overwrite_output_dir", "false"] if args.overwrite_output_dir else []
        words += ["--resume_from_checkpoint", "true"]
    return f"{launching(args)} {shlex.join(words)}"


def _signal_of_another(args: TrainingArguments) -> int | None:
    """The signal that another process of this run left word of."""
    if args.world_size == 1:
        return None
    name = read_run_file(Path(args.output_dir, INTERRUPTED)).get("signal")
    return next((number for number in ENDING if number.name == name), None)


def _stamps(output_dir: str) -> dict[Path, int]:
    """Results and checkpoints in a folder, with the times at which they were written."""
    paths = [Path(output_dir, RESULTS), *(path / STATE for path in list_checkpoints(output_dir))]
    return {path: path.stat().st_mtime_ns for path in paths if path.exists()}
