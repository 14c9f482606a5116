"""Student and teacher beside each other: the table at the end of a run, and in words which of the two to keep."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..analysis import FEW_IN_ALL, Measured, Paired, measure_decisions, paired_difference
from ..data.image_files import shown
from ..report import FINAL_WEIGHTS, aligned, duration

SURE = 0.05  # a difference with a lower p value is taken for one
ALIKE = 1.1  # sizes and times by less than this factor apart are called neither smaller nor faster
MIN_DIFFERENCE = 0.01  # of balanced accuracies, from which on they are compared
MAX_NAMES = 10
WIDTH = 78  # of the text beside the names of the rows

# The rows of the comparison: the name, the student's key in `all_results.json`, and the teacher's.
SHARES = (
    ("accuracy", "eval_accuracy", "teacher_accuracy"),
    ("balanced accuracy", "eval_balanced_accuracy", "teacher_balanced_accuracy"),
    ("macro-F1", "eval_macro_f1", "teacher_macro_f1"),
)
PARAMETERS = ("num_parameters", "teacher_num_parameters")
MILLISECONDS = ("milliseconds_per_image", "teacher_milliseconds_per_image")


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Args:
        results: `all_results.json`.
        decisions: of `predictions.json`, (images,) class indices: `labels`, `fused` and perhaps `teacher`; empty where
            they were not kept.
        class_names: in the order of their indices.
        teachers: what several teachers are called, in their order; then `teacher` is what they answer together.
    """

    results: Mapping[str, object]
    decisions: Mapping[str, np.ndarray] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    teachers: Sequence[str] = ()

    def measured(self, key: str) -> float | None:
        """A result, if it was measured and is a number."""
        value = self.results.get(key)
        return value if isinstance(value, (int, float)) and math.isfinite(value) else None

    @cached_property
    def largest(self) -> str | None:
        """The name of the class with the most held-out images."""
        return None if not self.decisions else self.class_names[np.bincount(self.decisions["labels"]).argmax()]

    @cached_property
    def judged(self) -> dict[str, Measured]:
        """What the decisions of `student`, `teacher` and `largest` (always the largest class) are worth."""
        if not self.decisions:
            return {}
        labels = self.decisions["labels"]
        sets = {"student": self.decisions["fused"], "teacher": self.decisions.get("teacher"), "largest": self._constant}
        known = {name: decided for name, decided in sets.items() if decided is not None}
        return {name: measure_decisions(labels, decided, len(self.class_names)) for name, decided in known.items()}

    def compared(self, first: str, second: str) -> Paired:
        """Two of the sets on the same images, see [`paired_difference`]."""
        sets = {"student": self.decisions["fused"], "teacher": self.decisions.get("teacher"), "largest": self._constant}
        return paired_difference(self.decisions["labels"], sets[first], sets[second])

    def called(self, name: str | None) -> str | None:
        """`student` or `teacher` in words; several teachers are an ensemble."""
        return f"ensemble of {len(self.teachers)} teachers" if name == "teacher" and self.teachers else name

    @property
    def _constant(self) -> np.ndarray:
        labels = self.decisions["labels"]
        return np.full(len(labels), np.bincount(labels).argmax())


def comparison(outcome: Outcome) -> tuple[list[str], list[tuple[str, ...]]]:
    """The heads of the columns (student, teacher, always the largest class) and the rows; `–` where nothing is known.

    A column of which nothing is known is left out.
    """
    measured, judged = outcome.measured, outcome.judged
    reference = judged.get("largest")
    constant = (None, None, None) if reference is None else reference[:3]
    rows = [
        (name, _percent(measured(own)), _percent(measured(teachers)), _percent(share))
        for (name, own, teachers), share in zip(SHARES, constant, strict=True)
    ]
    rows += [
        ("parameters", *(_count(measured(key)) for key in PARAMETERS), "–"),
        ("milliseconds an image", *(_milliseconds(measured(key)) for key in MILLISECONDS), "–"),
    ]
    heads = [
        "student",
        outcome.called("teacher"),
        f"always {_first([outcome.largest])}" if reference else "always the largest class",
    ]
    kept = [place for place in range(3) if any(row[1 + place] != "–" for row in rows)]
    rows = [(row[0], *(row[1 + place] for place in kept)) for row in rows]
    return [heads[place] for place in kept], [row for row in rows if set(row[1:]) - {"–"}]


def never_answered(measured: Measured) -> list[int]:
    """The classes that have images and were the answer to none."""
    return [each.label for each in measured.classes if each.num_images and not each.num_answers]


def verdict(outcome: Outcome) -> str | None:
    """Which of student and teacher to keep, and why, in a few sentences; None where no decisions were kept.

    The first starts with a small letter, as behind a name. Judged by McNemar's test on the held-out images; within its
    uncertainty the smaller or faster one is named.
    """
    if not outcome.decisions:
        return None
    if _are_too_few(outcome):
        return _too_few_in_words(outcome)
    said = []
    if "teacher" in outcome.judged:
        said += [_which_to_keep(outcome), *_other_way_round(outcome)]
    first, *rest = [*said, *_against_the_largest_class(outcome)]
    return " ".join([first, *(sentence[0].upper() + sentence[1:] for sentence in rest)])


def kept(outcome: Outcome) -> str | None:
    """Which the verdict says to keep, `"student"` or `"teacher"`; None where it says neither."""
    if "teacher" not in outcome.judged or _are_too_few(outcome) or len(_doubtful(outcome)) == 2:
        return None
    pair = outcome.compared("student", "teacher")
    if pair.p_value < SURE:
        return "student" if pair.num_first > pair.num_second else "teacher"
    better = [name for place, name in enumerate(("student", "teacher")) if _advantages(outcome, place)]
    return better[0] if len(better) == 1 else None


def _are_too_few(outcome: Outcome) -> bool:
    """Whether the held-out images are few, and do not tell the student from the teacher, or from the largest class."""
    other = "teacher" if "teacher" in outcome.judged else "largest"
    return len(outcome.decisions["labels"]) < FEW_IN_ALL and outcome.compared("student", other).p_value >= SURE


def _too_few_in_words(outcome: Outcome) -> str:
    number, judged = len(outcome.decisions["labels"]), outcome.judged
    names = {
        "student": "the student",
        "teacher": f"the {outcome.called('teacher')}",
        "largest": f"always {_first([outcome.largest])}",
    }
    right = [f"{names[name]} is right on {round(each.accuracy * number):,}" for name, each in judged.items()]
    return f"too few held-out images ({number:,}) to say: {_and([', '.join(right[:-1]), right[-1]])}; hold out more."


def results_table(outcome: Outcome) -> str:
    """What came of a run, as a table for a terminal: the comparison, what was counted, and the verdict."""
    heads, rows = comparison(outcome)
    facts = list(_facts(outcome))
    width = max((len(name) for name, *_ in (*rows, *facts)), default=0)
    table = aligned([["".ljust(width), *heads], *rows]) if rows else ""
    lines = [f"  {line}" for line in table.splitlines()]
    for name, value in facts:
        first, *rest = textwrap.wrap(value, WIDTH, break_long_words=False, break_on_hyphens=False)
        lines += [f"  {name:<{width}}  {first}", *(f"  {'':<{width}}  {line}" for line in rest)]
    rule = "-" * max((len(line) for line in lines), default=0)
    return "\n".join([rule, *lines, rule])


def _facts(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Names and values of what stands under the comparison."""
    results, judged = outcome.results, outcome.judged
    for name in ("student", "teacher"):
        if name in judged:
            names = [outcome.class_names[label] for label in never_answered(judged[name])]
            number = sum(each.num_images > 0 for each in judged[name].classes)
            yield (
                f"never answered by the {outcome.called(name)}",
                f"{len(names)} of {number} classes: {_first(names)}" if names else "none",
            )
    yield from accuracies_of_teachers(outcome)
    if (share := outcome.measured("eval_teacher_agreement")) is not None:
        yield f"student agrees with {outcome.called('teacher')}", _percent(share)
    if "final_weights" in results:
        shares = (
            f"{word} {_percent(outcome.measured(f'eval_{kind}_accuracy'))}" for kind, word in FINAL_WEIGHTS.items()
        )
        yield "weights that were kept", f"{FINAL_WEIGHTS[results['final_weights']]} ({', '.join(shares)})"
    if "teacher_accuracy" in results and "teacher_views_asked" in results:
        yield views_asked_in_words(outcome)
    if results.get("bad_images") is not None:
        yield "images that could not be read", f"{results['bad_images']:,}"
    if results.get("bad_held_out_images"):
        yield "held-out images that were left out", f"{results['bad_held_out_images']:,}"
    if "train_runtime" in results:
        yield "training time", duration(results["train_runtime"])
    if (words := verdict(outcome)) is not None:
        yield "verdict", words


def accuracies_of_teachers(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """The accuracy of each of several teachers alone, by its name, where it is known."""
    for number, name in enumerate(outcome.teachers, start=1):
        if (share := outcome.measured(f"teacher_{number}_accuracy")) is not None:
            yield f"teacher {number} alone", f"{_percent(share)} ({name})"


def views_asked_in_words(outcome: Outcome) -> tuple[str, str]:
    """About how many views the teacher was asked; of several each about all of them."""
    asked, number = outcome.results["teacher_views_asked"], len(outcome.teachers)
    if number < 2 or not asked:
        return "views the teacher was asked about", f"{asked:,.0f}"
    return "views the teachers were asked about", f"{asked:,.0f}, by each of {number}: {asked * number:,.0f} answers"


def _which_to_keep(outcome: Outcome) -> str:
    pair, judged = outcome.compared("student", "teacher"), outcome.judged
    number, teacher = len(outcome.decisions["labels"]), outcome.called("teacher")
    shares = (
        f"the student is right on {_percent(judged['student'].accuracy)} of {number:,} held-out images, the {teacher} "
        f"on {_percent(judged['teacher'].accuracy)} ({_p(pair)}, McNemar's test)"
    )
    pros = {"student": _advantages(outcome, 0), teacher: _advantages(outcome, 1)}
    if len(_doubtful(outcome)) == 2:
        return f"keep neither as it is: {shares}."
    if pair.p_value >= SURE:
        better = outcome.called(kept(outcome))
        choice = f" Keep the {better}: it is {_and(pros[better])}." if better else _sentence(pros)
        return f"too close to tell: {shares}; the difference is within the uncertainty of {number:,} images.{choice}"
    if pair.num_first > pair.num_second:
        return f"keep the student: {shares}.{_sentence(pros)}"
    unless = ", unless size or time decide" if pros["student"] else ""
    return f"keep the {teacher}{unless}: {shares}.{_sentence(pros)}"


def _sentence(pros: Mapping[str, list[str]]) -> str:
    """What speaks for each besides its accuracy; empty if nothing does."""
    said = [f"the {name} is {_and(words)}" for name, words in pros.items() if words]
    return f" T{', '.join(said)[1:]}." if said else ""


def _advantages(outcome: Outcome, place: int) -> list[str]:
    """How the student (place 0) or the teacher (1) is smaller or faster than the other, with both figures."""
    words = []
    kinds = (("smaller", PARAMETERS, _count, "parameters"), ("faster", MILLISECONDS, _milliseconds, "ms an image"))
    for name, keys, in_words, unit in kinds:
        own, other = (outcome.measured(keys[each]) for each in (place, 1 - place))
        if own is not None and other is not None and own * ALIKE <= other:
            words.append(f"{name} ({in_words(own)} against {in_words(other)} {unit})")
    return words


def _other_way_round(outcome: Outcome) -> Iterator[str]:
    """Where balanced accuracy orders student and teacher otherwise than accuracy does."""
    student, teacher = outcome.judged["student"], outcome.judged["teacher"]
    difference = student.balanced_accuracy - teacher.balanced_accuracy
    if abs(difference) >= MIN_DIFFERENCE and difference * (student.accuracy - teacher.accuracy) < 0:
        better, other = (outcome.called(name) for name in ("student" if difference > 0 else "teacher", "teacher"))
        yield (
            f"By balanced accuracy the {better} is the better one (student {_percent(student.balanced_accuracy)}, "
            f"{other} {_percent(teacher.balanced_accuracy)})."
        )


def _against_the_largest_class(outcome: Outcome) -> Iterator[str]:
    """Who is not known to be better than always answering the largest class; without a teacher also that one is."""
    always = f"always answering {_first([outcome.largest])} ({_percent(outcome.judged['largest'].accuracy)})"
    doubtful = _doubtful(outcome)
    if len(doubtful) == 2:
        yield f"neither is known to be better than {always}."
    elif doubtful:
        yield f"the {outcome.called(doubtful[0])} is not known to be better than {always}."
    elif "teacher" not in outcome.judged:
        share, number = _percent(outcome.judged["student"].accuracy), len(outcome.decisions["labels"])
        known = f"it is right on {share} of {number:,} images ({_p(outcome.compared('student', 'largest'))})"
        yield f"the student is better than {always}: {known}."


def _doubtful(outcome: Outcome) -> list[str]:
    """Who is not known to be better than always answering the largest class."""
    pairs = {name: outcome.compared(name, "largest") for name in outcome.judged if name != "largest"}
    return [name for name, pair in pairs.items() if pair.p_value >= SURE or pair.num_first < pair.num_second]


def _first(names: Sequence[str]) -> str:
    rest = f", and {len(names) - MAX_NAMES:,} others" if len(names) > MAX_NAMES else ""
    return ", ".join(shown(name) for name in names[:MAX_NAMES]) + rest


def _and(words: Sequence[str]) -> str:
    return " and ".join(words)


def _p(pair: Paired) -> str:
    return "p < 0.001" if pair.p_value < 0.001 else f"p = {pair.p_value:.2g}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f} %"


def _count(number: float | None) -> str:
    """A number, in millions from a hundred thousand on."""
    if number is None:
        return "–"
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"


def _milliseconds(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f}"
