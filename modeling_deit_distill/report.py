"""What a run prints, and the words it has for its figures."""

from collections.abc import Mapping

from transformers import TrainingArguments

from .errors import printable

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

FINAL_WEIGHTS = {"ema": "average", "raw": "last"}


def say(args: TrainingArguments, title: str, text: str = ""):
    """Print on the main process alone."""
    if args.process_index == 0:
        print(f"\n{title}\n{text}" if text else title, flush=True)


def summary_table(summary: Mapping[str, object]) -> str:
    """A summary as aligned lines, `name   value`; control characters are written out."""
    width = max(len(name) for name in summary)
    return "\n".join(f"  {printable(name):<{width}}  {printable(str(value))}" for name, value in summary.items())


def aligned(rows: list[list[str]]) -> str:
    """Rows of a table for a terminal: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *right]).rstrip())
    return "\n".join(lines)


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
