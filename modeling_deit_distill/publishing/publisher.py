"""Pushes of a run: whole commits with code and card, one after the other, and never silent."""

import inspect
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import CommitInfo
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import HubStrategy

from ..arguments import DistillationTrainingArguments
from ..configuration_deit_distill import DeiTDistillConfig
from ..conversion.weight_names import why_not_native
from ..errors import InputError, one_line
from ..export.onnx import check_packages
from ..output_folder import STATE, checkpoint_folder
from .card import write_card_and_curves
from .pushes import Pushes
from .record import note_repository, note_words
from .repository import Commit, clear_stages, open_repository, push_all, push_checkpoint, stage_checkpoint, stage_run

logger = logging.getLogger(__name__)


class Publisher(TrainerCallback):
    """What Trainer's `push_to_hub` and `hub_*` arguments ask for, done by `repository.py`.

    Trainer's own pushes copy weights into the output folder while training goes on to change it, leave the code out,
    and hide what fails. `announce` is called before each push; it lets other callbacks know.

    Raises:
        InputError: a copy for transformers' own class is asked for, which cannot hold this student.
    """

    def __init__(self, args: DistillationTrainingArguments, config: DeiTDistillConfig, announce: Callable[[], None]):
        if args.push_native and (reason := why_not_native(config)):
            raise InputError(f"push_native: {reason}")
        if {"browser", "demo"} & set(args.copies):
            check_packages()
        self.args, self._announce = args, announce
        self._strategy = args.hub_strategy  # while Trainer trains, it sees another
        self.destination = None  # where to push, once it was opened
        self.pushes = Pushes(args.hub_max_wait)

    @property
    def repo_id(self) -> str | None:
        """The repository's name, once the Hub has returned it."""
        return None if self.destination is None else self.destination.repo_id

    def open(self, token: str | None = None, private: bool | None = None) -> str | None:
        """Make the repository and the branch that the arguments name, or find them; returns its name.

        Raises:
            HubUnavailable: no answer within a minute, or five tries failed.
            InputError: the Hub refuses.
        """
        args = self.args
        if args.process_index != 0:
            return None
        if self.destination is None and not self.pushes.pending:
            clear_stages(args.output_dir)
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        private = args.hub_private_repo if private is None else private
        token, max_wait = token or args.hub_token, args.hub_max_wait
        self.destination = open_repository(name, token, private, args.hub_revision, max_wait)
        note_repository(args.output_dir, self.destination.repo_id, args.copies, args.hub_revision)
        return self.destination.repo_id

    def write_card(self, state, results: dict[str, float] | None = None, *words, **named_words):
        """Write Trainer's `state`, and card and curves from it and what else a run left; see [`write_model_card`].

        Args:
            state: Trainer's.
            results: see [`write_model_card`].
            words, named_words: what `Trainer.create_model_card` takes, see [`note_words`].
        """
        said = inspect.signature(Trainer.create_model_card).bind(None, *words, **named_words).arguments
        if self.args.process_index == 0:
            words = {"license": self.args.license, **said}
            note_words(self.args.output_dir, {name: value for name, value in words.items() if name != "self"})
            state.save_to_json(str(Path(self.args.output_dir, STATE)))
            write_card_and_curves(self.args.output_dir, results)

    def push(self, message: str, blocking: bool = True, revision: str | None = None) -> CommitInfo | Future | None:
        """Push the output folder as it is, after the pushes under way; None on other processes than the main one.

        Returns:
            The commit, which is waited for `hub_max_wait` seconds; a future unless `blocking`.

        Raises:
            HubUnavailable: it is not done by then, or five tries failed. The push can be repeated.
            InputError: the Hub refuses. What was saved is whole.
        """
        self._announce()
        if self.args.process_index != 0:
            return None
        destination = self.destination
        if revision is not None and revision != destination.revision:
            destination = open_repository(
                destination.repo_id, destination.token, revision=revision, max_wait=self.args.hub_max_wait
            )
        commits = stage_run(self.args.output_dir, message, self.args.copies)
        push = self.pushes.submit(push_all, commits, destination, time.monotonic() + self.args.hub_max_wait)
        if blocking:
            return self.pushes.result(push, f"push to {destination.repo_id!r}")
        push.add_done_callback(_warn_of_failure)
        return push

    def on_save(self, args, state, control, **kwargs):
        """Push the checkpoint, which is whole by now, while training goes on."""
        strategy, args = self._strategy, self.args
        if not args.push_to_hub or args.process_index != 0 or strategy == HubStrategy.END:
            return
        if self.pushes.pending and not args.hub_always_push:
            return
        self._announce()
        checkpoint = checkpoint_folder(args.output_dir, state.global_step)
        kept_as = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        message = f"Training in progress, step {state.global_step}"
        try:
            commit = stage_checkpoint(checkpoint, Path(args.output_dir), message, kept_as.get(strategy))
        except OSError as error:
            logger.warning("training goes on, but its checkpoint cannot be copied to be pushed: %s", one_line(error))
            return
        self.pushes.submit(self._push_checkpoint, commit).add_done_callback(_warn_of_failure)

    def _push_checkpoint(self, commit: Commit) -> CommitInfo:
        until = time.monotonic() + self.args.hub_max_wait
        if self.destination is None:  # the Hub gave no answer before training
            self.open()
        return push_checkpoint(commit, self.destination, until)


def _warn_of_failure(push: Future):
    if not push.cancelled() and push.exception() is not None:
        logger.warning("a push failed, and the next one brings what it lacked; training goes on: %s", push.exception())
