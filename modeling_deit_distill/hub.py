"""Talking to the Hub: tries again where that helps, waits no longer than a limit, one clear line where it fails."""

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import urlsplit

from huggingface_hub import HfApi, get_session, is_offline_mode
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import hf_raise_for_status, parse_ratelimit_headers
from transformers.utils import CONFIG_NAME

from .errors import InputError, one_line

NUM_TRIES = 5
FIRST_WAIT = 1.0  # seconds; doubled after each try
PASSING_STATUS = (408, 429)  # and all from 500 on
# Seconds in which a request must connect, and after which one that neither sends nor receives a byte has failed.
SILENCE = 60.0
# What the client says of a try that failed, and of the next one.
FAILED_TRY = re.compile(r"(?:'(?P<error>.*)'|(?P<status>HTTP Error \d+)) thrown while requesting \w+ (?P<url>\S+)")
NEXT_TRY = re.compile(r"Retrying in .*\[Retry \d+/\d+\]")
# Stands in the header of every request of ours.
LIBRARY = "modeling_deit_distill"

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

# Until when requests may take, by `time.monotonic`; threads that the client starts for its uploads do not know of it.
_deadline: ContextVar[float | None] = ContextVar("_deadline", default=None)


class HubUnavailable(InputError):
    """The Hub gave no answer, or none but "later", within the tries or the time that there were."""


class NoAnswer(ConnectionError):
    """A request that was not answered. The client does not know this error, so it leaves the next try to us."""


def hub_client(token: str | None = None) -> HfApi:
    """A client whose requests `with_retries` tries again, and not the client itself."""
    return HfApi(token=token, library_name=LIBRARY)


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


def with_retries(request: Callable[[], Answer], action: str, until: float | None = None) -> Answer:
    """Do something on the Hub, up to five times where the fault may pass: 5xx, too many requests, a lost connection.

    This is the only layer of retries for the requests of a [`hub_client`]. What is requested must bear repetition: an
    answer may be lost after the Hub has done it. A time that the Hub asks to wait (`Retry-After`) is waited if it ends
    before `until`. Seconds until a request of no answer is given up: `SILENCE`, or what is left until then.

    Args:
        request: asks.
        action: is what it does, for messages: "push to me/model".
        until: no try begins after it, by `time.monotonic`; without it a wait is at most `SILENCE`.

    Raises:
        HubUnavailable: the fifth failure, or the last before `until`.
        InputError: what the Hub refuses.
    """
    before = _deadline.set(until)
    try:
        with hub_errors(action):
            for number in range(1, NUM_TRIES + 1):
                _leave_retries_to_us(get_session())
                try:
                    return request()
                except Exception as error:
                    wait = max(FIRST_WAIT * 2 ** (number - 1), asked_to_wait(error))
                    left = SILENCE if until is None else until - time.monotonic()
                    if number == NUM_TRIES or not may_pass(error) or wait > left:
                        raise
                    logger.warning(
                        "%s failed (%s); try %d of %d in %g s", action, one_line(error), number + 1, NUM_TRIES, wait
                    )
                    time.sleep(wait)
    finally:
        _deadline.reset(before)


def tell_retries_once():
    """From here on the client's two lines for each try are one line of ours for each host."""
    client = logging.getLogger("huggingface_hub.utils._http")
    if not any(isinstance(each, _RetriesInOneLine) for each in client.filters):
        client.addFilter(_RetriesInOneLine())


class _RetriesInOneLine(logging.Filter):
    def __init__(self):
        super().__init__()
        self._hosts: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line of the client is shown."""
        message = record.getMessage()
        failed = FAILED_TRY.match(" ".join(message.split()))
        if failed is None:
            return NEXT_TRY.match(message) is None
        host = urlsplit(failed["url"]).netloc
        if host not in self._hosts:
            self._hosts.add(host)
            why = one_line(ValueError(failed["error"] or failed["status"]))
            logger.warning(f"{host} does not answer ({why}); it is asked up to 5 times more, for about half a minute")
        return False


def may_pass(error: BaseException | None) -> bool:
    """Whether the same request may succeed later; the client hides what happened behind errors of its own."""
    response = _response(error)
    if response is not None:
        return response.status_code >= 500 or response.status_code in PASSING_STATUS
    causes = _causes(error)
    if any(isinstance(each, OfflineModeIsEnabled) for each in causes):
        return False
    return any(isinstance(each, (HTTPError, ConnectionError, TimeoutError)) for each in causes)  # no answer at all


def offline_remedy(error: BaseException) -> str:
    """What to do where the Hub could not be reached to read something: the end of a message; "" where it could.

    A library hides what happened behind errors of its own.
    """
    if _response(error) is not None:
        return ""
    unreached = (OfflineModeIsEnabled, LocalEntryNotFoundError, HTTPError, ConnectionError, TimeoutError)
    if not any(isinstance(each, unreached) for each in _causes(error)):
        return ""
    if is_offline_mode():
        return "; HF_HUB_OFFLINE is set, so only what was loaded before is found: give a local folder, or unset it"
    return (
        "; without internet access, give a local folder, or set HF_HUB_OFFLINE=1: what was loaded before is then read "
        "at once"
    )


def unread(name: str, error: BaseException) -> str:
    """Why no model was read by a name, a folder's or one on the Hub, and what to do: the end of a message."""
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, CONFIG_NAME)):
        return holds_no_model(name)
    if os.path.isfile(name):
        return (
            f"{name!r} is a file, and a model is a folder with its {CONFIG_NAME} beside its weights; write one by "
            "transformers' save_pretrained, or by timm.models.save_for_hf, and name that"
        )
    reason = f"({one_line(error)}){offline_remedy(error)}"
    if os.path.exists(name):
        return f"{name!r} cannot be read {reason}"
    return (
        f"{name!r} is no folder here and cannot be read from the Hub: check the path or the name, the network, your "
        f"token {reason}"
    )


def holds_no_model(folder: str) -> str:
    """What to do about a folder without a model; one below it that has one is named."""
    found = sorted(path for path in os.listdir(folder) if os.path.isfile(os.path.join(folder, path, CONFIG_NAME)))
    such = f", such as {os.path.join(folder, found[0])!r}" if found else ""
    return f"{folder!r} holds no model (it has no {CONFIG_NAME}); give the output folder of a run{such}"


def asked_to_wait(error: BaseException) -> float:
    """Seconds that the Hub asks to wait before the next request; 0 where it does not."""
    headers = getattr(_response(error), "headers", {})
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:  # no date, or none at all
        return 0.0


@contextlib.contextmanager
def hub_errors(action: str):
    """Say what the Hub refuses in one line.

    Raises:
        HubUnavailable: it may work later.
        InputError: with the remedy that fits.
    """
    try:
        yield
    except InputError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        status = getattr(_response(error), "status_code", None)
        remedy = "run it again"
        if status in (401, 403, 404):
            remedy = "check the names and your token (hf auth login)"
        elif isinstance(error, HFValidationError):
            remedy = "give a name like me/regnet-answers"
        elif isinstance(error, OfflineModeIsEnabled):
            remedy = "unset HF_HUB_OFFLINE"
        elif wait := asked_to_wait(error):
            remedy = f"the Hub asks to wait {wait:.0f} s: run it again then"
        kind = HubUnavailable if may_pass(error) else InputError
        raise kind(f"{action} failed ({one_line(error)}); {remedy}") from error


def _causes(error: BaseException | None) -> list[BaseException]:
    """An error, and what it was raised from."""
    return [] if error is None else [error, *_causes(error.__cause__)]


def _response(error: BaseException | None):
    """The answer that an error, or the first of its causes that has one, is about; None without one."""
    answers = (getattr(each, "response", None) for each in _causes(error))
    return next((answer for answer in answers if answer is not None), None)


def _leave_retries_to_us(session):
    """Let a client, the library's, fail at once where a request of ours does; those of others are as before.

    By itself it tries most requests five times more, sleeps for any time that a server asks for, even an hour, and
    waits for an answer for ever.
    """
    if not isinstance(session.send, _SendOnce):
        session.send = _SendOnce(session.send)


class _SendOnce:
    """A client's method `send` that turns failures of our requests into errors that the client does not try again."""

    def __init__(self, send: Callable):
        self._send = send

    def __call__(self, request, **settings):
        # An upload goes to a signed address and tells nothing of who asks; nothing but pushes uses PUT.
        if request.method != "PUT" and LIBRARY not in request.headers.get("user-agent", ""):
            return self._send(request, **settings)
        until = _deadline.get()
        silence = SILENCE if until is None else min(SILENCE, max(until - time.monotonic(), 0.1))
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), silence)
        try:
            response = self._send(request, **settings)
        except HTTPError as error:
            raise NoAnswer(str(error) or f"no answer within {silence:.0f} s") from error
        if response.status_code >= 500 or response.status_code in PASSING_STATUS:
            response.read()
            hf_raise_for_status(response)
        return response
