"""`PublishingTrainer`: a `transformers.Trainer` whose pushes are whole commits with code and card, and never silent."""

import logging
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import CommitInfo, run_as_future
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from ..conversion.weight_names import why_not_native
from ..errors import InputError
from ..training.resumable_trainer import ResumableTrainer
from .card import write_model_card
from .pictures import CURVES, plot_training_curves
from .record import note_repository
from .repository import (
    STATE,
    Destination,
    clear_stages,
    open_repository,
    push_all,
    push_checkpoint,
    stage_checkpoint,
    stage_run,
)

logger = logging.getLogger(__name__)


class PublishingTrainer(ResumableTrainer):
    """What Trainer's `push_to_hub` and `hub_*` arguments ask for, done by `publishing.py`."""

    def __init__(self, model=None, args=None, **kwargs):
        if args.push_native and (reason := why_not_native(model.config)):
            raise InputError(f"push_native: {reason}")
        self._destination: Destination | None = None  # set by `init_hf_repo`, which Trainer's own set-up calls
        super().__init__(model=model, args=args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None):
        """Make the repository and the branch that the arguments name, or find them.

        Raises:
            InputError: the Hub refuses, or five tries failed.
        """
        if not self.is_world_process_zero():
            return
        args = self.args
        if self._destination is None:
            clear_stages(args.output_dir)
            self.push_in_progress = None
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        private = args.hub_private_repo if private is None else private
        self._destination = open_repository(name, token or args.hub_token, private, args.hub_revision)
        self.hub_model_id = self._destination.repo_id
        note_repository(args.output_dir, self.hub_model_id, args.push_native, args.hub_revision)

    def create_model_card(self, results: dict[str, float] | None = None):
        """Write our card, and the curves, from what lies in `output_dir`; what Trainer's takes is not asked.

        Args:
            results: what `all_results.json` is about to hold, if it does not yet.
        """
        if not self.is_world_process_zero():
            return
        output_dir = Path(self.args.output_dir)
        self.state.save_to_json(str(output_dir / STATE))
        plot_training_curves(self.state.log_history, output_dir / CURVES)
        write_model_card(output_dir, results)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        """Save the model, write its card and push both, after the pushes that are under way.

        Args:
            commit_message, token, revision, private: as in Trainer; the arguments' unless given.
            blocking: wait for the end; otherwise a future comes back.
            kwargs: not used; Trainer's own card would take them.

        Raises:
            InputError: the Hub refuses, or five tries failed. What was saved is whole, and the push can be repeated.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()
        if self._destination is None or token is not None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card()
        destination = self._destination
        if revision is not None and revision != destination.revision:
            destination = open_repository(destination.repo_id, destination.token, revision=revision)
        commits = stage_run(self.args.output_dir, commit_message, self.args.push_native)
        if blocking:
            return push_all(commits, destination)
        job = run_as_future(push_all, commits, destination)
        self.push_in_progress = PushInProgress([job])
        return job

    def _push_from_checkpoint(self, checkpoint_folder: str):
        # Trainer's own copies weights into `output_dir` and uploads it while training goes on to change it, leaves
        # the code out and hides what fails.
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END or self.is_saving:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        kept_as = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name}
        path_in_repo = kept_as.get(self.args.hub_strategy)
        message = f"Training in progress, step {self.state.global_step}"
        commit = stage_checkpoint(checkpoint_folder, self.args.output_dir, message, path_in_repo)
        # All pushes of this process go to one thread of the library's, which runs one after the other.
        job = run_as_future(push_checkpoint, commit, self._destination)
        job.add_done_callback(_warn_of_failure)
        earlier = self.push_in_progress.jobs if busy else []
        self.push_in_progress = PushInProgress([*earlier, job])


def _warn_of_failure(push: Future):
    if not push.cancelled() and push.exception() is not None:
        logger.warning("training goes on, and the next push brings what this one lacked: %s", push.exception())
