"""What the fields of the arguments' dataclasses declare beside their type, and the one check of it.

A declaration stands in the field's type: `mixup_alpha: Annotated[float, Range(at_least=0)]`. It cannot stand in the
field's `metadata`, all of which `HfArgumentParser` passes on to argparse.
"""

import functools
import inspect
import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Literal, get_args, get_origin

from .errors import InputError

COMPARISONS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


class Range:
    """The numbers that a field takes. NaN lies in no range, because each limit asks for what is allowed.

    Args:
        limits: any of `at_least`, `above`, `at_most` and `below`.
    """

    def __init__(self, **limits: float):
        self.limits = limits

    def __contains__(self, value: float) -> bool:
        return all(COMPARISONS[name](value, limit) for name, limit in self.limits.items())

    def __str__(self) -> str:
        return " and ".join(f"{name.replace('_', ' ')} {limit}" for name, limit in self.limits.items())


class OneOf(tuple):
    """The values that a field of type `Literal[...]` takes, among them None if it does."""

    def __str__(self) -> str:
        return f"one of {', '.join(str(each) for each in self if each is not None)}"


@dataclass(frozen=True)
class Group:
    """Fields that describe one thing, such as the teacher.

    Attributes:
        name: of the thing.
        remedy: what to do where two of its choices are given; None if they may be.
    """

    name: str
    remedy: str | None = None


@dataclass(frozen=True)
class Choice:
    """Marks a field that chooses the thing itself: on the command line it replaces the recipe's whole group."""

    group: Group


@functools.cache
def declarations(kind: type) -> dict[str, tuple]:
    """What the types of a dataclass's fields declare, by name.

    Types in the class's attribute `inherited_types` take the place of those of a base class that is not ours.
    """
    hints = {name: hint for base in kind.__mro__[::-1] for name, hint in inspect.get_annotations(base).items()}
    hints |= getattr(kind, "inherited_types", {})
    return {field.name: tuple(_declared(hints[field.name])) for field in fields(kind)}


def _declared(hint) -> Iterator:
    if hasattr(hint, "__metadata__"):
        for each in hint.__metadata__:
            yield each
            if isinstance(each, Choice):
                yield each.group
        hint = hint.__origin__
    parts = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) is Literal:
        yield OneOf(parts)
    elif len(parts) == 1 and get_origin(parts[0]) is Literal:
        yield OneOf((*get_args(parts[0]), None))
    else:  # `str | Literal[False]` takes any word
        for part in parts:
            yield from _declared(part) if get_origin(part) is not Literal else ()


def check_finite(name: str, value: object):
    """Refuse NaN, infinity and integers beyond 64 bits, also those within dictionaries and lists, as JSON gives them.

    Args:
        name: of the argument, for the message.
        value: anything; what is no number is taken.

    Raises:
        InputError: the first such number and where it stands.
    """
    if isinstance(value, Mapping):
        for key, each in value.items():
            check_finite(f"{name}: {key}", each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            check_finite(name, each)
    elif isinstance(value, Integral) and not -(2**63) <= value < 2**63:
        raise InputError(f"{name} is {value}; give a number of at most 18 digits")
    elif isinstance(value, Real) and not math.isfinite(value):
        raise InputError(f"{name} is {value}; give a finite number")


def _several(value: object) -> list | tuple:
    """The values of a field that takes several; of any other its one value."""
    return value if isinstance(value, (list, tuple)) else [value]


def check_fields(arguments):
    """Refuse numbers that are not finite or outside their range, unknown words, and two choices of one group.

    Args:
        arguments: an instance of a dataclass; a field of None or "" is not given.

    Raises:
        InputError: with the field, its value, and its range or what to do.
    """
    chosen = {}
    for name, declared in declarations(type(arguments)).items():
        value = getattr(arguments, name)
        check_finite(name, value)
        words = [each for each in declared if isinstance(each, OneOf) and value not in each]
        if words:
            raise InputError(f"{name} is {value!r}; it must be {words[0]}")
        for each in () if value in (None, "") else declared:
            outside = [one for one in _several(value) if one not in each] if isinstance(each, Range) else []
            if outside:
                raise InputError(f"{name} is {outside[0]}; it must be {each}")
            if isinstance(each, Choice) and each.group.remedy:
                chosen.setdefault(each.group, []).append(f"{name} {value!r}")
    for group, given in chosen.items():
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} are both given; {group.remedy}")
