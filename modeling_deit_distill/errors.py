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


# Words of what a DataLoader raises where a worker failed: what that means, and what to do but for having fewer workers.
_HANDLES = "the workers hold more open files than the system allows; allow more (ulimit -n 65536)"
_SHM = "shared memory (/dev/shm), which hands over the workers' batches, is full; give a container more (--shm-size=8g)"
_MEMORY = "the system ended a process that decodes images, most likely for want of memory; give it more"
_WORKER_FAILURES = {
    "mode: Too many open files": _HANDLES,
    "received 0 items of ancdata": _HANDLES,
    "shared memory(shm)": _SHM,
    "shared memory object": _SHM,
    "killed by signal: Bus error": _SHM,
    "killed by signal: Killed": _MEMORY,
}


def worker_failure(error: BaseException, option: str = "--dataloader_num_workers") -> str | None:
    """What a user can do about a DataLoader's worker that failed, in one line.

    Args:
        error: what the DataLoader raised.
        option: by which the user sets the number of workers.

    Returns:
        None where it failed for another reason than want of shared memory, memory or file handles.
    """
    text = f"{error} {error.__cause__ or ''}"
    known = [words for sign, words in _WORKER_FAILURES.items() if sign in text]
    if not known or not isinstance(error, RuntimeError):
        return None
    reason = str(error.__cause__ or error).strip().splitlines()[-1]
    return f"{known[0]}, or have fewer workers: {option} 0 has none ({reason.strip()[:200]})"


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
