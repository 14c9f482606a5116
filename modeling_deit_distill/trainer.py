"""`DistillationTrainer`: a `transformers.Trainer` whose loss is DeiT's (paper, section 4)."""

import dataclasses
import functools
import logging
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from huggingface_hub import CommitInfo, HfApi
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import TrainerCallback, set_seed
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from .arguments import DistillationTrainingArguments
from .augmentation import AUGMENTATION_VERSION, augment, mix_labels
from .card_pictures import CURVES, plot_training_curves
from .data import BadImages, StreamingViewDataset, ViewDataset, collate, evaluation_view
from .errors import InputError, LocalInputError
from .interruption import deaf_worker
from .losses import hard_distillation_loss, label_loss, soft_distillation_loss
from .metrics import accuracies, predicted_labels
from .model_card import write_model_card
from .publishing import (
    Destination,
    clear_stages,
    open_repository,
    push_run,
    push_stage_of_checkpoint,
    stage_checkpoint,
)
from .resumable_trainer import ResumableTrainer
from .teacher_store import TeacherStore, decode_labels, decode_top_k
from .views import ViewSampler

logger = logging.getLogger(__name__)

# Not decayed besides biases and norms: what is learned per token or position (public code; the distillation token as
# in timm).
UNDECAYED = ("cls_token", "distillation_token", "position_embeddings")


class DistillationTrainer(ResumableTrainer):
    """Train a student on labels and on a teacher: (1 - α)·label loss + α·teacher loss.

    With the distillation token the label term reads the class head and the teacher's term the distillation head; a
    student without it reads both from its one head ("usual distillation"). The teacher sees exactly the pixels that
    the student sees. It is frozen, replicated on each process, and no part of what is saved.

    After an evaluation `decisions` holds, by name, (images,) class indices: the `labels`, those of each head and fusion
    (see `metrics.predicted_labels`), and the `teacher`'s if known.

    Args:
        model: a [`DeiTDistillForImageClassification`].
        args: a [`DistillationTrainingArguments`].
        teacher: a module from `pixel_values` (batch, channels, height, width) to logits (batch, classes), or to an
            output that has `logits`; classes in the student's order. None for `distillation_type="none"`, or where a
            store has all its answers.
        teacher_store: a [`TeacherStore`] for these views: what it has is not asked, what is asked it gets.
        kwargs: as for `transformers.Trainer`. A [`ViewDataset`] is seen in views (repeated augmentation, mixing);
            any other training set yields samples with `pixel_values` and `labels`, which are trained on as they are.

    Raises:
        InputError: a teacher missing or superfluous, or a student with a distillation head that nothing would train.
    """

    # `compute_loss` returns a mean over its batch: Trainer divides by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model=None,
        args: DistillationTrainingArguments = None,
        teacher: nn.Module | None = None,
        teacher_store: TeacherStore | None = None,
        **kwargs,
    ):
        _check_teacher(model, args, teacher, teacher_store)
        self._destination: Destination | None = None  # set by `init_hf_repo`, which Trainer's own set-up calls
        kwargs.setdefault("data_collator", collate)
        if "compute_metrics" not in kwargs:  # a user's own sees the logits themselves
            kwargs["compute_metrics"] = self._compute_metrics
            kwargs.setdefault("preprocess_logits_for_metrics", _decide)
        super().__init__(model=model, args=args, **kwargs)
        self.teacher = None if teacher is None else teacher.to(self.args.device).requires_grad_(False).eval()
        self.teacher_store = teacher_store
        if teacher_store is not None:
            _check_store(teacher_store, self.args, self.train_dataset)
        self._num_asked = 0
        self.teacher_labels: np.ndarray | None = None
        self._teacher_truth: np.ndarray | None = None
        self.decisions: dict[str, np.ndarray] = {}
        self.view_sampler: ViewSampler | None = None
        self.bad_images: BadImages | None = None
        if isinstance(self.train_dataset, (ViewDataset, StreamingViewDataset)):
            rows = getattr(self.train_dataset, "rows", None)
            self.bad_images = BadImages(rows, args.on_bad_image, args.max_bad_image_fraction, args.world_size)
            self.add_callback(_SetEpoch(self))
        self._pixels: torch.Tensor | None = None
        self._terms: dict[str, torch.Tensor] = {}
        self._num_terms = 0

    def train(self, *args, **kwargs):
        """As `Trainer.train`; all draws depend on the seed alone, whatever ran before."""
        # Views are keyed by their own seed; what each process drops of its student should differ.
        views = isinstance(self.train_dataset, (ViewDataset, StreamingViewDataset))
        set_seed(self.args.seed + (self.args.process_index if views else 0))
        return super().train(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """In training the distillation objective, in evaluation the cross-entropy of the fused logits.

        Args:
            inputs: a batch of views (see `data.ViewDataset`), or `pixel_values` (batch, channels, height, width) and
                `labels`, (batch,) or (batch, classes).

        Returns:
            The loss, a scalar; with `return_outputs` also the model's output.
        """
        if not model.training:
            outputs = model(inputs["pixel_values"], labels=inputs["labels"])
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        pixel_values, labels = (
            self._augment(inputs) if "draws" in inputs else (inputs["pixel_values"], inputs["labels"])
        )
        outputs = model(pixel_values)
        terms = {"label_loss": label_loss(outputs.cls_logits, labels, self.args.label_smoothing_factor)}
        loss = terms["label_loss"]
        if self.args.distillation_type != "none":
            answers = self._teacher_answers(inputs, pixel_values)
            terms["teacher_loss"] = self._teacher_loss(outputs, answers)
            decided = answers if self.args.distillation_type == "hard" else answers.argmax(dim=-1)
            terms["teacher_agreement"] = (outputs.logits.argmax(dim=-1) == decided).float().mean()
            alpha = self.args.distillation_alpha
            loss = (1 - alpha) * terms["label_loss"] + alpha * terms["teacher_loss"]
        self._remember(terms)
        return (loss, outputs) if return_outputs else loss

    def evaluate_teacher(self) -> dict[str, float]:
        """Ask the teacher, or its store, about the evaluation set; its answers make `eval_teacher_agreement`.

        Returns:
            `teacher_accuracy`, from 0 to 1; empty where neither knows.
        """
        view = evaluation_view(self.processing_class)
        kept = None if self.teacher_store is None else self.teacher_store.read_validation(view)
        kept = broadcast_object_list([kept])[0]  # another run may be writing it: all processes go one way
        if kept is not None:
            self.teacher_labels, self._teacher_truth = np.array(kept["answers"]), np.array(kept["labels"])
            return {"teacher_accuracy": kept["accuracy"]}
        if self.teacher is None:
            return {}
        answers, labels = [], []
        for batch in self.get_eval_dataloader():
            batch = self._prepare_inputs(batch)
            decided = self._ask_teacher(batch["pixel_values"]).argmax(dim=-1)
            decided, true = self.accelerator.gather_for_metrics((decided, batch["labels"]))
            answers.append(decided.cpu().numpy())
            labels.append(true.cpu().numpy())
        self.teacher_labels, self._teacher_truth = np.concatenate(answers), np.concatenate(labels)
        accuracy = float(np.mean(self.teacher_labels == self._teacher_truth))
        if self.teacher_store is not None and self.is_world_process_zero():
            self.teacher_store.write_validation(view, accuracy, self.teacher_labels, self._teacher_truth)
        return {"teacher_accuracy": accuracy}

    def count_teacher_views(self) -> int:
        """About how many training views the teacher was asked so far, over all processes."""
        return sum(gather_object([self._num_asked]))

    def count_bad_images(self) -> int | None:
        """How many training images could not be read, over all processes; None for a training set of another kind."""
        if self.bad_images is None:
            return None
        return len(set(gather_object(sorted(self.bad_images.seen))))

    def get_train_dataloader(self) -> DataLoader:
        """As in Trainer; a stream yields whole batches of its own share, which Accelerate must not share out again."""
        if not isinstance(self.train_dataset, StreamingViewDataset):
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset,
            batch_size=None,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            worker_init_fn=deaf_worker(None),
            generator=torch.Generator(),
        )

    def init_hf_repo(self, token: str | None = None, private: bool | None = None):
        """Make the repository and the branch that the arguments name, or find them.

        Raises:
            InputError: the Hub refuses, or five tries failed.
        """
        if not self.is_world_process_zero():
            return
        args = self.args
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        private = args.hub_private_repo if private is None else private
        self._destination = open_repository(name, token or args.hub_token, private, args.hub_revision)
        self.hub_model_id = self._destination.repo_id
        self.push_in_progress = None
        clear_stages(args.output_dir)

    def create_model_card(self, *args, **kwargs):
        """Write our card, and the curves, from what lies in `output_dir`; what Trainer's own card takes is not used."""
        if not self.is_world_process_zero():
            return
        output_dir = Path(self.args.output_dir)
        self.state.save_to_json(str(output_dir / "trainer_state.json"))
        plot_training_curves(self.state.log_history, output_dir / CURVES)
        write_model_card(output_dir)

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
        if self._destination is None or token is not None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card()
        self._finish_current_push()
        destination = self._destination
        if revision is not None and revision != destination.revision:
            destination = open_repository(destination.repo_id, destination.token, revision=revision)
        push = functools.partial(push_run, self.args.output_dir, destination, commit_message, self.args.push_native)
        return push() if blocking else HfApi().run_as_future(push)

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
        stage = stage_checkpoint(checkpoint_folder, self.args.output_dir, path_in_repo)
        message = f"Training in progress, step {self.state.global_step}"
        # One thread of the client's runs one push after the other.
        job = HfApi().run_as_future(push_stage_of_checkpoint, stage, self._destination, message, path_in_repo)
        job.add_done_callback(_warn_of_failure)
        earlier = self.push_in_progress.jobs if busy else []
        self.push_in_progress = PushInProgress([*earlier, job])

    def get_decay_parameter_names(self, model) -> list[str]:
        """Names of the parameters that weight decay applies to: no biases, norms, tokens or position embeddings."""
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not name.rsplit(".", 1)[-1].startswith(UNDECAYED)]

    def set_initial_training_values(self, args, dataloader, *rest):
        """As in Trainer; here the number of steps of an epoch is first known, so `warmup_epochs` becomes steps."""
        values = super().set_initial_training_values(args, dataloader, *rest)
        if args.warmup_epochs > 0:
            num_update_steps_per_epoch = values[1]
            args.warmup_steps = round(args.warmup_epochs * num_update_steps_per_epoch)
        return values

    def log(self, logs: dict[str, float], *args, **kwargs):
        """As in Trainer, with the label term, the teacher's term and their agreement since the last log."""
        if "loss" in logs and self._num_terms:
            means = torch.stack(list(self._terms.values())) / self._num_terms
            means = self.accelerator.reduce(means, reduction="mean").tolist()
            logs.update(zip(self._terms, means, strict=True))
            self._terms, self._num_terms = {}, 0
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        # Whole optimiser steps only; `dataloader_drop_last` would cut the evaluation set as well.
        dataset = self.train_dataset if train_dataset is None else train_dataset
        args, step = self.args, self.args.effective_batch_size
        if not isinstance(dataset, ViewDataset):
            return RandomSampler(dataset, num_samples=max(len(dataset) // step * step, min(len(dataset), step)))
        self.view_sampler = ViewSampler(
            len(dataset), step, args.repeated_augmentation, dataset.seed, args.train_batch_size, dataset.settings.mixes
        )
        return self.view_sampler

    def _augment(self, inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model and the teacher see: (batch, 3, height, width) float, and labels, mixed if views are."""
        self.bad_images.note(inputs["bad_images"], len(inputs["labels"]) / self.args.repeated_augmentation)
        pixel_values, draws = inputs["pixel_values"], inputs["draws"]
        mean = getattr(self.processing_class, "image_mean", IMAGENET_DEFAULT_MEAN)
        std = getattr(self.processing_class, "image_std", IMAGENET_DEFAULT_STD)
        if self._pixels is None or self._pixels.shape != pixel_values.shape:
            self._pixels = torch.empty_like(pixel_values, dtype=torch.float32)
        pixel_values = augment(pixel_values, draws, mean, std, out=self._pixels)
        return pixel_values, mix_labels(inputs["labels"], draws.mix_ratio, self.model.config.num_labels)

    def _teacher_answers(self, inputs, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the teacher says about a batch: class indices (batch,) for hard distillation, logits for soft.

        With a store it is always what the store keeps, also in the run that writes it: the same weights come out.
        """
        store, hard = self.teacher_store, self.args.distillation_type == "hard"
        if store is None:
            logits = self._ask_teacher(pixel_values)
            self._num_asked += len(logits)
            return logits.argmax(dim=-1) if hard else logits
        epoch, positions = int(inputs["epoch"][0]), inputs["position"]
        entries, known = store.read(epoch, positions)
        if not known.all():
            self._check_asked(epoch, known)
            # The whole batch, though only some of it may be unknown: the same shapes give the same bits.
            answered = store.encode(self._ask_teacher(pixel_values))
            self._num_asked += len(positions)
            store.write(epoch, positions[~known], answered[~known])
            entries = np.where(known, entries, answered)
        if hard:
            return decode_labels(entries, pixel_values.device)
        num_classes, temperature = self.model.config.num_labels, self.args.distillation_temperature
        return decode_top_k(entries, num_classes, temperature, pixel_values.device)

    def _check_asked(self, epoch: int, known: np.ndarray):
        if self.teacher is None:
            raise LocalInputError(
                f"teacher_store {str(self.teacher_store.directory)!r} lacks {np.count_nonzero(~known)} of "
                f"{len(known)} views of a batch of epoch {epoch}, and there is no teacher to ask; name it "
                "(--teacher_name_or_path), or fill the store"
            )

    @torch.no_grad()
    def _ask_teacher(self, pixel_values: torch.Tensor) -> torch.Tensor:
        output = self.teacher(pixel_values)
        logits = output.logits if hasattr(output, "logits") else output
        if logits.shape[-1] != self.model.config.num_labels:
            raise InputError(
                f"the teacher has {logits.shape[-1]} classes, the student {self.model.config.num_labels}; they must be "
                "the same classes in the same order"
            )
        return logits

    def _teacher_loss(self, outputs, answers: torch.Tensor) -> torch.Tensor:
        student_logits = outputs.cls_logits if outputs.distillation_logits is None else outputs.distillation_logits
        if self.args.distillation_type == "hard":
            return hard_distillation_loss(student_logits, answers)
        return soft_distillation_loss(student_logits, answers, self.args.distillation_temperature)

    def _remember(self, terms: dict[str, torch.Tensor]):
        # Kept on the device: reading them at each step would make the host wait for it.
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, 0.0) + value.detach()
        self._num_terms += 1

    def _compute_metrics(self, evaluated) -> dict[str, float]:
        labels = evaluated.label_ids
        known = self.teacher_labels is not None and np.array_equal(self._teacher_truth, labels)
        teacher_labels = self.teacher_labels if known else None
        self.decisions = {"labels": labels, **evaluated.predictions}
        if known:
            self.decisions["teacher"] = teacher_labels
        return accuracies(evaluated.predictions, labels, teacher_labels)


class _SetEpoch(TrainerCallback):
    """Tells the sampler the epoch; what Trainer and Accelerate wrap around it does not always pass it on."""

    def __init__(self, trainer: DistillationTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Before the epoch's first view is drawn."""
        if self.trainer.view_sampler is not None:
            self.trainer.view_sampler.set_epoch(int(state.epoch or 0))


def _warn_of_failure(push: Future):
    if not push.cancelled() and push.exception() is not None:
        logger.warning("%s; training goes on, and the next push brings what this one lacked", push.exception())


def _decide(logits: tuple[torch.Tensor, ...], labels: torch.Tensor) -> dict[str, torch.Tensor]:
    return predicted_labels(*logits)


def _check_store(store: TeacherStore, args: DistillationTrainingArguments, dataset):
    """What a trainer can tell of whether the answers are about its views; `train_deit.py` compares all the rest."""
    if not isinstance(dataset, ViewDataset):
        raise InputError("a teacher_store keeps answers by position; a stream has none, nor has a dataset of yours")
    wanted = {
        **dataclasses.asdict(dataset.settings),
        "augmentation_version": AUGMENTATION_VERSION,
        "num_images": len(dataset),
        "data_seed": dataset.seed,
        "repeated_augmentation": args.repeated_augmentation,
        "distillation_type": args.distillation_type,
    }
    if args.distillation_type == "soft":
        wanted["temperature"] = args.distillation_temperature
    store.check(wanted)


def _check_teacher(model, args: DistillationTrainingArguments, teacher, teacher_store):
    if args.distillation_type == "none":
        if teacher is not None or teacher_store is not None:
            raise InputError("distillation_type is 'none' but a teacher was given; choose soft or hard, or drop it")
        if model.config.use_distillation_token:
            raise InputError(
                "distillation_type is 'none' but use_distillation_token is true: nothing would train the distillation "
                "head, and it would still enter the mean; set use_distillation_token to false"
            )
    elif teacher is None and teacher_store is None:
        raise InputError(
            f"distillation_type is {args.distillation_type!r} but there is no teacher; give --teacher_name_or_path, "
            "--train_teacher true with --teacher_config_name, or --distillation_type none"
        )
