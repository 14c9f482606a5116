"""What a training shows while it runs: a heading, a line an epoch, a bar; Trainer's own figures go to a file.

A notebook that builds a [`DistillationTrainer`] keeps Trainer's display; `show` puts this one in its place.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import datasets
import huggingface_hub
import transformers
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import IntervalStrategy, has_length

from .hub import tell_retries_once
from .output_folder import LOG, disk_errors_explained
from .report import counted, duration

# A longer epoch has lines in between; what has no epochs has so many lines.
STEPS_BETWEEN_LINES, LINES_WITHOUT_EPOCHS = 1000, 10
BAR = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}, {remaining} left"


def show(
    trainer: Trainer,
    title: str,
    columns: Mapping[str, str],
    output_dir: str,
    loss_so_far: Callable[[int], float] | None = None,
):
    """Put [`Screen`] and [`LogFile`] in the place of the bar and the dictionaries that Trainer prints.

    Arguments as theirs; reporters (TensorBoard and others) stay.
    """
    hide(trainer)
    trainer.add_callback(Screen(title, columns, loss_so_far))
    trainer.add_callback(LogFile(output_dir, title))


def hide(trainer: Trainer):
    """Take away the bar, or the printed dictionaries, that Trainer has put there."""
    trainer.remove_callback(PrinterCallback if trainer.args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)


def keep_libraries_quiet():
    """No bars for what takes a moment ("Writing model shards"); outside a terminal none at all, of any library.

    What the Hub's client says of each try becomes one line.
    """
    tell_retries_once()
    transformers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()


def columns_of(args) -> dict[str, str]:
    """The columns of a student's training; `args` are the [`DistillationTrainingArguments`]."""
    columns = {"held out": "eval_accuracy"}
    if args.weight_average_decay is not None:
        columns["average"] = "eval_ema_accuracy"
    if args.distillation_type != "none":
        columns["teacher agrees"] = "eval_teacher_agreement"
    return columns


class LogFile(TrainerCallback):
    """Writes each of Trainer's dictionaries as a line of JSON to `train_log.jsonl`, with time, phase and step.

    A run that goes on, or is run again, writes on at the end.

    Args:
        output_dir: of the run.
        phase: the title of the phase.
    """

    def __init__(self, output_dir: str, phase: str):
        self._output_dir, self._phase = output_dir, phase

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write it."""
        if not state.is_world_process_zero or logs is None:
            return
        when = datetime.now().astimezone().isoformat(timespec="seconds")
        line = {"time": when, "phase": self._phase, "step": state.global_step, **logs}
        with disk_errors_explained(self._output_dir, "the log"):
            Path(self._output_dir).mkdir(parents=True, exist_ok=True)
            with open(Path(self._output_dir, LOG), "a", encoding="utf-8") as file:
                file.write(json.dumps(line, default=str) + "\n")


class Screen(TrainerCallback):
    """A phase of a run on the screen: its heading, a line an epoch as in a table, a bar with the time left.

    The lines go to the standard output, of the main process alone. The bar goes to the error stream if that is a
    terminal and `disable_tqdm` is false. A line comes at the end of each epoch, at each evaluation within one, and
    every thousand steps of a long one; ten come where there are no whole epochs.

    Args:
        title: of the phase.
        columns: the figures of an evaluation that are shown, from the column's name to Trainer's for it.
        loss_so_far: from a step to the sum of the losses of all steps until it, called by all processes; the last
            loss that was logged is shown without it.
    """

    def __init__(self, title: str, columns: Mapping[str, str], loss_so_far: Callable[[int], float] | None = None):
        self.title, self._columns, self._loss_so_far = title, dict(columns), loss_so_far
        self._table: Table | None = None  # while training
        self._bar = self._evaluation_bar = None

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """The heading, and the names of the columns; the heading alone where nothing is left to do."""
        length = len(train_dataloader) // args.gradient_accumulation_steps if has_length(train_dataloader) else None
        self._has_epochs = length is not None and state.max_steps >= length
        self._every = steps_between_lines(state.max_steps, length)
        self._first = self._line_step = state.global_step
        self._loss_sum = 0.0 if self._loss_so_far is None else self._loss_so_far(state.global_step)
        self._started, self._figures, self._waits = time.monotonic(), {}, False
        columns = {} if args.eval_strategy == IntervalStrategy.NO else self._columns
        self._table = Table("epoch" if self._has_epochs else "step", columns)
        if not state.is_world_process_zero:
            return
        if state.num_train_epochs == 0:  # a checkpoint's training was over
            steps = "all" if self._first >= state.max_steps else f"{self._first:,} of"
            words = f"{steps} {counted(state.max_steps, 'step')} were taken before; nothing is left to train"
            _print(f"\n{self.title}: {words}")
            return
        words = [self.title]
        if self._has_epochs:
            words.append(counted(round(state.max_steps / length, 2), "epoch"))
        words.append(counted(state.max_steps, "step"))
        if self._first:
            words.append(f"from step {self._first:,} on")
        _print(f"\n{', '.join(words)}\n{self._table.header()}")
        if _has_bar(args):
            self._bar = _bar(state.max_steps, "training", initial=self._first)

    def on_step_end(self, args, state, control, **kwargs):
        """The bar moves; within a long epoch, and where there are none, a line."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)
        is_epochs_last = float(state.epoch).is_integer()
        if state.global_step % self._every == 0 and not is_epochs_last and not control.should_evaluate:
            self._show_line(state)

    def on_epoch_end(self, args, state, control, **kwargs):
        """The line of the epoch, unless it is about to be evaluated."""
        self._waits = control.should_evaluate
        if not self._waits:
            self._show_line(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Keep what the next line shows."""
        if self._table is not None:
            self._figures |= logs or {}

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """The bar of an evaluation."""
        if not state.is_world_process_zero or not _has_bar(args) or not has_length(eval_dataloader):
            return
        if self._evaluation_bar is None:
            self._evaluation_bar = _bar(len(eval_dataloader), "held-out images")
        self._evaluation_bar.update(1)

    def on_evaluate(self, args, state, control, **kwargs):
        """The line of the epoch that has just ended, or of an evaluation within one."""
        self._close_evaluation_bar()
        if self._table is not None and (self._waits or not float(state.epoch).is_integer()):
            self._show_line(state)

    def on_predict(self, args, state, control, **kwargs):
        """A prediction has the bar of an evaluation."""
        self._close_evaluation_bar()

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bars, also of a training that was interrupted."""
        self._close_evaluation_bar()
        if self._bar is not None:
            self._bar.close()
        self._bar = self._table = None

    def _show_line(self, state):
        step, figures = state.global_step, self._figures
        if step == self._line_step:
            return
        loss, self._figures, self._waits = figures.get("loss"), {}, False
        if self._loss_so_far is not None:
            loss_sum = self._loss_so_far(step)
            loss, self._loss_sum = (loss_sum - self._loss_sum) / (step - self._line_step), loss_sum
        self._line_step = step
        seconds = (time.monotonic() - self._started) / (step - self._first) * (state.max_steps - step)
        if state.is_world_process_zero:
            place = f"{round(state.epoch, 2):g}" if self._has_epochs else f"{step:,}"
            _print(self._table.line(place, loss, figures, seconds))

    def _close_evaluation_bar(self):
        if self._evaluation_bar is not None:
            self._evaluation_bar.close()
        self._evaluation_bar = None


class Table:
    """Lines of equal columns: a place, the loss, figures of an evaluation in per cent, the time left.

    Args:
        place: the name of the first column.
        columns: as of [`Screen`].
    """

    def __init__(self, place: str, columns: Mapping[str, str]):
        self._columns, self._place = columns, place
        self._widths = [max(len(name), 8) for name in (place, "loss", *columns, "time left")]

    def header(self) -> str:
        """The names of the columns."""
        return self._row([self._place, "loss", *self._columns, "time left"])

    def line(self, place: str, loss: float | None, figures: Mapping[str, float], seconds: float) -> str:
        """A line; what was not measured is a dash.

        Args:
            place: the epoch, or the step.
            loss: its mean since the line before.
            figures: shares from 0 to 1 by Trainer's name.
            seconds: that are left.
        """
        shares = [f"{100 * figures[key]:.2f} %" if key in figures else "-" for key in self._columns.values()]
        return self._row([place, "-" if loss is None else f"{loss:.4f}", *shares, duration(seconds)])

    def _row(self, cells: list[str]) -> str:
        return "  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, self._widths, strict=True))


def steps_between_lines(max_steps: int, steps_per_epoch: int | None) -> int:
    """How often a line comes besides those at the ends of epochs; `steps_per_epoch` is None for a stream."""
    if steps_per_epoch is not None and max_steps >= steps_per_epoch:
        return math.ceil(steps_per_epoch / math.ceil(steps_per_epoch / STEPS_BETWEEN_LINES))
    return min(math.ceil(max_steps / LINES_WITHOUT_EPOCHS), STEPS_BETWEEN_LINES)


def _has_bar(args: TrainingArguments) -> bool:
    return not args.disable_tqdm and sys.stderr.isatty()


def _bar(total: int, name: str, initial: int = 0) -> tqdm:
    settings = {"leave": False, "dynamic_ncols": True, "smoothing": 0, "bar_format": BAR}  # the mean of all steps
    return tqdm(total=total, desc=name, initial=initial, file=sys.stderr, **settings)


def _print(text: str):
    tqdm.write(text, file=sys.stdout)  # above the bars
    sys.stdout.flush()
