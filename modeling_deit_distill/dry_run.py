"""A dry run: a few steps of each phase on this machine, and how long each phase will take by them.

Nothing stays: what a training writes goes to a temporary folder.
"""

import copy
import dataclasses
import math
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, wait_for_everyone
from torch import nn
from torch.utils.data import Subset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from .arguments import DistillationTrainingArguments
from .data.loaders import planned_steps, steps_per_epoch
from .output_folder import TEACHER, step_of
from .report import aligned, counted, duration, say
from .screen import hide
from .teachers.identity import teacher_going_on
from .teachers.labelling import planned_views
from .teachers.training import teacher_trainer
from .trainer import DistillationTrainer

# Steps and seconds that are measured at least. The first step is longer than others, and the first batches may lie
# ready where later ones must be waited for: these do not count, unless that takes longer than the seconds.
STEPS, SECONDS = 3, 6.0
EVALUATED_BATCHES = 6


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a phase consists of. Of all its steps, some may ask a teacher where the others do not."""

    steps: int
    epochs: int
    evaluations: int
    savings: int
    asking_steps: int = 0


@dataclasses.dataclass(frozen=True)
class Costs:
    """What the parts of a phase take, in seconds: each start, step, evaluation and checkpoint.

    Where some steps ask a teacher and others do not, `step` is one that does not.
    """

    start: float
    epoch_start: float
    step: float
    evaluation: float
    saving: float
    asking_step: float = 0.0

    def of(self, counts: Counts) -> float:
        """The seconds of a whole phase."""
        steps = counts.asking_steps * self.asking_step + (counts.steps - counts.asking_steps) * self.step
        in_epochs = counts.epochs * self.epoch_start + steps
        return self.start + in_epochs + counts.evaluations * self.evaluation + counts.savings * self.saving


class Stopwatch(TrainerCallback):
    """Takes the times of a training, and ends it with an evaluation and a checkpoint when they are enough.

    Args:
        num_ahead: batches that workers may have ready.
        share: of the held-out images that are evaluated.
        now: the clock, in seconds.
    """

    def __init__(self, num_ahead: int, share: float = 1.0, now=time.monotonic):
        self._num_ahead, self._share, self._now = num_ahead, share, now
        self._begun: float | None = None  # where the last part began
        self._wait = self._measured_from = None
        # The wait for its batch, and the step: of the first step of each epoch, and of the others once it is warm.
        self.firsts: list[tuple[float, float]] = []
        self.steps: list[tuple[float, float]] = []
        self._num_steps = self._num_warm = 0
        self._predictions: list[float] = []
        self._evaluated = self._saved = 0.0

    def on_epoch_begin(self, args, state, control, **kwargs):
        """An epoch starts its workers."""
        self._begun, self._is_first = self._now(), True

    def on_step_begin(self, args, state, control, **kwargs):
        """The batch is there."""
        now = self._now()
        self._wait, self._begun = now - self._begun, now

    def on_step_end(self, args, state, control, **kwargs):
        """Keep the time, and decide whether it is enough; all processes as the main one does."""
        if args.device.type != "cpu":
            torch.accelerator.synchronize()
        now = self._now()
        taken, self._begun = now - self._begun, now
        if not self.firsts:
            self._started = now
        if self._is_first:
            self.firsts.append((self._wait, taken))
        elif self._measured_from is not None:
            self.steps.append((self._wait, taken))
        self._is_first = False
        self._num_steps += 1
        is_warm = self._num_steps > self._num_ahead or now - self._started >= SECONDS
        if self._measured_from is None and is_warm:
            self._measured_from, self._num_warm = now, self._num_steps
        if broadcast_object_list([self._is_enough(now, state)])[0]:
            control.should_training_stop = control.should_evaluate = control.should_save = True

    def on_prediction_step(self, args, state, control, **kwargs):
        """A batch is evaluated."""
        self._predictions.append(self._now())

    def on_evaluate(self, args, state, control, **kwargs):
        """The evaluation is over."""
        self._evaluated = self._now()

    def on_save(self, args, state, control, **kwargs):
        """The checkpoint is whole."""
        self._saved = self._now()

    def costs(self) -> Costs:
        """What the parts take."""
        (_, first_step), *later = self.firsts
        # Where an epoch is one step, all its waiting is that of its start.
        wait, step = np.mean(self.steps or [(0.0, taken) for _, taken in later or self.firsts], axis=0).tolist()
        epoch_start = float(np.mean([waited for waited, _ in self.firsts])) - wait
        first, *others = self._predictions or [self._begun]
        evaluation = first - self._begun
        if others:  # the first also starts the workers
            each = (self._evaluated - first) / len(others)
            evaluation += each * ((1 + len(others)) / self._share - 1)
        return Costs(
            max(first_step - step, 0.0),
            max(epoch_start, 0.0),
            wait + step,
            evaluation,
            self._saved - self._evaluated,
        )

    def _is_enough(self, now: float, state) -> bool:
        if state.global_step >= state.max_steps:
            return True
        is_measured = self._measured_from is not None and now - self._measured_from >= SECONDS
        return is_measured and self._num_steps - self._num_warm >= STEPS


def dry_run(plan, student: nn.Module):
    """Try a few steps of each phase of a [`Plan`], and say how long the phases will take on this machine."""
    args = plan.args
    say(args, "\nDry run: a few steps of each phase are tried")
    folder = Path(broadcast_object_list([tempfile.mkdtemp(prefix="dry_run_") if args.process_index == 0 else None])[0])
    try:
        phases = _try_phases(plan, student, folder)
    finally:
        wait_for_everyone()
        shutil.rmtree(folder, ignore_errors=True)
    say(args, "How long it will take on this machine, as busy as it is now", estimate(phases))


def estimate(phases: dict[str, tuple[Costs, Counts]]) -> str:
    """The phases by name, with their lengths and what they consist of, as a table in words."""
    rows = []
    for name, (costs, counts) in phases.items():
        parts = [f"{counted(counts.steps - counts.asking_steps, 'step')} of {costs.step:.2g} s"]
        if counts.asking_steps:
            parts.insert(0, f"{counted(counts.asking_steps, 'step')} of {costs.asking_step:.2g} s asking the teacher")
        if counts.evaluations:
            parts.append(f"{counted(counts.evaluations, 'evaluation')} of {costs.evaluation:.2g} s")
        if counts.savings:
            parts.append(f"{counted(counts.savings, 'checkpoint')} of {costs.saving:.2g} s")
        rows.append([name, duration(costs.of(counts)), ", ".join(parts)])
    if len(rows) > 1:
        rows.append(["in all", duration(sum(costs.of(counts) for costs, counts in phases.values())), ""])
    width = max(len(row[2]) for row in rows)
    return "\n".join(f"  {line}" for line in aligned([[*row[:2], row[2].ljust(width)] for row in rows]).splitlines())


def occasions(strategy: str, every: float, num_steps: int, num_epochs: int) -> int:
    """How often Trainer evaluates, or saves.

    Args:
        strategy: "no", "epoch", "steps", or "best", which is counted as each epoch.
        every: steps; below 1 a share of them all.
        num_steps, num_epochs: of the training.
    """
    if strategy == "no":
        return 0
    if strategy != "steps":
        return num_epochs
    return math.ceil(num_steps / (math.ceil(every * num_steps) if every < 1 else every))  # the last step is one


def _try_phases(plan, student: nn.Module, folder: Path) -> dict[str, tuple[Costs, Counts]]:
    args, model_args, phases = plan.args, plan.model_args, {}
    num_images, num_labelled = (None, None) if plan.data_args.streaming else (len(plan.views), len(plan.data.train))
    teacher_folder = Path(args.output_dir, TEACHER) if model_args.train_teacher else None
    if plan.trains_teacher:
        (training,) = plan.teachers_trainings
        trainer = teacher_trainer(training, *plan.teachers_evaluation, folder / "training")
        steps = planned_steps(num_labelled, model_args.teacher_num_train_epochs, args)
        phases["1 of 2: teacher"] = _try_phase(trainer, args, steps, num_labelled)
        teacher_folder = folder / TEACHER
        if args.local_process_index == 0:  # its weights do not matter, what they cost does
            trainer.model.save_pretrained(teacher_folder)
            trainer.processing_class.save_pretrained(teacher_folder)
        wait_for_everyone()
    steps = planned_steps(num_images, args.num_train_epochs, args, args.max_steps)
    steps -= step_of(Path(plan.checkpoint)) if plan.checkpoint else 0
    phases[plan.students_title] = _try_student(plan, student, teacher_folder, folder, steps, num_images)
    return phases


def _try_student(
    plan, student: nn.Module, teacher_folder: Path | None, folder: Path, num_steps: int, num_images: int | None
) -> tuple[Costs, Counts]:
    """Train it a little: with its teacher, with answers that are there, or both ways where its steps are of both kinds.

    Answers of a store that is not full are made up, since none is written to it.
    """
    args, asking_steps = plan.args, broadcast_object_list([_asking_steps(plan, num_steps)])[0]

    def try_with(name: str, student: nn.Module, teacher: nn.Module | None, store=None) -> tuple[Costs, Counts]:
        """Train a little."""
        trainer = DistillationTrainer(
            student,
            _writing_to(folder / name, args),
            teacher,
            store,
            processing_class=plan.processor,
            train_dataset=plan.views,
            eval_dataset=plan.held_out,
        )
        return _try_phase(trainer, args, num_steps, num_images)

    if not asking_steps:
        return try_with("student", student, None, plan.store)
    again = copy.deepcopy(student) if asking_steps < num_steps else None
    teacher = plan.teacher_in(teacher_folder).to(args.device)
    if teacher_folder is None:
        teacher_going_on(plan.checkpoint, teacher)
    asking, counts = try_with("asking", student, teacher)
    if again is None:
        return asking, counts
    reading, counts = try_with("reading", again, MadeUpAnswers(plan.config.num_labels))
    costs = dataclasses.replace(reading, start=asking.start, asking_step=asking.step)  # a run begins by asking
    return costs, dataclasses.replace(counts, asking_steps=asking_steps)


class MadeUpAnswers(nn.Module):
    """Logits (batch, classes) in no time, as a store's take next to none."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Zeros."""
        return pixel_values.new_zeros(len(pixel_values), self.num_classes)


def _asking_steps(plan, num_steps: int) -> int:
    """How many of a run's last steps ask the teacher; a store's holes lie in as few steps as they fit into."""
    if not plan.needs_teacher:
        return 0
    if plan.args.teacher_store is None:
        return num_steps
    planned = planned_views(plan.args, plan.views)
    missing = planned if plan.store is None else plan.store.missing(planned)
    return min(math.ceil(sum(missing.values()) / plan.args.effective_batch_size), num_steps)


def _writing_to(folder: Path, args: DistillationTrainingArguments) -> DistillationTrainingArguments:
    """The arguments of a training of which only its times are wanted."""
    changed = copy.copy(args)
    changed.output_dir, changed.report_to, changed.push_to_hub = str(folder), [], False
    changed.resume_from_checkpoint = None
    return changed


def _try_phase(
    trainer: Trainer, args: DistillationTrainingArguments, num_steps: int, num_images: int | None
) -> tuple[Costs, Counts]:
    """Train a little; `args` are the run's, `num_images` is None for a stream."""
    own = trainer.args
    num_epochs = 1 if num_images is None else math.ceil(num_steps / steps_per_epoch(num_images, args))
    length = (num_steps, num_epochs)
    evaluations = occasions(own.eval_strategy.value, own.eval_steps or 1, *length)
    counts = Counts(*length, evaluations, occasions(own.save_strategy.value, own.save_steps, *length))
    own.eval_strategy, own.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    own.eval_on_start = own.load_best_model_at_end = False
    trainer.remove_callback(EarlyStoppingCallback)
    held_out = trainer.eval_dataset
    number = min(len(held_out), EVALUATED_BATCHES * own.eval_batch_size * own.world_size)
    trainer.eval_dataset = Subset(held_out, np.linspace(0, len(held_out) - 1, number).astype(int).tolist())
    stopwatch = Stopwatch(own.dataloader_num_workers * (own.dataloader_prefetch_factor or 2), number / len(held_out))
    hide(trainer)
    trainer.add_callback(stopwatch)
    trainer.train()
    return stopwatch.costs(), counts
