"""A run that stops where it gets no better: transformers' `EarlyStoppingCallback`, also over a resumption."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState
from transformers.trainer_utils import SchedulerType

from ..report import say


class EarlyStopping(EarlyStoppingCallback):
    """Stops after `early_stopping_patience` evaluations in a row that are no better than the best before.

    The count is that of the log, so a resumed run goes on counting. The step at which it stops gets a checkpoint, from
    which nothing is trained any more; see [`has_stopped`].
    """

    def on_train_begin(self, args, state: TrainerState, control: TrainerControl, **kwargs):
        """Count what a resumed run has seen."""
        self.early_stopping_patience_counter = evaluations_without_gain(state.log_history, args)

    def on_evaluate(self, args, state: TrainerState, control: TrainerControl, metrics, **kwargs):
        """As in transformers; where the run stops, a checkpoint is asked for, unless only the best ones are kept."""
        super().on_evaluate(args, state, control, metrics, **kwargs)
        if control.should_training_stop and self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_save = True

    def on_train_end(self, args, state: TrainerState, control: TrainerControl, **kwargs):
        """Say that the run stopped early, where it was best, and which checkpoint Trainer loads now."""
        if self.early_stopping_patience_counter >= self.early_stopping_patience and state.best_model_checkpoint:
            say(
                args,
                f"stopped early at step {state.global_step:,} of {state.max_steps:,}: "
                f"{self.early_stopping_patience_counter} evaluation(s) since step {state.best_global_step:,} brought "
                f"no better {metric_of(args)} than {state.best_metric:.4g}; the weights of "
                f"{Path(state.best_model_checkpoint).name} are loaded",
            )


def early_stopping(args) -> list[EarlyStopping]:
    """The callback, if `args.early_stopping_patience` asks for it."""
    return [] if args.early_stopping_patience is None else [EarlyStopping(args.early_stopping_patience)]


def metric_of(args) -> str:
    """The name of `metric_for_best_model` in results and logs."""
    return f"eval_{args.metric_for_best_model.removeprefix('eval_')}"


def evaluations_without_gain(log_history: Iterable[Mapping[str, float]], args) -> int:
    """How many evaluations in a row, the last among them, were no better than the best before them.

    Args:
        log_history: of a Trainer's state; an evaluation before the first step does not count.
        args: whose `metric_for_best_model` and `greater_is_better` say what better is.
    """
    best, count = None, 0
    for entry in log_history:
        value = entry.get(metric_of(args))
        if value is None or entry.get("step") == 0:
            continue
        is_better = best is None or (value > best if args.greater_is_better else value < best)
        best, count = (value, 0) if is_better else (best, count + 1)
    return count


def has_stopped(log_history: Iterable[Mapping[str, float]], args) -> bool:
    """Whether a run with this log has stopped early, by the patience of `args`."""
    patience = args.early_stopping_patience
    return patience is not None and evaluations_without_gain(log_history, args) >= patience


def early_stopping_in_words(args, trains_teacher: bool) -> dict[str, str]:
    """When a run stops early, and what this means for its schedule; for the summary."""
    patience = args.early_stopping_patience
    if patience is None:
        return {}
    every = "epochs" if args.eval_strategy == "epoch" else f"evaluations (one each {args.eval_steps:g} steps)"
    words = f"after {patience} {every} without a better {metric_of(args)}; the best weights are kept"
    if args.lr_scheduler_type not in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP):
        kind = args.lr_scheduler_type.value
        words += (
            f"; the {kind} schedule is planned for the whole length, so a run that stops early ends before its rate is "
            "low"
        )
    return {"early stopping": words + (f"; the teacher's training after {patience} epochs" if trains_teacher else "")}
