"""`ResumableTrainer`: a `transformers.Trainer` that may be killed at any moment and ends with the same weights."""

import dataclasses
import json
import logging
import pickle
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from ..errors import InputError, one_line
from . import checkpoints  # FIXME
from .interruption import RECORD, Interrupted, StopAtSignal, deaf_worker

logger = logging.getLogger(__name__)


class ResumableTrainer(Trainer):
    """Checkpoints are whole or not there, SIGTERM makes one, and only a run that fits goes on from it."""

    def __init__(self, *args, **kwargs):
        self._saving: Path | None = None  # the folder beside, while a checkpoint is written
        self._resumed_step: int | None = None
        self._planned_steps: int | None = None  # of the run that made the checkpoint to resume from
        self._stop_at_signal = StopAtSignal()
        super().__init__(*args, **kwargs)
        self.add_callback(self._stop_at_signal)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As `Trainer.train`.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the last complete one.

        Raises:
            InputError: no such checkpoint, or one of another run, or with a pickle that is more than numbers.
            LocalInputError: the disk is full; the earlier checkpoints are intact.
            Interrupted: SIGTERM came; a checkpoint was made.
        """
        if self.is_world_process_zero():
            Path(self.args.output_dir, RECORD).unlink(missing_ok=True)  # of the run that was interrupted
        checkpoint = self._resolve(resume_from_checkpoint)
        self._resumed_step = None
        if checkpoint is not None:
            checkpoints.check_fits(checkpoint, self._facts(), self.model.config)
            checkpoints.check_sharding(checkpoint, self.is_fsdp_enabled)
            state = json.loads(Path(checkpoint, "trainer_state.json").read_text())
            self._resumed_step, self._planned_steps = state["global_step"], state.get("max_steps")
        try:
            with self._stop_at_signal.listening():
                return super().train(checkpoint, *args, **kwargs)
        except Interrupted:
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)  # close the logs
            raise
        except pickle.UnpicklingError as error:
            raise InputError(
                f"{checkpoint} holds a pickle with more than numbers in it, which is not loaded "
                f"({one_line(error)[:120]}); resume from a checkpoint that you trust"
            ) from error

    @property
    def is_saving(self) -> bool:
        """Whether a checkpoint is being written and not yet whole."""
        return self._saving is not None

    def set_initial_training_values(self, args, dataloader, *rest):
        """As in Trainer; a run that has taken all its steps has no epoch left, where Trainer would take one more."""
        values = super().set_initial_training_values(args, dataloader, *rest)
        if self._resumed_step is None:
            return values
        if self._planned_steps not in (None, values[-1]) and self.is_world_process_zero():
            logger.warning(
                f"the checkpoint's run was to take {self._planned_steps:,} steps, this one takes {values[-1]:,}: from "
                "here on the learning rate is that of the new length"
            )
        if self._resumed_step < values[-1]:
            return values
        if self._resumed_step > values[-1]:
            raise InputError(
                f"the checkpoint to resume from is of step {self._resumed_step:,}, this run ends at {values[-1]:,}; "
                "resume from an earlier one, or train as long"
            )
        return (0, *values[1:])

    def _init_training_state(self, *args):
        # The checkpoints' own states name no folder, which may have moved.
        initial = super()._init_training_state(*args)
        best = Path(self.args.output_dir, f"{checkpoints.PREFIX}{self.state.best_global_step}")
        if self._resumed_step is not None and best.is_dir():
            self.state.best_model_checkpoint = str(best)
        elif self._resumed_step is not None and self.state.best_global_step and self.args.load_best_model_at_end:
            raise InputError(f"load_best_model_at_end: {best.name}, the best so far, is not in {self.args.output_dir}")
        return initial

    def _resolve(self, wanted: str | bool | None) -> str | None:
        if self.is_world_process_zero():
            checkpoints.clear_leftovers(self.args.output_dir, goes_on=bool(wanted))
        if not wanted:
            return None
        self.accelerator.wait_for_everyone()
        if not checkpoints.means_the_last(wanted):
            checkpoints.check_whole(wanted)
            return str(wanted)
        found, _ = checkpoints.last_complete(self.args.output_dir)
        if found is None:
            raise InputError(f"there is no complete checkpoint in {self.args.output_dir}; leave out resuming to start")
        return str(found)

    def _facts(self) -> dict[str, object]:
        return checkpoints.facts_of(self.args, self.train_dataset)

    def _get_output_dir(self, trial) -> str:
        return super()._get_output_dir(trial) if self._saving is None else str(self._saving)

    def _save_checkpoint(self, model, trial):
        # Trainer writes into `checkpoint-N` itself. Here it writes, without noticing, into another folder, where its
        # own removal of earlier checkpoints finds none; what follows is for the whole checkpoint.
        output_dir, step = Path(self._get_output_dir(trial)), self.state.global_step
        checkpoint = output_dir / f"{checkpoints.PREFIX}{step}"
        best = output_dir / f"{checkpoints.PREFIX}{self.state.best_global_step}"
        if best.exists():
            self.state.best_model_checkpoint = str(best)
        self._saving = output_dir / f"{checkpoints.SAVING}{step}"
        try:
            with checkpoints.disk_errors_explained(output_dir, checkpoint.name):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()  # each process has written its random state
                self._complete(self._saving / checkpoint.name, checkpoint)
        except BaseException:
            if self.args.should_save:
                checkpoints.clear_leftovers(output_dir)
            raise
        finally:
            self._saving = None
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            checkpoints.rotate(output_dir, self.args.save_total_limit, {checkpoint, Path(best or checkpoint)})

    def _complete(self, saved: Path, checkpoint: Path):
        if self.state.best_model_checkpoint == str(saved):
            self.state.best_model_checkpoint = str(checkpoint)
        if self.args.should_save:
            state = dataclasses.replace(self.state, best_model_checkpoint=None)  # see `_init_training_state`
            state.save_to_json(str(saved / "trainer_state.json"))
            if not (saved / "config.json").exists():  # FSDP's shards come without
                self.model.config.save_pretrained(saved)
            checkpoints.commit(saved, checkpoint, self._facts())

    def _get_dataloader(self, *args, **kwargs) -> DataLoader:
        loader = super()._get_dataloader(*args, **kwargs)
        worker_init_fn = deaf_worker(loader.worker_init_fn)
        # Accelerate's loader iterates over another one; what skips batches asks its own attributes.
        for each in (loader, getattr(loader, "base_dataloader", loader)):
            each.worker_init_fn = worker_init_fn
            # For the seed that it draws for its workers, which need none. Persistent workers draw it only when they
            # start, so that torch's own stream, which drop path reads, would be another in a resumed run.
            each.generator = each.generator or torch.Generator()
        return loader
