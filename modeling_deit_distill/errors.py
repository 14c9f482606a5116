"""Errors that a user can fix, and how a command reports them."""

import os
import re
import sys
from collections.abc import Callable

INPUT_ERROR_EXIT_CODE = 2  # argparse's own, for a command line that is wrong


class InputError(ValueError):
    """Bad input: the message names the argument, what was found and the remedy, in one line.

    `train_deit.py` prints it without a stack of frames; anything else that is raised is a fault of ours and keeps its
    traceback.
    """

    def __init__(self, message: str = ""):
        if re.match(r"Caught \w*InputError in DataLoader worker", message):
            # A DataLoader raises a worker's error again with the worker's traceback for its message.
            message = message.strip().rsplit("InputError: ", 1)[-1]
        super().__init__(message)


class LocalInputError(InputError):
    """Bad input that only one of several processes met: a broken image, say. That process prints it."""


def run_command(main: Callable[[list[str]], int | None], arguments: list[str] | None = None) -> int:
    """Run a command; an [`InputError`] is printed as one line on the error stream.

    Of several processes the first prints it, unless only one of them met it.

    Args:
        main: takes the command line's words; may return an exit code.
        arguments: these words; those of this process unless given.

    Returns:
        The exit code of `main`.

    Raises:
        SystemExit: with exit code 2, after an `InputError`.
    """
    try:
        return main(sys.argv[1:] if arguments is None else arguments) or 0
    except InputError as error:
        if int(os.environ.get("RANK", "0")) == 0 or isinstance(error, LocalInputError):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(INPUT_ERROR_EXIT_CODE)


def one_line(error: Exception) -> str:
    """What a library says about an error, in one line of moderate length, to be quoted in a message of ours."""
    return " ".join(str(error).split())[:300]
