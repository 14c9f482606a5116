"""`DistillationTrainer`: a `transformers.Trainer` whose loss is DeiT's (paper, section 4)."""

import functools

from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, set_seed
from transformers.trainer_utils import PredictionOutput, has_length

from .arguments import DistillationTrainingArguments
from .data.datasets import collate
from .data.evaluation import chosen_set, evaluation_view
from .data.loaders import SetEpoch, seed_of_process, training_loader, training_sampler, views_per_step
from .data.views import ViewSampler
from .publishing.publisher import Publisher
from .publishing.repository import going_on_without_the_hub
from .stopping import StopAtSignal, leaving_sigterm_to_parent
from .teachers.store import TeacherStore
from .training.answers import Answers
from .training.average import AverageWeights
from .training.causes import explain_weights
from .training.checkpoints import Checkpoints
from .training.early_stopping import early_stopping
from .training.finite import FiniteGuard, gradient_norm
from .training.given import Given
from .training.layers import freeze, scaled_by_layer
from .training.metrics import HeldOutMetrics
from .training.objective import Views, answered_ahead, logged_shares, objective_terms, total_loss
from .training.progress import Progress, count_flops
from .training.schedule import decayed_names, resolve_warmup, schedule
from .weights import check_finite_weights


class DistillationTrainer(Trainer):
    """Train a student on labels and on a teacher: (1 - α)·label loss + α·teacher loss.

    The teacher sees exactly the pixels that the student sees. It is frozen, whole on each process, and not saved. What
    happens beside the loss is done by callbacks, in this order: `SetEpoch`, `average`, `progress`, `checkpoints` (which
    makes a saved folder a checkpoint), `publisher`, Trainer's, early stopping, the user's, `interruption`.

    Args:
        model: a [`DeiTDistillForImageClassification`].
        args: a [`DistillationTrainingArguments`].
        teacher: a module from `pixel_values` (batch, channels, height, width) to logits (batch, classes in the
            student's order), or to an output that has `logits`. None without one, or where a store has all answers.
        teacher_store: a [`TeacherStore`] for these views: what it has is not asked, what is asked it gets.
        callbacks, kwargs: as for `transformers.Trainer`. A [`ViewDataset`] is seen in views (repeated augmentation,
            mixing); any other training set yields samples with `pixel_values` and `labels`, trained on as they are.

    Raises:
        InputError: what it could not use, see [`Given`].
    """

    # `compute_loss` returns a mean over its batch: Trainer divides by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model=None,
        args: DistillationTrainingArguments = None,
        teacher: nn.Module | None = None,
        teacher_store: TeacherStore | None = None,
        callbacks: list | None = None,
        **kwargs,
    ):
        self.given = Given(model, args, teacher, teacher_store, kwargs)
        self.args = args = self.given.args
        self.train_dataset = dataset = kwargs.get("train_dataset")
        self.model_init = kwargs.get("model_init")
        student = model or self.call_model_init()  # Trainer makes another
        self.views = Views(args, dataset, kwargs.get("processing_class"), student.config)
        self.answers = Answers(args, teacher, teacher_store, dataset, student.config.num_labels)
        self.finite = FiniteGuard.from_arguments(args, self.answers.teacher)
        self.average = AverageWeights(args.weight_average_decay, lambda: self.finite.step_was_skipped(self.accelerator))
        self.progress, self.checkpoints = Progress(self.answers, self.views.bad_images), Checkpoints(args)
        announce = lambda: self.callback_handler.on_push_begin(self.args, self.state, self.control)  # noqa: E731
        self.publisher = Publisher(args, student.config, announce)
        self.interruption, self.metrics = StopAtSignal(), HeldOutMetrics()
        self.view_sampler = self._steps_per_epoch = None
        self._flops_per_view = count_flops(student)  # while the weights are whole: they may be sharded later
        kwargs["data_collator"] = kwargs.get("data_collator") or collate
        if kwargs.get("compute_metrics") is None:  # a user's own sees the logits themselves
            kwargs |= {"compute_metrics": self.metrics, "preprocess_logits_for_metrics": self.metrics.decide}
        own = [SetEpoch(lambda: self.view_sampler), self.average, self.progress, self.checkpoints, self.publisher]
        super().__init__(model=model, args=args, callbacks=[*early_stopping(args), *(callbacks or [])], **kwargs)
        self.callback_handler.callbacks[:0] = own  # before reporters too: what they see of a checkpoint is whole
        self.add_callback(self.interruption)
        args.dataloader_drop_last = False  # Trainer would also drop images of the evaluation
        self.average.check(self.accelerator)

    def train(self, resume_from_checkpoint: str | bool | None = None, trial=None, **kwargs):
        """As `Trainer.train`; all draws depend on the seed alone. True resumes from the last complete checkpoint.

        Raises:
            InputError: a checkpoint that cannot be resumed from, or a full disk.
            Interrupted: a signal came; a checkpoint was made.
        """
        self.given.check_trial(trial)
        settings = (self.args, self.train_dataset, self.model, self.is_fsdp_enabled, self.answers.teacher)
        checkpoint = self.checkpoints.open(resume_from_checkpoint, *settings)
        self.finite.start()
        self.average.start(self.checkpoints.resumed)
        self.progress.start(self.checkpoints.resumed)
        set_seed(seed_of_process(self.train_dataset, self.args))
        close_logs = lambda: self.callback_handler.on_train_end(self.args, self.state, self.control)  # noqa: E731
        with self.interruption.listening(self.args, close_logs), self.checkpoints.errors_explained(self.args):
            output = super().train(checkpoint, trial, **kwargs)
        self.average.end(self.args, self.state)
        self.checkpoints.end(self.args, self.state)
        self.interruption.pass_on(self.args, self.state)
        return output._replace(training_loss=output.metrics["train_loss"])  # which a step that is not finite spares

    def call_model_init(self, trial=None):
        """As in Trainer; what is made must be a student, and what it drops depends on the process."""
        model = super().call_model_init(trial)
        self.given.check_student(model)
        set_seed(seed_of_process(self.train_dataset, self.args))
        return model

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """In training the distillation objective, in evaluation the cross-entropy of the fused logits.

        `inputs` are a batch of views (see `data.datasets.ViewDataset`), or `pixel_values` (batch, channels, height,
        width) and `labels`, (batch,) or (batch, classes).
        """
        if not model.training:
            outputs = model(inputs["pixel_values"], labels=inputs["labels"])
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        pixel_values, labels, labelled = self.views(inputs)
        outputs = model(pixel_values)
        answers = self.answers(inputs, pixel_values)
        terms = objective_terms(outputs, labels, answers, self.args, self.views.class_weights, labelled)
        if answers is not None:
            terms["teacher_loss"] = self.answers.checked(terms["teacher_loss"])
        loss = self.finite.watch(total_loss(terms, self.args.distillation_alpha), terms, inputs, pixel_values)
        self.progress.remember({"loss": loss, **terms, **logged_shares(outputs.logits, answers, labelled)})
        return (loss, outputs) if return_outputs else loss

    def evaluate_teacher(self) -> dict[str, float]:
        """Ask the teacher, or its store, about each evaluation set; see [`HeldOutMetrics.ask_teacher`]."""
        shown = (self.get_eval_dataloader, evaluation_view(self.processing_class), self.accelerator)
        return self.metrics.ask_teacher(self.eval_dataset, functools.partial(self.answers.about_held_out, *shown))

    def predict(self, *args, **kwargs) -> PredictionOutput:
        """As in Trainer: `predictions` are the fused logits; beside them `decisions`, see [`Prediction`]."""
        return self.metrics.as_prediction(super().predict(*args, **kwargs))

    def get_train_dataloader(self) -> DataLoader:
        """Batches of views in the order of [`ViewSampler`], or of samples in a random one."""
        sampler = training_sampler(self.train_dataset, self.args)
        self.view_sampler = sampler if isinstance(sampler, ViewSampler) else None
        loader = training_loader(self.train_dataset, sampler, self.args, self.data_collator, self.accelerator)
        return leaving_sigterm_to_parent(loader)

    def get_batch_samples(self, *args, **kwargs) -> tuple[list[dict], object]:
        """As in Trainer, the batches of a step; the teacher may be asked about them now, see [`answered_ahead`]."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        return answered_ahead(batches, self.views, self.answers), num_items

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """As in Trainer; workers leave SIGTERM to their parent."""
        self.metrics.dataset = chosen_set(self.eval_dataset, eval_dataset)
        return leaving_sigterm_to_parent(super().get_eval_dataloader(eval_dataset))

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        """As in Trainer; workers leave SIGTERM to their parent."""
        self.metrics.dataset = test_dataset
        return leaving_sigterm_to_parent(super().get_test_dataloader(test_dataset))

    def get_decay_parameter_names(self, model) -> list[str]:
        """Names of the parameters that weight decay applies to: no biases, norms, tokens or position embeddings."""
        return decayed_names(super().get_decay_parameter_names(model), self.args.code_compatible)

    def set_initial_training_values(self, args, dataloader, *rest):
        """As in Trainer; here the number of steps of an epoch is first known, so `warmup_epochs` becomes steps."""
        self.given.check_unchanged()
        self.answers.check_store()
        epochs, steps_per_epoch, *between, steps = super().set_initial_training_values(args, dataloader, *rest)
        self._steps_per_epoch = steps_per_epoch
        resolve_warmup(args, steps, steps_per_epoch if has_length(dataloader) else None)
        return (self.checkpoints.epochs_left(epochs, steps), steps_per_epoch, *between, steps)

    def create_optimizer(self, model=None):
        """As in Trainer, of the layers that train; with `layer_decay` each has its share of the learning rate."""
        freeze(self.model, self.args.freeze_blocks)
        return self.optimizer or scaled_by_layer(super().create_optimizer(model), self.model, self.args.layer_decay)

    def create_scheduler(self, num_training_steps: int, optimizer=None) -> LambdaLR:
        """The schedule of `training/schedule.py`; any other than `cosine` and `constant_with_warmup` is Trainer's."""
        if self._steps_per_epoch is None:  # called from outside, before training
            self.set_initial_training_values(self.args, self.get_train_dataloader())
        is_given, share = self.lr_scheduler is not None, schedule(self.args, num_training_steps, self._steps_per_epoch)
        super().create_scheduler(num_training_steps, optimizer)
        if share is not None and not is_given:
            self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, share)
        return self.lr_scheduler

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """As in Trainer; where weights or too many steps are not finite, an `InputError`, and nothing is written."""
        self.finite.read()
        what, remedy = f"step {self.state.global_step}", explain_weights(self.args, self.finite.all_skipped)
        check_finite_weights(self.model.named_parameters(), what, remedy, is_sharded=self.is_fsdp_enabled)
        if _internal_call:
            self.checkpoints.begin(output_dir, self.args)
        super().save_model(output_dir, _internal_call)

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix="eval", **kwargs):
        """As in Trainer; the metrics of the weights' average, if one is kept, stand beside under `<prefix>_ema_`."""
        evaluate = functools.partial(super().evaluation_loop, dataloader, description, *args, **kwargs)
        return self.average.evaluated_too(evaluate, self.model, self.metrics, metric_key_prefix, description)

    def log(self, logs: dict[str, float], *args, **kwargs):
        """As in Trainer, with the means of the objective's terms, and at the end with figures of the whole run."""
        if "train_loss" in logs:
            self.finite.read()
        batch = 0 if self.train_dataset is None else views_per_step(self.train_dataset, self.args)  # evaluation alone
        self.progress.add_to(logs, self.state.global_step, batch)
        super().log(logs, *args, **kwargs)

    def floating_point_ops(self, inputs) -> int:
        """As `count_flops`; Trainer asks at every step, would count the parameters anew, and take pixels for tokens."""
        return self._flops_per_view * len(inputs["pixel_values"])

    def init_hf_repo(self, token: str | None = None, private: bool | None = None):
        """Make the repository and the branch that the arguments name, or find them; see [`Publisher.open`]."""
        with going_on_without_the_hub():
            self.hub_model_id = self.publisher.open(token, private)

    def create_model_card(self, *args, results: dict[str, float] | None = None, **kwargs):
        """Write our card and the curves, with what Trainer's takes, such as `tags`; see [`Publisher.write_card`]."""
        self.publisher.write_card(self.state, results, *args, **kwargs)

    def push_to_hub(self, commit_message="End of training", blocking=True, token=None, revision=None, **kwargs):
        """As in Trainer, after the pushes that are under way: see [`Publisher.push`] and `create_model_card`."""
        private = kwargs.pop("private", None)
        self.save_model(_internal_call=True)
        if self.publisher.destination is None or token is not None:
            self.hub_model_id = self.publisher.open(token, private)
        self.create_model_card(**kwargs)
        return self.publisher.push(commit_message, blocking, revision)

    def _get_grad_norm(self, model, grad_norm=None):
        # Between gradients and optimiser; Trainer itself needs the norm for its log.
        if grad_norm is None and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self.accelerator.unscale_gradients()
            grad_norm = gradient_norm(self.optimizer)  # Trainer would multiply all gradients by one
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self.finite.decide(self.state.global_step + 1, model, self.optimizer, grad_norm, self.accelerator.scaler)
        return grad_norm
