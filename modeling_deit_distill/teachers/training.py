"""A teacher trained on the run's own data first, where the user has none; kept in `<output_dir>/teacher`."""

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForImageClassification,
    EarlyStoppingCallback,
    PreTrainedConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ..analysis import class_means
from ..arguments import DistillationTrainingArguments, ModelArguments
from ..augmentation.augment import AUGMENTATION_VERSION, augment
from ..data.bad_images import BadImages
from ..data.class_weights import class_weights
from ..data.datasets import ViewDataset, collate
from ..data.evaluation import EvaluationDataset, evaluation_processor, evaluation_transform
from ..data.loaders import LOADER_ARGUMENTS, SetEpoch, training_loader
from ..data.sources import ImageData
from ..data.views import AugmentationSettings, ViewSampler, labels_to_balance
from ..errors import InputError
from ..files import write_json
from ..losses import label_loss
from ..output_folder import (
    PARTIAL_TEACHER,
    STATE,
    TEACHER,
    agreed_in,
    begin_checkpoint,
    disk_errors_explained,
    is_checkpoint,
    last_complete,
    list_checkpoints,
    read_run_file,
    step_of,
)
from ..report import say
from ..screen import show
from ..stopping import StopAtSignal, leaving_sigterm_to_parent
from ..weights import check_finite_weights
from .checkpoints import CommitCheckpoints, checkpoint_errors_explained, checkpoint_to_go_on_from
from .teacher import InputView, load_classifier, own_view

TRAINING_RECORD = "teacher_training.json"
# Recorded only if set. A record without one means that it was off.
IF_ASKED_FOR = ("class_weights", "balanced_views", "scaled_decoding", "early_stopping_patience", "judged_by")
# Settings of the views that the teacher shares with the student. They are always recorded.
SHARED_VIEWS = ("random_crop_scale", "horizontal_flip_prob", "rand_augment_magnitude")
# What earlier versions did not record: what a record lacks here counts as the run's value.
RECORDED_LATER = ("seed", "effective_batch_size", "precision", *SHARED_VIEWS)
NOT_THERE_BEFORE = {"augmentation_version": 1}  # where a record does not mention it
FIGURES = ("accuracy", "balanced_accuracy", "macro_f1")  # of an evaluation
# The teacher's training shares the machine with the student's, not its schedule.
SHARED_ARGUMENTS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "bf16",
    "fp16",
    "tf32",
    "use_cpu",
    "seed",
    "full_determinism",
    "disable_tqdm",
    "ddp_backend",
    "ddp_timeout",
    *(f"dataloader_{name}" for name in LOADER_ARGUMENTS),
)


@dataclasses.dataclass(frozen=True)
class TeacherTraining:
    """The training of a teacher on a run's own data.

    Schedule and checkpoint are those of `model_args`; machine, batch and augmentation are the student's.

    Attributes:
        config: of the teacher, from `description.describe_teachers`.
        data: of the run.
        model_args, args: of the run.
        student_image_size: pixels; a new teacher is trained at it unless another size is given, a fine-tuned one at
            its own.
    """

    config: PreTrainedConfig
    data: ImageData
    model_args: ModelArguments
    args: DistillationTrainingArguments
    student_image_size: int

    @property
    def image_size(self) -> int:
        """A new teacher is trained at the size at which it will be asked."""
        is_new = self.model_args.teacher_name_or_path is None
        return (is_new and self.model_args.teacher_image_size) or self.student_image_size


def find_or_train_teacher(training: TeacherTraining, crop_pct: float, held_out: Dataset) -> Path:
    """Train the teacher on the run's data unless `<output_dir>/teacher` holds it already; return that folder.

    Where the folder holds a teacher of another training, `overwrite_output_dir` trains this one in its place.

    After each epoch it is evaluated, which changes nothing in its training unless this may stop early.

    Args:
        training: what it depends on.
        crop_pct: of the evaluation.
        held_out: rows to evaluate on.

    Raises:
        InputError: the folder holds a teacher of another training, or the training ended in NaN.
        LocalInputError: the disk is full.
    """
    args, directory = training.args, Path(training.args.output_dir, TEACHER)
    found = read_run_file(directory / TRAINING_RECORD)
    record = training_record(training, found)
    is_held = holds_teacher(directory, record, args)
    unknown = [name for name in RECORDED_LATER if name not in found]
    if is_held:
        if unknown:
            say(args, f"{directory} is of an earlier version: its {', '.join(unknown)} are taken for this run's")
        return directory
    if found:
        say(args, f"{_another_training(directory, found, record)}: another is trained in its place")
    partial, replaced = directory.with_name(PARTIAL_TEACHER), directory.with_name(directory.name + ".replaced")
    checkpoint = checkpoint_to_go_on_from(partial, record, args)
    trainer = teacher_trainer(training, crop_pct, held_out, partial)
    show(trainer, "1 of 2: teacher", {"held out": "eval_accuracy"}, args.output_dir)
    trainer.train_from(checkpoint, record)
    if trainer.state.global_step < trainer.state.max_steps:
        say(args, f"the teacher's training stopped early: {best_in_words(trainer)}")
    learning_rate = training.model_args.teacher_learning_rate
    remedy = f"try a lower --teacher_learning_rate (now {learning_rate:g}), or bf16 instead of fp16"
    check_finite_weights(trainer.model.state_dict().items(), "the teacher's training", remedy)
    with disk_errors_explained(directory.parent, "the teacher"):
        trainer.save_model(str(partial))
        trainer.accelerator.wait_for_everyone()
        if args.process_index == 0:
            for checkpoint in list_checkpoints(partial):  # the best, of a training that may stop early
                shutil.rmtree(checkpoint)
            write_json(partial / TRAINING_RECORD, {**record, "dataset": training.data.fingerprint()})
            shutil.rmtree(replaced, ignore_errors=True)
            if directory.exists():
                directory.rename(replaced)
            partial.rename(directory)  # complete or not there at all
            shutil.rmtree(replaced, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.interruption.pass_on(trainer.args, trainer.state)
    return directory


def teacher_trainer(training: TeacherTraining, crop_pct: float, held_out: Dataset, output_dir: Path) -> Trainer:
    """The trainer of a teacher, before its training; arguments as in [`find_or_train_teacher`]."""
    set_seed(training.args.seed)
    model, view = _untrained(training.config, training.model_args, training.image_size)
    processor = evaluation_processor(view.image_size, crop_pct, view.mean, view.std)
    return _TeacherTrainer(model, processor, training, held_out, output_dir)


def holds_teacher(directory: Path, record: dict[str, object], args: DistillationTrainingArguments) -> bool:
    """Whether a folder holds the teacher of a [`training_record`]; False where it is to be trained.

    Raises:
        InputError: it holds a teacher of another training, which nobody said to overwrite, or something else.
    """
    if (directory / TRAINING_RECORD).exists():
        found = read_run_file(directory / TRAINING_RECORD)
        if record_difference(found, record) is None:
            return True
        if args.overwrite_output_dir or _is_being_replaced(directory, record):
            return False
        going_on = " without --resume_from_checkpoint" if args.resume_from_checkpoint else ""
        raise InputError(
            f"{_another_training(directory, found, record)}; add --overwrite_output_dir true{going_on} to train it "
            "again, choose another --output_dir, or take it as it is: --train_teacher false --teacher_name_or_path "
            f"{directory}"
        )
    if directory.exists():
        raise InputError(
            f"{directory} exists but holds no teacher of ours; move it away or choose another --output_dir"
        )
    return False


def training_record(training: TeacherTraining, kept: Mapping[str, object] | None = None) -> dict[str, object]:
    """What the training of a teacher depends on, as it is kept beside it.

    A store of its answers keeps it too, see `agreement`. `kept` is the record that it is compared with, if any: it may
    know its data as earlier versions did, see [`ImageData.fingerprint`].
    """
    # What changes with the library's version or with saving.
    passing = {"transformers_version", "architectures", "dtype", "_name_or_path", "label2id", "torch_dtype"}
    config, data, model_args, args = training.config, training.data, training.model_args, training.args
    fields = json.loads(config.to_json_string(use_diff=False))
    patience = args.early_stopping_patience
    values = (class_weights(args.class_weights, data.class_names, data.train), args.balanced_views)
    values += (args.scaled_decoding, patience, patience and judged_by(args))
    record = {
        "dataset": data.fingerprint((kept or {}).get("dataset")),
        "teacher": model_args.teacher_name_or_path or config.model_type,
        "config": {key: value for key, value in sorted(fields.items()) if key not in passing},
        "image_size": training.image_size,
        "num_train_epochs": model_args.teacher_num_train_epochs,
        "learning_rate": model_args.teacher_learning_rate,
        **{name: getattr(args, name) for name in RECORDED_LATER},
        **{name: value for name, value in zip(IF_ASKED_FOR, values, strict=True) if value},
        # The first is not mentioned: an earlier version's checkpoints are gone on from only if the record is the same.
        **({} if AUGMENTATION_VERSION == 1 else {"augmentation_version": AUGMENTATION_VERSION}),
    }
    return json.loads(json.dumps(record))  # as it is read back


def _is_being_replaced(directory: Path, record: dict[str, object]) -> bool:
    """Whether the training of a [`training_record`] was interrupted that overwrites a run, whose teacher is kept yet.

    A student's checkpoint would be of the earlier run.
    """
    found, _ = last_complete(directory.with_name(PARTIAL_TEACHER), contents=False)
    return found is not None and agreed_in(found) == record and not list_checkpoints(directory.parent)


def _another_training(directory: Path, found: dict, wanted: dict) -> str:
    field, before, now = record_difference(found, wanted)
    return f"{directory} holds a teacher trained with another {field} ({before}, now {now})"


def record_difference(found: dict | None, wanted: dict | None) -> tuple[str, object, object] | None:
    """The first field in which a kept [`training_record`] differs from a run's, and both values; None if none does.

    Either may be None: of a teacher that was not trained here.
    """
    if found is None or wanted is None:
        return None if found == wanted else ("training", found, wanted)
    unknown = {name: wanted.get(name) for name in RECORDED_LATER}
    for key, value in {**dict.fromkeys(IF_ASKED_FOR), **NOT_THERE_BEFORE, **wanted}.items():
        before = {**unknown, **NOT_THERE_BEFORE, **found}.get(key)
        if before == value:
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            fields = [field for field in value if before.get(field) != value[field]]
            before = {field: before.get(field) for field in fields}
            value = {field: value[field] for field in fields}
        return key, before, value
    return None


def _untrained(config: PreTrainedConfig, model_args: ModelArguments, image_size: int):
    """A new classifier, or a checkpoint's with a new head, and the view it is trained in."""
    view = InputView(getattr(config, "image_size", None) or image_size)
    name_or_path, trust_remote_code = model_args.teacher_name_or_path, model_args.trust_remote_code
    if name_or_path is None:
        try:
            return AutoModelForImageClassification.from_config(config, trust_remote_code=trust_remote_code), view
        except ValueError as error:
            raise InputError(f"teacher_config_name: {config.model_type!r} is no image classifier") from error
    view = own_view(name_or_path, view, trust_remote_code)
    settings = {"config": config, "ignore_mismatched_sizes": True, "trust_remote_code": trust_remote_code}
    return load_classifier(name_or_path, **settings), view


class _TeacherTrainer(Trainer):
    """Trains a classifier on labels, on views augmented on the device as the student's are."""

    def __init__(self, model, processor, training: TeacherTraining, held_out: Dataset, output_dir: Path):
        data, model_args, args = training.data, training.model_args, training.args
        self.labels = labels_to_balance(args, data.train)
        weights = class_weights(args.class_weights, data.class_names, data.train)
        self.class_weights = None if weights is None else torch.tensor(weights, device=args.device)
        teacher_args = TrainingArguments(
            output_dir=str(output_dir),
            num_train_epochs=model_args.teacher_num_train_epochs,
            learning_rate=model_args.teacher_learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,  # a share of all steps
            weight_decay=0.05,
            label_smoothing_factor=0.1,
            **_stopping_settings(args),
            logging_strategy="epoch",
            eval_strategy="epoch",
            report_to="none",
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,
            **{name: getattr(args, name) for name in SHARED_ARGUMENTS},
        )
        # The teacher learns from labels as they are: nothing erased, nothing mixed.
        settings = dataclasses.replace(
            AugmentationSettings.from_arguments(args, processor.crop_size["height"]),
            random_erasing_prob=0.0,
            mixup_alpha=0.0,
            cutmix_alpha=0.0,
        )
        train_dataset = ViewDataset(data.train, settings, args.seed, args.keep_decoded_images)
        super().__init__(
            *(
                model,
                teacher_args,
                collate,
                train_dataset,
                EvaluationDataset(held_out, evaluation_transform(processor)),
            ),
            processing_class=processor,
            compute_metrics=_figures,
            callbacks=[EarlyStoppingCallback(args.early_stopping_patience)] if args.early_stopping_patience else None,
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=-1),
        )
        self.bad_images = BadImages(data.train, args.on_bad_image, args.max_bad_image_fraction, args.world_size)

        self.interruption = StopAtSignal()
        self.view_sampler, self._resumed_step, self._has_stopped = None, 0, False
        self.callback_handler.callbacks.insert(0, SetEpoch(lambda: self.view_sampler))

    def train_from(self, checkpoint: Path | None, record: dict[str, object]):
        """Train, from a checkpoint if there is one; each checkpoint keeps the [`training_record`]."""
        if checkpoint is not None:
            self._resumed_step, self._has_stopped = step_of(checkpoint), _has_stopped_early(checkpoint)
        self.callback_handler.callbacks.insert(1, CommitCheckpoints(record))
        self.add_callback(self.interruption)
        close_logs = lambda: self.callback_handler.on_train_end(self.args, self.state, self.control)  # noqa: E731
        with (
            self.interruption.listening(self.args, close_logs),
            checkpoint_errors_explained(Path(self.args.output_dir)),
        ):
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def set_initial_training_values(self, args, dataloader, *rest):
        """As in Trainer, which would take one step more where the training of a checkpoint was over."""
        epochs, *between, steps = super().set_initial_training_values(args, dataloader, *rest)
        is_over = self._has_stopped or self._resumed_step >= steps
        return (0 if is_over else epochs, *between, steps)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As in Trainer; a checkpoint is marked as unfinished first, and keeps the names of the weights.

        Else transformers would write those of its earlier versions, which Trainer does not find when it goes on.
        """
        if not _internal_call or not is_checkpoint(output_dir, self.args.output_dir):
            super().save_model(output_dir, _internal_call)
            return
        if self.args.should_save:
            begin_checkpoint(Path(output_dir))
        self.accelerator.wait_for_everyone()
        self.model.save_pretrained = functools.partial(self.model.save_pretrained, save_original_format=False)
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            del self.model.save_pretrained

    def get_train_dataloader(self) -> DataLoader:
        """Each image once an epoch, or each class equally often, in whole optimiser steps."""
        args = self.args
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        sampler = ViewSampler(len(self.train_dataset), step, repeats=1, seed=args.seed, labels=self.labels)
        self.view_sampler = sampler
        loader = training_loader(self.train_dataset, sampler, args, self.data_collator, self.accelerator)
        # Persistent workers drew their seed from torch's stream, which dropout reads, at their first start alone.
        return leaving_sigterm_to_parent(loader, args.dataloader_persistent_workers and self._resumed_step > 0)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """As in Trainer; workers leave signals to their parent."""
        return leaving_sigterm_to_parent(super().get_eval_dataloader(eval_dataset), has_own_stream=False)

    def evaluation_loop(self, *args, **kwargs):
        """As in Trainer. Its loader draws a seed from torch's stream, which dropout reads in the training."""
        with torch.random.fork_rng(devices=[]):
            return super().evaluation_loop(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy with smoothed labels on augmented views; in evaluation with the labels as they are."""
        if not model.training:
            logits = model(pixel_values=inputs["pixel_values"]).logits
            loss = F.cross_entropy(logits, inputs["labels"])
            return (loss, {"logits": logits}) if return_outputs else loss
        self.bad_images.note(inputs["bad_images"], len(inputs["labels"]))
        processor = self.processing_class
        pixel_values = augment(inputs["pixel_values"], inputs["draws"], processor.image_mean, processor.image_std)
        logits = model(pixel_values=pixel_values).logits
        return label_loss(logits, inputs["labels"], self.args.label_smoothing_factor, self.class_weights)


def judged_by(args) -> str:
    """The metric by which a teacher's training stops early: the run's, if a teacher has it, else the accuracy."""
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    return metric if metric in (*FIGURES, "loss") else "accuracy"


def best_in_words(trainer: Trainer) -> str:
    """At which epoch a training was best, by what, and what it has kept."""
    state, metric = trainer.state, trainer.args.metric_for_best_model
    epochs = math.ceil(trainer.args.num_train_epochs)  # the state has none where a checkpoint's training was over
    per_epoch = state.max_steps / epochs
    stopped, best = (round(step / per_epoch) for step in (state.global_step, state.best_global_step))
    return (
        f"after epoch {stopped:,} of {epochs:,}; the weights of epoch {best:,} are kept, with "
        f"{metric} {state.best_metric:.4g}"
    )


def _stopping_settings(args) -> dict[str, object]:
    """Arguments of a training that keeps a checkpoint an epoch, and its best weights where it may stop early."""
    if args.early_stopping_patience is None:
        return {"save_strategy": "epoch"}
    metric = judged_by(args)
    best = {"load_best_model_at_end": True, "metric_for_best_model": metric, "greater_is_better": metric != "loss"}
    return {**best, "save_strategy": "epoch", "restore_callback_states_from_checkpoint": True}


def _has_stopped_early(checkpoint: Path) -> bool:
    callbacks = read_run_file(checkpoint / STATE).get("stateful_callbacks", {})
    stopping = callbacks.get(EarlyStoppingCallback.__name__)
    if stopping is None:
        return False
    counted, patience = stopping["attributes"]["early_stopping_patience_counter"], stopping["args"]
    return counted >= patience["early_stopping_patience"]


def _figures(evaluated) -> dict[str, float]:
    balanced, macro_f1 = class_means(evaluated.label_ids, evaluated.predictions)
    accuracy = float(np.mean(evaluated.predictions == evaluated.label_ids))
    return dict(zip(FIGURES, (accuracy, balanced, macro_f1), strict=True))
