"""Errors that a user can fix."""

import re

# Those of terminals, the breaks of lines, and what turns the direction of writing; halves of surrogates are no text.
CONTROLS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


class InputError(ValueError):
    """Bad input: the message names the argument, what was found and the remedy, in one line.

    A script prints it without a traceback; see `script.run_script`.
    """

    def __init__(self, message: str = ""):
        if re.match(r"Caught \w*InputError in DataLoader worker", message):
            # A DataLoader raises a worker's error again with the worker's traceback for its message.
            message = message.strip().rsplit("InputError: ", 1)[-1]
        super().__init__(message)


class LocalInputError(InputError):
    """Bad input that only one of several processes met: a broken image, say. That process prints it."""


def one_line(error: Exception) -> str:
    """What a library says about an error, in one line of moderate length, to be quoted in a message of ours."""
    return " ".join(str(error).split())[:300]


def printable(value):
    """Text, or JSON of any depth, with its control characters written out: a terminal would obey them."""
    if isinstance(value, dict):
        return {printable(key): printable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [printable(each) for each in value]
    return CONTROLS.sub(_escape, value) if isinstance(value, str) else value


def printable_lines(text: str) -> str:
    """Text of several lines, each [`printable`]."""
    return "\n".join(map(printable, text.split("\n")))


def _escape(match: re.Match) -> str:
    return match[0].encode("unicode_escape").decode()


class BadImageError(Exception):
    """An image that cannot be shown; the message says why."""
