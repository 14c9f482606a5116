"""Errors that a user can fix."""

import re


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


class BadImageError(Exception):
    """An image that cannot be shown; the message says why."""
