"""Signals that end a command: which they are, what they do, and the exit code that follows."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

# A scheduler's two, Ctrl-C, and that of a terminal that was closed; not every system has them all.
NAMES = ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP")
ENDING = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
# torchrun passes the terminal's Ctrl-C on to processes that have got it already.
ECHO = 1.0  # seconds
# While a command ends, its launcher sends what is left of it SIGTERM. After this time, a signal ends it anew.
SECONDS_TO_END = 5.0
SECONDS_TO_LEAVE_A_DESTRUCTOR = 0.01

_first_ctrl_c: float | None = None
_leaving_since: float | None = None


class Interrupted(SystemExit):
    """The command ends because of a signal. As a `SystemExit`, no library's `except Exception` holds it up.

    The exit code is 128 plus the signal's number, as a shell reports it. From then on [`leave`] takes no further signal
    for `SECONDS_TO_END`.

    Args:
        number: the signal.
        kept: what is on the disk, in words.
        remedy: how to go on, in words.
    """

    def __init__(self, number: int, kept: str = "", remedy: str = ""):
        global _leaving_since
        super().__init__(128 + number)
        _leaving_since = time.monotonic()
        self.number, self.kept, self.remedy = signal.Signals(number), kept, remedy

    def __str__(self) -> str:
        words = f"interrupted by {self.number.name}"
        words += f": {self.kept}" if self.kept else ""
        return f"{words}; {self.remedy}" if self.remedy else words


def leave(number: int):
    """A handler that raises [`Interrupted`]. What comes while the command ends already changes nothing."""
    if _leaving_since is None or time.monotonic() - _leaving_since > SECONDS_TO_END:
        raise Interrupted(number)


@contextlib.contextmanager
def handling(handler: Callable[[int], None], takes_ctrl_c: bool = False) -> Iterator[None]:
    """Call `handler` with the number of each signal of `ENDING` that comes. A second Ctrl-C ends the process at once.

    An [`Interrupted`] that is raised in a destructor is lost there, and its signal is sent once more. What is ignored
    stays so: `nohup` ignores SIGHUP. Only the main thread hears of signals; in another one nothing is
    handled.

    Args:
        handler: takes the signal's number.
        takes_ctrl_c: handle Ctrl-C also where nobody does so yet. Else it raises `KeyboardInterrupt` there, which a
            library's user, in a notebook say, expects.
    """
    global _first_ctrl_c, _leaving_since
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def _handle(number: int, frame):
        if os.getpid() != owner:  # a worker that was forked a moment ago
            return os._exit(128 + number) if number == signal.SIGTERM else None
        _drop_a_dead_terminal()
        if number == signal.SIGINT and _is_second_ctrl_c():
            _end_at_once(number)
        handler(number)

    left_alone = [signal.SIG_IGN, None] + [signal.default_int_handler] * (not takes_ctrl_c)  # None: not Python's
    before = {number: signal.getsignal(number) for number in ENDING}
    taken = {number: kept for number, kept in before.items() if kept not in left_alone}
    if takes_ctrl_c:
        _first_ctrl_c = _leaving_since = None
    report = sys.unraisablehook
    sys.unraisablehook = lambda lost: _send_again(lost.exc_value, owner) or report(lost)
    for number in taken:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, kept in taken.items():
            signal.signal(number, kept)


def _send_again(lost: BaseException | None, owner: int) -> bool:
    """Send the signal of an [`Interrupted`] again, a moment later: what lost it runs still. Whether it was one."""
    global _leaving_since
    if not isinstance(lost, Interrupted) or os.getpid() != owner:
        return False
    _leaving_since = None
    threading.Timer(SECONDS_TO_LEAVE_A_DESTRUCTOR, os.kill, (owner, lost.number)).start()
    return True


def pass_on(number: int):
    """Hand a signal that was noted to whoever handles it now. A Ctrl-C that is passed on stays the first one.

    Raises:
        Interrupted: nobody does.
    """
    global _first_ctrl_c
    if signal.getsignal(number) is signal.SIG_DFL:  # a library's user's, whose process would end here
        raise Interrupted(number)
    _first_ctrl_c = None
    signal.raise_signal(number)


def leave_to_the_system():
    """From here on a signal ends the process at once and in silence: there is nothing left to keep."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _is_second_ctrl_c() -> bool:
    global _first_ctrl_c
    now, first = time.monotonic(), _first_ctrl_c
    if first is None:
        _first_ctrl_c = now
        return False
    return "TORCHELASTIC_RUN_ID" not in os.environ or now - first > ECHO


def _end_at_once(number: int):
    if int(os.environ.get("RANK", "0")) == 0:
        with contextlib.suppress(OSError):  # not `print`, which may be what was interrupted
            os.write(1, b"\ninterrupted by a second Ctrl-C: stopped at once; checkpoints made before are whole\n")
    for child in multiprocessing.active_children():
        child.terminate()
    os._exit(128 + number)


def _drop_a_dead_terminal():
    """Write no more to a terminal that was closed: each line would be an error, and end the training."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), descriptor)
