"""SIGTERM, a scheduler's warning that time is up: training saves a checkpoint after the step under way and ends.

`<output_dir>/interrupted.json` says so, since launchers turn every exit code into 1: a job script that finds it puts
the job back into the queue.
"""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from ..files import write_json
from ..output_folder import INTERRUPTED, checkpoint_folder, last_complete, step_of

EXIT_CODE = 128 + signal.SIGTERM  # as a shell reports it
# On an accelerator, reading what the processes agreed on makes the host wait for the device.
STEPS_BETWEEN_VOTES = 10


class Interrupted(SystemExit):
    """The run ends because it was told to. As a `SystemExit`, no library's `except Exception` holds it up."""

    def __init__(self, message: str):
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


@contextlib.contextmanager
def ending_in_order(args: TrainingArguments) -> Iterator[None]:
    """Around a whole run: outside training SIGTERM ends it at once, since nothing is lost but what began last.

    An earlier run's `interrupted.json` is removed.
    """
    if args.process_index == 0 and not args.dry_run:
        Path(args.output_dir, INTERRUPTED).unlink(missing_ok=True)

    def _leave(number: int, frame):
        checkpoint, _ = last_complete(args.output_dir, contents=False)
        raise _interrupted(args, None if checkpoint is None else step_of(checkpoint), checkpoint)

    with _handling(_leave):
        try:
            yield
        except Interrupted as interrupted:
            if args.process_index == 0:
                print(interrupted, flush=True)
            raise


class StopAtSignal(TrainerCallback):
    """Within training: SIGTERM is noted, and acted upon where a checkpoint is exact, after a step.

    An evaluation that is due at that step still runs: the run that goes on would not make up for it. It ends with
    [`Interrupted`], on every process after the same step, even if the signal reached only some of them.
    """

    def __init__(self):
        self._is_noted = self._is_agreed = False

    @contextlib.contextmanager
    def listening(self, args) -> Iterator[None]:
        """Around training. A signal that comes after the last step is passed on to whoever listened before."""
        if args.process_index == 0:
            Path(args.output_dir, INTERRUPTED).unlink(missing_ok=True)  # of the run that was interrupted
        self._is_noted = self._is_agreed = False
        with _handling(self._note):
            yield
        if self._is_noted:
            signal.raise_signal(signal.SIGTERM)

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint; at the end of an epoch, `on_epoch_end` does, after what is due there."""
        every = 1 if args.device.type == "cpu" else STEPS_BETWEEN_VOTES
        if args.world_size == 1 or state.global_step % every == 0:
            self._is_agreed = self._vote(args)
        if self._is_agreed and not float(state.epoch).is_integer():
            control.should_save = True

    def on_epoch_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint."""
        if self._is_agreed:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        """The checkpoint is whole: leave a word, and end when all have come here."""
        if not self._is_agreed:
            return
        checkpoint = checkpoint_folder(args.output_dir, state.global_step)
        interrupted = _interrupted(args, state.global_step, checkpoint)
        if args.world_size > 1:
            # A launcher that sees one process end would stop the others.
            torch.distributed.barrier()
        raise interrupted

    def _note(self, number: int, frame):
        self._is_noted = True

    def _vote(self, args: TrainingArguments) -> bool:
        if args.world_size == 1:
            return self._is_noted
        noted = torch.tensor(float(self._is_noted), device=args.device)
        torch.distributed.all_reduce(noted, torch.distributed.ReduceOp.MAX)
        return bool(noted.item())


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
    """A DataLoader's `worker_init_fn` that heeds SIGTERM from its parent alone.

    Schedulers send it to all processes of a job, and a worker that ended would bring the run down before its
    checkpoint. At its own end, a parent that was interrupted sends it to the workers that it still has, and waits.
    """
    return functools.partial(_ignore_sigterm_and, init)


def _ignore_sigterm_and(init: Callable[[int], None] | None, worker: int):
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_the_parents, daemon=True).start()
    if init is not None:
        init(worker)


def _wait_for_the_parents():
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


@contextlib.contextmanager
def _handling(handler: Callable) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only that one hears of signals
        yield
        return
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupted(args: TrainingArguments, global_step: int | None, checkpoint: Path | None) -> Interrupted:
    """The exception to raise; the main process has left the record by then."""
    if args.process_index == 0:
        kept = None if checkpoint is None else str(checkpoint)
        content = {"signal": "SIGTERM", "global_step": global_step, "checkpoint": kept}
        write_json(Path(args.output_dir, INTERRUPTED), content)
    where = "no checkpoint was made yet" if checkpoint is None else f"{checkpoint} is whole"
    return Interrupted(f"interrupted by SIGTERM: {where}; the same command with --resume_from_checkpoint true goes on")
