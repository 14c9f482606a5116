"""Signals that end a run: training saves a checkpoint after the step under way, and ends; see `signals.py`.

`<output_dir>/interrupted.json` says so, since launchers turn every exit code into 1: a job script that finds it puts
the job back into the queue.
"""

import contextlib
import functools
import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from ..errors import InputError
from ..files import write_json
from ..output_folder import (
    INTERRUPTED,
    RESULTS,
    STATE,
    TEACHER,
    checkpoint_folder,
    damage,
    last_complete,
    list_checkpoints,
    read_json,
    step_of,
)
from ..recipes import without_arguments
from ..signals import ENDING, Interrupted, Leave, handling

# On an accelerator, reading what the processes agreed on makes the host wait for the device.
STEPS_BETWEEN_VOTES = 10


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
    with handling(Leave(), takes_ctrl_c=True):
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


class StopAtSignal(TrainerCallback):
    """Within training: a signal is noted, and acted upon where a checkpoint is exact, after a step.

    An evaluation that is due at that step still runs: the run that goes on would not make up for it. It ends with
    [`Interrupted`], on every process after the same step, even if the signal reached only some of them.
    """

    def __init__(self):
        self._noted = self._agreed = 0  # the signal's number; 0 for none
        self._is_trained = self._ends_with_results = False

    @contextlib.contextmanager
    def until_results(self) -> Iterator[None]:
        """Around training and what follows, up to the results.

        Where training left no checkpoint of its last step (`save_strategy` "no" or "best"), a signal that comes after
        it waits for the results: ending at once would lose the training.
        """
        leave, self._ends_with_results = Leave(), True
        with handling(lambda number: self._note(number) if self._is_trained else leave(number)):
            yield
        self._ends_with_results = False
        if self._noted:
            signal.raise_signal(self._noted)

    @contextlib.contextmanager
    def listening(self, args, close_logs: Callable[[], None]) -> Iterator[None]:
        """Around training; `close_logs` closes bars and reports if it is interrupted, else [`pass_on`] is due."""
        if args.process_index == 0:
            Path(args.output_dir, INTERRUPTED).unlink(missing_ok=True)  # of the run that was interrupted
        self._noted, self._agreed, self._is_trained = 0, 0, False
        with handling(self._note):
            try:
                yield
            except Interrupted:
                close_logs()
                raise

    def pass_on(self, args, state):
        """After training: what came too late for a step goes to whoever listened before."""
        is_kept = damage(checkpoint_folder(args.output_dir, state.global_step), contents=False) is None
        self._is_trained = self._ends_with_results and not is_kept
        if self._noted and not self._is_trained:
            signal.raise_signal(self._noted)

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint; at the end of an epoch, `on_epoch_end` does, after what is due there."""
        every = 1 if args.device.type == "cpu" else STEPS_BETWEEN_VOTES
        if args.world_size == 1 or state.global_step % every == 0:
            self._agreed = self._vote(args)
        if self._agreed and not float(state.epoch).is_integer():
            control.should_save = True

    def on_epoch_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint."""
        if self._agreed:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        """The checkpoint is whole: leave a word, and end when all have come here."""
        if not self._agreed:
            return
        checkpoint = checkpoint_folder(args.output_dir, state.global_step)
        if args.process_index == 0:
            _leave_word(args, self._agreed, checkpoint)
        if args.world_size > 1:
            # A launcher that sees one process end would stop the others.
            torch.distributed.barrier()
        raise Interrupted(self._agreed, f"{checkpoint} is whole", "resume_from_checkpoint goes on from it")

    def _note(self, number: int):
        self._noted = number

    def _vote(self, args: TrainingArguments) -> int:
        if args.world_size == 1:
            return self._noted
        noted = torch.tensor(float(self._noted), device=args.device)
        torch.distributed.all_reduce(noted, torch.distributed.ReduceOp.MAX)
        return int(noted.item())


def leaving_sigterm_to_parent(loader: DataLoader) -> DataLoader:
    """A loader whose workers heed SIGTERM from their parent alone, and which draws from no shared stream of torch's.

    The seed that it draws for its workers needs a generator of its own: persistent workers draw it only when they
    start, so that torch's stream, which drop path reads, would be another in a resumed run.
    """
    if isinstance(loader.worker_init_fn, functools.partial) and loader.worker_init_fn.func is _ignore_sigterm_and:
        return loader  # persistent workers come with the loader of the evaluation before
    init = ignore_sigterm(loader.worker_init_fn)
    # Accelerate's loader iterates over another one; what skips batches asks its own attributes.
    for each in (loader, getattr(loader, "base_dataloader", loader)):
        each.worker_init_fn = init
        each.generator = each.generator or torch.Generator()
    return loader


def ignore_sigterm(init: Callable[[int], None] | None) -> Callable[[int], None]:
    """A DataLoader's `worker_init_fn` that heeds SIGTERM from its parent alone, and no other signal of `ENDING`.

    Schedulers and terminals send them to all processes of a job, and a worker that ended would bring the run down
    before its checkpoint. At its own end, a parent that was interrupted sends SIGTERM to the workers that it still has,
    and waits.
    """
    return functools.partial(_ignore_sigterm_and, init)


def _ignore_sigterm_and(init: Callable[[int], None] | None, worker: int):
    for number in set(ENDING) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_the_parents, daemon=True).start()
    if init is not None:
        init(worker)


def _wait_for_the_parents():
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


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
        _leave_word(args, number, checkpoint)
    if is_replacing:
        kept = "nothing of this run is kept yet, and the earlier one is as it was"
    elif Path(args.output_dir, RESULTS).exists():
        kept = f"the run in {args.output_dir} is finished"
        if not args.push_to_hub:
            return Interrupted(number, kept)
    elif checkpoint is not None:
        kept = f"{checkpoint} is whole"
    else:
        kept = "no checkpoint was made yet"
        kept += ", the teacher is trained" if Path(args.output_dir, TEACHER).is_dir() else ""
    return Interrupted(number, kept, f"go on with {_command(args, command_line, starts_again=is_replacing)}")


def _command(args: TrainingArguments, command_line: list[str], starts_again: bool) -> str:
    """What a user types to go on; tokens left out."""
    words = without_arguments(command_line, {"hub_token"})
    if not starts_again:
        words = without_arguments(words, {"overwrite_output_dir", "resume_from_checkpoint"})
        # A recipe may say otherwise, and the command line goes over it.
        words += ["--overwrite_output_dir", "false"] if args.overwrite_output_dir else []
        words += ["--resume_from_checkpoint", "true"]
    launcher = "python" if args.world_size == 1 else "the same launcher and"
    return f"{launcher} train_deit.py {shlex.join(words)}"


def _leave_word(args: TrainingArguments, number: int, checkpoint: Path | None):
    step, kept = (None, None) if checkpoint is None else (step_of(checkpoint), str(checkpoint))
    content = {"signal": signal.Signals(number).name, "global_step": step, "checkpoint": kept}
    write_json(Path(args.output_dir, INTERRUPTED), content)


def _signal_of_another(args: TrainingArguments) -> int | None:
    """The signal that another process of this run left word of."""
    if args.world_size == 1:
        return None
    name = read_json(Path(args.output_dir, INTERRUPTED)).get("signal")
    return next((number for number in ENDING if number.name == name), None)


def _stamps(output_dir: str) -> dict[Path, int]:
    """Results and checkpoints in a folder, with the times at which they were written."""
    paths = [Path(output_dir, RESULTS), *(path / STATE for path in list_checkpoints(output_dir))]
    return {path: path.stat().st_mtime_ns for path in paths if path.exists()}
