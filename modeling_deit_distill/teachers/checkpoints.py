"""Checkpoints of a teacher's training: one an epoch, and one where a signal stops it; gone when it is trained."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback

from ..hardware import hardware_going_on
from ..output_folder import (
    agreed_in,
    checkpoint_folder,
    commit_checkpoint,
    disk_errors_explained,
    last_complete,
    remove_old_checkpoints,
    remove_unfinished_checkpoints,
    unfinished_checkpoints,
)
from ..report import say


class CommitCheckpoints(TrainerCallback):
    """Makes each folder that Trainer has saved a checkpoint; keeps the last, and the best of one that may stop early.

    Args:
        record: what the training depends on, see `training_record`.
    """

    def __init__(self, record: dict[str, object]):
        self._record, self._hardware = record, {}

    def on_train_begin(self, args, state, control, **kwargs):
        """The best so far lies in this folder, though it may have moved; the machine may be another."""
        resumed = checkpoint_folder(args.output_dir, state.global_step) if state.global_step else None
        self._hardware = hardware_going_on(resumed, args)
        if state.best_global_step and state.best_model_checkpoint:
            state.best_model_checkpoint = str(checkpoint_folder(args.output_dir, state.best_global_step))

    def on_save(self, args, state, control, **kwargs):
        """Commit, then remove the older ones."""
        PartialState().wait_for_everyone()  # each process has written its share
        if args.should_save:
            checkpoint = checkpoint_folder(args.output_dir, state.global_step)
            commit_checkpoint(checkpoint, self._record, hardware=self._hardware)
            best = state.best_model_checkpoint
            remove_old_checkpoints(args.output_dir, 1, {checkpoint, Path(best) if best else checkpoint})


def checkpoint_to_go_on_from(folder: Path, record: dict[str, object], args) -> Path | None:
    """The last whole checkpoint of the same training; what another one left in its folder is removed.

    It is called by all processes, and the main one removes.

    Args:
        folder: of the training.
        record: what the training depends on.
        args: of the run.
    """
    with args.main_process_first(desc="looking for a checkpoint of the teacher"):
        if args.process_index == 0 and folder.exists():
            remove_unfinished_checkpoints(folder)
            found, _ = last_complete(folder)
            if found is None or agreed_in(found) != record:
                what = "no whole checkpoint" if found is None else f"{found.name}, of another training"
                say(args, f"{folder} has {what}: the teacher is trained from the beginning")
                shutil.rmtree(folder)
        found, _ = last_complete(folder, contents=False)
    if found is not None:
        say(args, f"the teacher's training goes on from {found}")
    return found


@contextlib.contextmanager
def checkpoint_errors_explained(folder: Path) -> Iterator[None]:
    """Around a training: what fails while a checkpoint is written is removed; a full disk gets one clear line.

    Raises:
        LocalInputError: the disk refuses.
    """
    try:
        yield
    except BaseException as error:
        if not unfinished_checkpoints(folder):
            raise
        remove_unfinished_checkpoints(folder)
        with disk_errors_explained(folder, "the teacher"):
            raise error
