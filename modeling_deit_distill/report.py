"""What a run prints, and the words it has for its figures."""

import logging
import os
import shlex
from collections.abc import Mapping

from transformers import TrainingArguments

from .analysis import Measured, worst_classes
from .errors import printable, printable_lines

logger = logging.getLogger(__name__)

# Names in the card, in their order; `all_results.json` uses the keys.
ACCURACY_NAMES = {
    "teacher_accuracy": "teacher",
    "eval_accuracy": "student (configured fusion)",
    "eval_accuracy_cls": "student, class head",
    "eval_accuracy_distillation": "student, distillation head",
    "eval_accuracy_logit_mean": "student, mean of logits",
    "eval_accuracy_softmax_mean": "student, mean of softmaxes",
    "eval_top5_accuracy": "student, top-5",
    "eval_raw_accuracy": "student, weights of the last step",
    "eval_ema_accuracy": "student, average of the weights (EMA)",
    "eval_teacher_agreement": "student agrees with teacher",
}

MAX_CLASSES, MAX_WORST = 50, 20  # whose figures are shown: of more classes, the worst

FINAL_WEIGHTS = {"ema": "average", "raw": "last"}


def say(args: TrainingArguments, title: str, text: str = ""):
    """Print on the main process alone."""
    if args.process_index == 0:
        print(printable_lines(f"\n{title}\n{text}" if text else title), flush=True)


_said: set[str] = set()  # warnings, in this process


def say_once(message: str):
    """Warn on the first process alone, and once."""
    if message not in _said and int(os.environ.get("RANK", "0")) == 0:
        logger.warning(message)
    _said.add(message)


def count_as_said(message: str):
    """A warning that was shown in another way: [`say_once`] is silent about it from here on."""
    _said.add(message)


def summary_table(summary: Mapping[str, object]) -> str:
    """A summary as aligned lines, `name   value`; control characters are written out."""
    width = max(len(name) for name in summary)
    return "\n".join(f"  {printable(name):<{width}}  {printable(str(value))}" for name, value in summary.items())


def how_to_use(output_dir: str, teacher: str | None = None) -> str:
    """What to do with a finished model, in two lines; or with the `teacher` where that is the one to keep, in three."""
    command = "python -m modeling_deit_distill.predict {} FOLDER_OR_FILES --output predictions.csv"
    own, others = (command.format(shlex.quote(str(name))) for name in (output_dir, teacher))
    call = 'from transformers import pipeline; pipeline("image-classification", model={!r}{})("photo.jpg")'
    if teacher is not None:
        words = {"Use the teacher:": others, "Or the student:": own, "In Python:": call.format(teacher, "")}
    else:
        words = {"Use it:": own, "In Python:": call.format(str(output_dir), ", trust_remote_code=True")}
    width = max(map(len, words))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in words.items())


def aligned(rows: list[list[str]]) -> str:
    """Rows of a table for a terminal: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *right]).rstrip())
    return "\n".join(lines)


def figures_of_classes(measured: Measured, class_names: list[str]) -> str:
    """Precision, recall and F1 of each class that has images, as a table for a terminal; of very many the worst."""
    known = [each for each in measured.classes if each.num_images]
    listed = known if len(known) <= MAX_CLASSES else worst_classes(known, MAX_WORST)
    rows = [["class", "precision", "recall", "F1", "images"]]
    for each in listed:
        shares = ["–" if share is None else f"{100 * share:.1f} %" for share in (each.precision, each.recall, each.f1)]
        rows.append([printable(class_names[each.label]), *shares, f"{each.num_images:,}"])
    if len(listed) == len(known):
        return aligned(rows)
    left_out = f"These are the classes with the lowest F1; {len(known) - len(listed):,} others are left out."
    return f"{aligned(rows)}\n\n{left_out}"


def counted(number: float, unit: str) -> str:
    """A number with its unit: `1 epoch`, `24,830 steps`."""
    words = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{words} {unit}" + "s" * (number != 1)


def duration(seconds: float) -> str:
    """Seconds as `1 h 02 min`, `3 min 20 s` or `42 s`."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"
