"""Talking to the Hub: tries again where that helps, one clear line where it does not."""

import contextlib
import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled

from .errors import InputError, one_line

NUM_TRIES = 5
FIRST_WAIT = 1.0  # seconds; doubled after each try
PASSING_STATUS = (408, 429)  # and all from 500 on

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


def check_license(name: str | None):
    """Refuse what cannot be the identifier of a licence on the Hub, which would refuse the card after the training.

    Raises:
        InputError: upper case, spaces, or `none`.
    """
    if name is not None and (name == "none" or not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name)):
        raise InputError(
            f"license is {name!r}; give the Hub's identifier of it (mit, apache-2.0, cc-by-4.0, other, ...; "
            "https://huggingface.co/docs/hub/repositories-licenses), or leave it out for none"
        )


def with_retries(request: Callable[[], Answer], action: str) -> Answer:
    """Do something on the Hub, up to five times where the fault may pass: 5xx, too many requests, a lost connection.

    The client by itself tries single transfers again, but neither the creation of a repository nor a commit. What is
    requested must bear repetition: an answer may be lost after the Hub has done it. `action` is what it does, for
    messages: "push to me/model".

    Raises:
        InputError: what the Hub refuses, or the fifth failure.
    """
    with hub_errors(action):
        for number in range(1, NUM_TRIES + 1):
            try:
                return request()
            except Exception as error:
                if number == NUM_TRIES or not may_pass(error):
                    raise
                wait = FIRST_WAIT * 2 ** (number - 1)
                logger.warning(
                    "%s failed (%s); try %d of %d in %g s", action, one_line(error), number + 1, NUM_TRIES, wait
                )
                time.sleep(wait)


def may_pass(error: BaseException | None) -> bool:
    """Whether the same request may succeed later; the client hides what happened behind errors of its own."""
    while error is not None:
        if isinstance(error, OfflineModeIsEnabled):
            return False
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return status >= 500 or status in PASSING_STATUS
        if isinstance(error, (HTTPError, ConnectionError, TimeoutError)):  # no answer at all
            return True
        error = error.__cause__
    return False


@contextlib.contextmanager
def hub_errors(action: str):
    """Say what the Hub refuses in one line.

    Raises:
        InputError: with the remedy that fits.
    """
    try:
        yield
    except InputError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        remedy = "run it again"
        if status in (401, 403, 404):
            remedy = "check the names and your token (hf auth login)"
        elif isinstance(error, HFValidationError):
            remedy = "give a name like me/regnet-answers"
        elif isinstance(error, OfflineModeIsEnabled):
            remedy = "unset HF_HUB_OFFLINE"
        raise InputError(f"{action} failed ({one_line(error)}); {remedy}") from error
