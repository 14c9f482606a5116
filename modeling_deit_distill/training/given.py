"""What a program gives the trainer: refused where the trainer could not use it, before anything is made of it."""

import logging
from collections.abc import Mapping

import numpy as np
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import SaveStrategy

from ..arguments import DistillationTrainingArguments
from ..data.datasets import StreamingViewDataset, ViewDataset
from ..data.views import VIEW_ARGUMENTS
from ..errors import InputError
from ..modeling_deit_distill import DeiTDistillForImageClassification
from ..teachers.store import TeacherStore
from .answers import check_objective

logger = logging.getLogger(__name__)

# Trainer's own where it is given no arguments.
DEFAULT_OUTPUT_DIR = "tmp_trainer"
# Arguments that are read or checked once, when the trainer or its training set is made.
READ_ONCE = (
    *VIEW_ARGUMENTS,
    "base_learning_rate",
    "bf16",
    "fp16",
    "class_weights",
    "data_seed",
    "distillation_type",
    "early_stopping_patience",
    "ema_decay",
    "ema_half_life",
    "keep_decoded_images",
    "max_bad_image_fraction",
    "max_nonfinite_steps",
    "on_bad_image",
)


class Given:
    """What a trainer was given, checked.

    Args:
        model, args, teacher, store: as the trainer takes them.
        others: the other arguments of `transformers.Trainer`, by name.

    Attributes:
        args: the [`DistillationTrainingArguments`]; the defaults where there were none, as in Trainer.

    Raises:
        InputError: what the trainer could not use, with the remedy.
    """

    def __init__(self, model, args, teacher, store, others: Mapping[str, object]):
        if args is None:
            logger.warning("no args: those of DistillationTrainingArguments(output_dir=%r)", DEFAULT_OUTPUT_DIR)
            args = DistillationTrainingArguments(output_dir=DEFAULT_OUTPUT_DIR)
        if not isinstance(args, DistillationTrainingArguments):
            raise InputError(
                f"args is a {type(args).__name__}, which does not say how to distil; give a "
                "DistillationTrainingArguments"
            )
        if teacher is not None and not isinstance(teacher, nn.Module):
            raise InputError(f"teacher is a {type(teacher).__name__}; give a torch.nn.Module, such as a loaded model")
        if store is not None and not isinstance(store, TeacherStore):
            raise InputError(f"teacher_store is a {type(store).__name__}; give a TeacherStore, which opens the folder")
        _check_functions(others)
        _check_views(others.get("train_dataset"), args)
        self.args, self._teacher, self._store = args, teacher, store
        self._read_once = {name: getattr(args, name) for name in READ_ONCE}
        if model is not None or others.get("model_init") is None:
            self.check_student(model)

    def check_student(self, model):
        """Refuse a model that is no student of ours, or that the objective does not fit.

        With remote code our class exists twice, so its name decides.

        Raises:
            InputError: with the remedy.
        """
        names = [kind.__name__ for kind in type(model).__mro__]
        if DeiTDistillForImageClassification.__name__ not in names or not isinstance(model, PreTrainedModel):
            what = "there is no model" if model is None else f"the model is a {type(model).__name__}"
            raise InputError(
                f"{what}; the student must be a DeiTDistillForImageClassification, and any other model may be its "
                "teacher"
            )
        check_objective(model, self.args, self._teacher, self._store)

    def check_trial(self, trial):
        """Refuse a trial of a hyperparameter search that would save checkpoints, each in a folder of its own.

        Raises:
            InputError: with the remedy.
        """
        args = self.args
        if trial is not None and (args.save_strategy != SaveStrategy.NO or args.push_to_hub):
            raise InputError(
                "hyperparameter_search: a trial keeps no checkpoint and pushes none, but save_strategy is "
                f"{args.save_strategy.value!r} and push_to_hub {args.push_to_hub}; give save_strategy 'no', and train "
                "with the best trial's arguments to keep the model"
            )

    def check_unchanged(self):
        """Refuse changed arguments that were read or checked when the trainer was made; a search may change them.

        Raises:
            InputError: the first such argument.
        """
        for name, value in self._read_once.items():
            if getattr(self.args, name) != value:
                raise InputError(
                    f"{name} was {value} when the trainer was made and is {getattr(self.args, name)} now, which would "
                    "be ignored, or used unchecked; make another trainer, and its training set, with it"
                )


def _check_functions(others: Mapping[str, object]):
    if others.get("compute_loss_func") is not None:
        raise InputError(
            "compute_loss_func is refused: the loss is (1 - alpha) of the labels' and alpha of the teacher's; choose "
            "it by the arguments distillation_*, or override compute_loss"
        )
    if others.get("preprocess_logits_for_metrics") is not None and others.get("compute_metrics") is None:
        raise InputError(
            "preprocess_logits_for_metrics is given without compute_metrics, and the trainer's own metrics read "
            "decisions; give compute_metrics too, or leave it out: predict() keeps the logits"
        )


def _check_views(dataset, args):
    """Refuse arguments about views which a training set with settings of its own would not follow."""
    if not isinstance(dataset, (ViewDataset, StreamingViewDataset)):
        return
    theirs = {name: getattr(dataset.settings, name) for name in VIEW_ARGUMENTS} | {"data_seed": dataset.seed}
    if isinstance(dataset, StreamingViewDataset):
        theirs |= {"repeated_augmentation": dataset.repeats, "train_batch_size": dataset.batch_size}
    for name, value in theirs.items():
        asked = getattr(args, name)
        if asked is not None and not np.array_equal(asked, value):
            raise InputError(
                f"{name} is {asked} in args (perhaps its default) but {value} in the training set, which would decide; "
                "give both the same: AugmentationSettings.from_arguments(args, ...), args.views_seed"
            )
