"""`DistillationTrainer`: a `transformers.Trainer` whose loss is DeiT's (paper, section 4)."""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import TrainerCallback, set_seed
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.trainer_utils import has_length

from .arguments import DistillationTrainingArguments
from .augmentation.augment import AUGMENTATION_VERSION, augment, mix_labels
from .data.bad_images import BadImages
from .data.datasets import StreamingViewDataset, ViewDataset, collate
from .data.evaluation import evaluation_view
from .data.views import ViewSampler
from .errors import InputError, LocalInputError
from .losses import hard_distillation_loss, label_loss, soft_distillation_loss
from .publishing.publishing_trainer import PublishingTrainer
from .teachers.store import TeacherStore, decode_labels, decode_top_k
from .training.average import WeightAverage, choose_weights, start_average
from .training.checkpoints import last_complete
from .training.finite import FiniteGuard, check_finite_weights
from .training.interruption import deaf_worker
from .training.metrics import accuracies, predicted_labels
from .training.schedule import schedule, short_of_the_peak

logger = logging.getLogger(__name__)

# Not decayed besides biases and norms: what is learned per token or position. The public code decays the distillation
# token, timm does not.
UNDECAYED = ("cls_token", "position_embeddings")
# The terms of the objective.
LOSSES = ("label_loss", "teacher_loss")
LOSS_BY_IMAGE = "loss"


class DistillationTrainer(PublishingTrainer):
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
        if model.config.problem_type not in (None, "single_label_classification"):
            raise InputError(
                f"config.problem_type is {model.config.problem_type!r}; distillation is of one class out of several"
            )
        self._steps_per_epoch: int | None = None
        self._flops_per_view = _count_flops(model)  # while the weights are whole: they may be sharded later
        self.ema: WeightAverage | None = None
        self._ema_decisions: dict[str, np.ndarray] = {}
        self._evaluated: list[tuple[dict, np.ndarray]] = []  # batches of the evaluation under way, and their labels
        kwargs.setdefault("data_collator", collate)
        if "compute_metrics" not in kwargs:  # a user's own sees the logits themselves
            kwargs["compute_metrics"] = self._compute_metrics
            kwargs.setdefault("preprocess_logits_for_metrics", _decide)
        super().__init__(model=model, args=args, **kwargs)
        self.args.dataloader_drop_last = False  # Trainer would also drop images of the evaluation
        if self.args.weight_average_decay is not None:
            fsdp = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
            if self.is_deepspeed_enabled or getattr(fsdp, "fsdp_version", 2) != 2:
                raise InputError(
                    "ema_decay and ema_half_life cannot follow weights that DeepSpeed or FSDP 1 shards; leave them "
                    "out, or launch with DDP or FSDP 2"
                )
            self.add_callback(_UpdateAverage(self))
        self.teacher = None if teacher is None else teacher.to(self.args.device).requires_grad_(False).eval()
        self.teacher_store = teacher_store
        if teacher_store is not None:
            _check_store(teacher_store, self.args, self.train_dataset)
        self._num_asked = 0
        self._seconds, self._loss_sum, self._started = 0.0, 0.0, time.monotonic()
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
        gather = gather_object if args.world_size > 1 else list
        self.finite = FiniteGuard(args.max_nonfinite_steps, gather, self._what_to_do_about_nonfinite_steps)
        self._answers_are_finite: torch.Tensor | None = None

    def train(self, *args, **kwargs):
        """As `Trainer.train`; all draws depend on the seed alone, whatever ran before."""
        self.finite.start()
        # Views are keyed by their own seed; what each process drops of its student should differ.
        views = isinstance(self.train_dataset, (ViewDataset, StreamingViewDataset))
        set_seed(self.args.seed + (self.args.process_index if views else 0))
        self._seconds, self._loss_sum, self._started = 0.0, 0.0, time.monotonic()
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
            self._answers_are_finite = None  # those of a store are
            answers = self._teacher_answers(inputs, pixel_values)
            terms["teacher_loss"] = self._teacher_loss(outputs, answers)
            if self._answers_are_finite is not None:  # the index of a NaN is a class like any other
                terms["teacher_loss"] = torch.where(self._answers_are_finite, terms["teacher_loss"], torch.nan)
            decided = answers if self.args.distillation_type == "hard" else answers.argmax(dim=-1)
            terms["teacher_agreement"] = (outputs.logits.argmax(dim=-1) == decided).float().mean()
            alpha = self.args.distillation_alpha
            loss = (1 - alpha) * terms["label_loss"] + alpha * terms["teacher_loss"]
        loss = self.finite.watch(loss, {name: terms[name] for name in LOSSES if name in terms}, inputs)
        self._remember({"loss": loss, **terms})
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
            persistent_workers=self.args.dataloader_persistent_workers,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            worker_init_fn=deaf_worker(None),
            generator=torch.Generator(),
        )

    def get_decay_parameter_names(self, model) -> list[str]:
        """Names of the parameters that weight decay applies to: no biases, norms, tokens or position embeddings."""
        names = super().get_decay_parameter_names(model)
        undecayed = UNDECAYED if self.args.code_compatible else (*UNDECAYED, "distillation_token")
        return [name for name in names if not name.rsplit(".", 1)[-1].startswith(undecayed)]

    def set_initial_training_values(self, args, dataloader, *rest):
        """As in Trainer; here the number of steps of an epoch is first known, so `warmup_epochs` becomes steps."""
        values = super().set_initial_training_values(args, dataloader, *rest)
        if args.code_compatible and not has_length(dataloader):
            raise InputError("code_compatible changes the learning rate by epochs, which a stream has not; drop one")
        self._steps_per_epoch, num_steps = values[1], values[-1]
        if args.warmup_epochs > 0:
            args.warmup_steps = round(args.warmup_epochs * self._steps_per_epoch)
        warning = short_of_the_peak(num_steps, args.get_warmup_steps(num_steps))
        if warning is not None and self.is_world_process_zero():
            logger.warning(warning)
        return values

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> LambdaLR:
        """The schedule of `schedule.py`; any other than `cosine` and `constant_with_warmup` is Trainer's."""
        if self._steps_per_epoch is None:  # called from outside, before training
            self.set_initial_training_values(self.args, self.get_train_dataloader())
        share = schedule(self.args, num_training_steps, self._steps_per_epoch)
        if share is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, share)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As in Trainer, if the weights are finite; with a checkpoint's go those of their average.

        Raises:
            InputError: they are not, or too many steps in a row were not. Nothing was written.
        """
        self.finite.read()
        anywhere = (lambda flag: any(gather_object([flag]))) if self.is_fsdp_enabled else bool
        what, remedy = f"step {self.state.global_step}", self._what_to_do_about_nonfinite_steps()
        check_finite_weights(self.model.named_parameters(), what, remedy, anywhere)
        super().save_model(output_dir, _internal_call)
        # `output_dir` itself is for the final model, which is one of the two.
        if self.ema is not None and output_dir not in (None, self.args.output_dir):
            self.ema.save(output_dir, is_writer=self.args.should_save)

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """As in Trainer; the metrics of the weights' average, if one is kept, stand beside under `<prefix>_ema_`."""
        settings = (dataloader, description, prediction_loss_only, ignore_keys)
        with self._weights_kept():
            output = super().evaluation_loop(*settings, metric_key_prefix)
        if self.ema is None or description != "Evaluation":
            return output
        decisions = self.decisions
        # A loader draws a seed whenever it is read; training is to go on as it would without an average.
        with torch.random.fork_rng(devices=[]), self.ema.swapped_in(self.model), self._weights_kept():
            averaged = super().evaluation_loop(*settings, f"{metric_key_prefix}_ema")
        self.decisions, self._ema_decisions = decisions, self.decisions
        output.metrics.update(averaged.metrics)
        return output

    @contextmanager
    def _weights_kept(self) -> Iterator[None]:
        """Around an evaluation: `bf16_full_eval` and `fp16_full_eval` round the model itself, which is saved later."""
        own = [parameter.data for parameter in self.model.parameters()]
        self._evaluated = []
        try:
            yield
        finally:
            for parameter, weight in zip(self.model.parameters(), own, strict=True):
                if parameter.dtype != weight.dtype:
                    parameter.data = weight

    def choose_final_weights(self, metrics: dict[str, float]) -> dict[str, float | str]:
        """Put the average in the model's place if it is better, and end it; to be called after training.

        Args:
            metrics: what `evaluate` returned last.

        Returns:
            See `ema.choose_weights`; empty where no average is kept.
        """
        if self.ema is None:
            return {}
        chosen = choose_weights(metrics)
        if chosen["final_weights"] == "ema":
            self.ema.copy_to(self.model)
            self.decisions = self._ema_decisions
        self.ema = None
        return chosen

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        # Only here the weights are those to start from, on their device.
        self.ema = start_average(self.model, self.args.weight_average_decay, resume_from_checkpoint)
        if resume_from_checkpoint is not None:
            self._count_on(Path(resume_from_checkpoint))
        return prepared

    def _load_best_model(self):
        super()._load_best_model()
        if self.ema is not None:
            self.ema.load(self.state.best_model_checkpoint)

    def log(self, logs: dict[str, float], *args, **kwargs):
        """As in Trainer, with the label term, the teacher's term and their agreement since the last log.

        All are means over the batches whose loss was finite; `FiniteGuard` tells of the others.
        """
        if "loss" in logs and self._terms:
            sums = self.accelerator.reduce(torch.stack(list(self._terms.values())), reduction="sum").tolist()
            *sums, batches = sums
            means = [total / batches if batches else math.nan for total in sums]
            logs.update(zip(list(self._terms)[:-1], means, strict=True))
            self._terms = {}
        if "train_loss" in logs:
            self._complete_summary(logs)
        super().log(logs, *args, **kwargs)

    def _complete_summary(self, logs: dict[str, float]):
        """Make Trainer's last words of the whole run what they are of its last part."""
        self.finite.read()
        steps, seconds = self.state.global_step, self._count()["seconds"]
        loss_sum = self._loss_sum + self._total_loss_scalar * self.finite.share_of_losses()
        logs["train_loss"] = loss_sum / max(steps, 1)
        batch = self.args.effective_batch_size
        if has_length(self.train_dataset) and not isinstance(self.train_dataset, ViewDataset):
            batch = min(batch, len(self.train_dataset))  # see `_get_train_sampler`
        logs["train_runtime"] = round(seconds, 4)
        logs["train_steps_per_second"] = round(steps / seconds, 3)
        logs["train_samples_per_second"] = round(steps * batch / seconds, 3)

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

    def _save_rng_state(self, output_dir: str):
        super()._save_rng_state(output_dir)  # where Trainer writes one file of each process
        loss = (self._total_loss_scalar + self._tr_loss.item()) * self.finite.share_of_losses()
        counts = {**self._count(), "loss_sum": self._loss_sum + loss}
        Path(output_dir, f"counts_{self.args.process_index}.json").write_text(json.dumps(counts) + "\n")

    def _count(self) -> dict[str, object]:
        """What this process has counted, over all resumptions: seconds of training, views asked about, bad rows."""
        seconds = self._seconds + time.monotonic() - self._started
        bad_rows = [] if self.bad_images is None else sorted(self.bad_images.seen)
        return {"seconds": seconds, "teacher_views": self._num_asked, "bad_rows": bad_rows}

    def _count_on(self, checkpoint: Path):
        # The main process takes up what all had counted, since they may be fewer or more by now.
        counts = [json.loads(path.read_text()) for path in checkpoint.glob("counts_*.json")]
        self._seconds = max((count["seconds"] for count in counts), default=0.0)
        self._loss_sum = sum(count["loss_sum"] for count in counts) / max(len(counts), 1)
        if not self.is_world_process_zero():
            return
        self._num_asked = sum(count["teacher_views"] for count in counts)
        if self.bad_images is not None:
            self.bad_images.seen.update(row for count in counts for row in count["bad_rows"])

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

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """As in Trainer; a loss that is not finite adds nothing to the sum it keeps, which would be lost for good."""
        loss = super().training_step(*args, **kwargs)
        return torch.where(loss.isfinite(), loss, 0.0)

    @property
    def step_was_skipped(self) -> torch.Tensor:
        """Whether the optimiser has left the last step out: bool on the device; known after `optimizer.step()`."""
        if self.accelerator.scaler is not None:  # which decides itself
            return torch.tensor(self.accelerator.optimizer_step_was_skipped, device=self.args.device)
        return self.finite.skipped

    def floating_point_ops(self, inputs) -> int:
        """About what a training step on these views takes: 6 for each parameter and token (Kaplan et al. 2020).

        Trainer asks at every step and would count the parameters anew each time, and pixels for tokens.
        """
        return self._flops_per_view * len(inputs["labels"])

    def _get_grad_norm(self, model, grad_norm=None):
        # Between gradients and optimiser; Trainer itself needs the norm for its log.
        if grad_norm is None and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            # Trainer would look for all parameters, and multiply their gradients by one.
            self.accelerator.unscale_gradients()
            groups = self.optimizer.param_groups
            grad_norm = get_total_norm([p.grad for group in groups for p in group["params"] if p.grad is not None])
        grad_norm = super()._get_grad_norm(model, grad_norm)
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        self.finite.decide(self.state.global_step + 1, model, optimizer, grad_norm, self.accelerator.scaler)
        return grad_norm

    def _what_to_do_about_nonfinite_steps(self) -> str:
        folder = Path(self.args.output_dir)
        checkpoint, _ = last_complete(folder, contents=False)
        kept = f"the last checkpoint, {checkpoint}, is kept" if checkpoint else "no checkpoint was saved yet"
        precision = "--bf16 true instead of fp16 and " if self.args.fp16 else ""
        return f"{kept}; try {precision}a lower learning_rate (now {self.args.learning_rate:g})"

    @torch.no_grad()
    def _ask_teacher(self, pixel_values: torch.Tensor) -> torch.Tensor:
        output = self.teacher(pixel_values)
        logits = output.logits if hasattr(output, "logits") else output
        if logits.shape[-1] != self.model.config.num_labels:
            raise InputError(
                f"the teacher has {logits.shape[-1]} classes, the student {self.model.config.num_labels}; they must be "
                "the same classes in the same order"
            )
        self._answers_are_finite = logits.amax(dim=-1).isfinite().all()
        return logits

    def _teacher_loss(self, outputs, answers: torch.Tensor) -> torch.Tensor:
        student_logits = outputs.cls_logits if outputs.distillation_logits is None else outputs.distillation_logits
        if self.args.distillation_type == "hard":
            return hard_distillation_loss(student_logits, answers)
        temperature, code_compatible = self.args.distillation_temperature, self.args.code_compatible
        return soft_distillation_loss(student_logits, answers, temperature, code_compatible)

    def _remember(self, terms: dict[str, torch.Tensor]):
        # Kept on the device: reading them at each step would make the host wait for it.
        is_finite = terms["loss"].detach().isfinite()
        for name, value in {**terms, "batches": torch.ones_like(terms["loss"])}.items():
            self._terms[name] = self._terms.get(name, 0.0) + torch.where(is_finite, value.detach(), 0.0)

    def _compute_metrics(self, evaluated, compute_result: bool = True) -> dict[str, float]:
        # Whole arrays, lists of batches (`eval_do_concat_batches` false), or a call a batch (`batch_eval_metrics`).
        are_lists = isinstance(evaluated.label_ids, list)
        given = (evaluated.predictions, evaluated.label_ids)
        self._evaluated += zip(*given, strict=True) if are_lists else [given]
        if not compute_result:
            return {}
        names = self._evaluated[0][0]
        predictions = {name: _joined([batch[name] for batch, _ in self._evaluated]) for name in names}
        labels = _joined([batch for _, batch in self._evaluated])
        self._evaluated = []
        loss = float(np.mean(predictions.pop(LOSS_BY_IMAGE), dtype=np.float64))
        known = self.teacher_labels is not None and np.array_equal(self._teacher_truth, labels)
        teacher_labels = self.teacher_labels if known else None
        self.decisions = {"labels": labels, **predictions}
        if known:
            self.decisions["teacher"] = teacher_labels
        return {"loss": loss, **accuracies(predictions, labels, teacher_labels)}


class _SetEpoch(TrainerCallback):
    """Tells the sampler the epoch; what Trainer and Accelerate wrap around it does not always pass it on."""

    def __init__(self, trainer: DistillationTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Before the epoch's first view is drawn."""
        if self.trainer.view_sampler is not None:
            self.trainer.view_sampler.set_epoch(int(state.epoch or 0))


class _UpdateAverage(TrainerCallback):
    """Moves the weights' average after each optimiser step that was taken."""

    def __init__(self, trainer: DistillationTrainer):
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, **kwargs):
        """A step that was left out has changed nothing, and does not count."""
        skipped = self.trainer.step_was_skipped
        if skipped.device.type != "cpu" and not self.trainer.is_fsdp_enabled:
            self.trainer.ema.update(self.trainer.model, skipped)  # the host does not wait to know
        elif not skipped:
            self.trainer.ema.update(self.trainer.model)


def _joined(batches: list[np.ndarray | torch.Tensor]) -> np.ndarray:
    return np.concatenate([batch.cpu().numpy() if isinstance(batch, torch.Tensor) else batch for batch in batches])


def _decide(logits: tuple[torch.Tensor, ...], labels: torch.Tensor) -> dict[str, torch.Tensor]:
    # Trainer's own loss is one of batches, which several processes fill up with images that were counted already.
    losses = F.cross_entropy(logits[0].float(), labels, reduction="none")
    return {**predicted_labels(*logits), LOSS_BY_IMAGE: losses}


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


def _count_flops(model) -> int:
    embeddings = model.base_model.embeddings
    height, width = embeddings.grid(embeddings.image_size)
    num_prefix_tokens = 2 if model.config.use_distillation_token else 1
    return 6 * (num_prefix_tokens + height * width) * model.num_parameters()


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
