"""A training that stops at a signal, after a step and with a checkpoint; its workers leave that to it."""

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

from . import launcher
from .files import write_json
from .output_folder import INTERRUPTED, checkpoint_folder, damage, step_of
from .report import say
from .signals import ENDING, Interrupted, handling, leave, pass_on

# On an accelerator, reading what the processes agreed on makes the host wait for the device.
STEPS_BETWEEN_VOTES = 10


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
        self._ends_with_results = True
        with handling(lambda number: self._note(number) if self._is_trained else leave(number)):
            yield
        self._ends_with_results = False
        if self._noted:
            pass_on(self._noted)

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
            pass_on(self._noted)

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint; at the end of an epoch, `on_epoch_end` does, after what is due there."""
        self._note_a_lost_launcher(args)
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
            leave_word(args, self._agreed, None if args.save_only_model else checkpoint)
        if args.world_size > 1:
            # A launcher that sees one process end would stop the others.
            torch.distributed.barrier()
        if args.save_only_model:
            remedy = f"no training goes on from it, but one starts from its weights: model_name_or_path {checkpoint}"
            raise Interrupted(self._agreed, f"{checkpoint} holds the model alone (save_only_model)", remedy)
        raise Interrupted(self._agreed, f"{checkpoint} is whole", "resume_from_checkpoint goes on from it")

    def _note(self, number: int):
        # Of several the greatest, as among processes: SIGTERM, which ends a job for good, is not replaced by a later
        # SIGUSR1 of its time limit.
        self._noted = max(self._noted, number)

    def _note_a_lost_launcher(self, args):
        """As a closed terminal; `nohup` keeps a run from both. Nobody would stop the run any more."""
        hang_up = getattr(signal, "SIGHUP", signal.SIGTERM)
        if not self._noted and launcher.has_ended() and signal.getsignal(hang_up) is not signal.SIG_IGN:
            say(args, f"the launcher has ended: the run ends after this step, as after {hang_up.name}")
            self._note(hang_up)

    def _vote(self, args: TrainingArguments) -> int:
        if args.world_size == 1:
            return self._noted
        noted = torch.tensor(float(self._noted), device=args.device)
        torch.distributed.all_reduce(noted, torch.distributed.ReduceOp.MAX)
        return int(noted.item())


def leaving_sigterm_to_parent(loader: DataLoader, has_own_stream: bool = True) -> DataLoader:
    """A loader whose workers heed SIGTERM from their parent alone, and which may draw from no shared stream of torch's.

    The seed that it draws for its workers needs a generator of its own: persistent workers draw it only when they
    start, so that torch's stream, which drop path reads, would be another in a resumed run.
    """
    if isinstance(loader.worker_init_fn, functools.partial) and loader.worker_init_fn.func is _ignore_sigterm_and:
        return loader  # persistent workers come with the loader of the evaluation before
    init = ignore_sigterm(loader.worker_init_fn)
    # Accelerate's loader iterates over another one; what skips batches asks its own attributes.
    for each in (loader, getattr(loader, "base_dataloader", loader)):
        each.worker_init_fn = init
        if has_own_stream:
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


def leave_word(args: TrainingArguments, number: int, checkpoint: Path | None):
    """Write `interrupted.json`: a job script finds it where launchers turn every exit code into 1."""
    step, kept = (None, None) if checkpoint is None else (step_of(checkpoint), str(checkpoint))
    content = {"signal": signal.Signals(number).name, "global_step": step, "checkpoint": kept}
    write_json(Path(args.output_dir, INTERRUPTED), content)
