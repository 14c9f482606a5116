"""Writes the tables of `arguments.md` from the fields of the arguments: `python docs/arguments_table.py`."""

import inspect
import types
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Literal, Union, get_args, get_origin

from modeling_deit_distill.arguments import DataArguments, DistillationTrainingArguments, ModelArguments
from modeling_deit_distill.configuration_deit_distill import DeiTDistillConfig
from modeling_deit_distill.fields import Range, declarations

PAGE = Path(__file__).with_name("arguments.md")
BEGIN, END = "<!-- begin of the tables: written by docs/arguments_table.py -->\n", "<!-- end of the tables -->"
SECTIONS = {"Student and teacher": ModelArguments, "Data": DataArguments, "Training": DistillationTrainingArguments}
INTRODUCTIONS = {
    "Student and teacher": "The defaults of a new student are those of `--model_size tiny`, or of the checkpoint.",
    "Data": "One source of images is needed.",
    "Training": "These are the arguments of this project, and those of `transformers.TrainingArguments` that differ "
    "from transformers' own. The others are in transformers' documentation of `TrainingArguments`.",
}
NAMES = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text", list[str]: "texts"}


def main():
    """Replace what stands between the two marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + tables() + END + rest.partition(END)[2], encoding="utf-8")


def tables() -> str:
    """A section of Markdown for each of the dataclasses."""
    return "".join(f"\n## {title}\n\n{INTRODUCTIONS[title]}\n\n{table(kind)}\n" for title, kind in SECTIONS.items())


def table(kind: type) -> str:
    """A row for each field that the dataclass itself declares: name, values, default, help."""
    hints, declared = inspect.get_annotations(kind), declarations(kind)
    by_name = {field.name: field for field in fields(kind)}  # in the order of the base class, which has versions
    own = [by_name[name] for name in hints if name in by_name]
    rows = [
        (f"`--{field.name}`", values(hints[field.name], declared[field.name]), default(kind, field), help_of(field))
        for field in own
    ]
    return "\n".join(
        f"| {' | '.join(row)} |" for row in [("argument", "values", "default", "what"), ("---",) * 4, *rows]
    )


def values(hint, declared: tuple) -> str:
    """What a field takes, in words: its choices, or its type and range."""
    if hasattr(hint, "__metadata__"):
        hint = hint.__origin__
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    words = []
    for each in kinds:
        each = getattr(each, "__origin__", each) if hasattr(each, "__metadata__") else each
        if get_origin(each) is Literal:
            words.append(", ".join(f"`{choice}`" for choice in get_args(each)))
        elif each is not type(None):
            words.append(NAMES.get(each) or _several(each))
    ranges = [str(each) for each in declared if isinstance(each, Range)]
    return " or ".join(dict.fromkeys(words)) + (f", {ranges[0]}" if ranges else "")


def _several(kind) -> str:
    """What a list takes, in words; text for what is no list."""
    if get_origin(kind) is not list:
        return "text"
    [each] = get_args(kind)
    return {int: "whole numbers", float: "numbers"}.get(getattr(each, "__origin__", each), "texts")


def default(kind: type, field: Field) -> str:
    """What holds where the argument is not given; empty where other arguments or the data decide."""
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if value is None and kind is ModelArguments:
        value = getattr(DeiTDistillConfig.from_size("tiny"), field.name, None)
        value = None if field.name == "use_distillation_token" else value
    if value is None or value == "":
        return ""
    words = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(getattr(value, "value", value))
    return f"`{words.lower() if isinstance(value, bool) else words}`"


def help_of(field: Field) -> str:
    """The help of the command line."""
    return " ".join(str(field.metadata.get("help", "")).split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
