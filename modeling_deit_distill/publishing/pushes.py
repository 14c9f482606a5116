"""The thread that pushes, one push after the other, and waiting for it: said while it lasts, and up to a limit.

The library's own (`run_as_future`) is joined by the interpreter at its end, however long an upload hangs. This one is
a daemon: what is under way at the end of the process is waited for once, and then left behind.
"""

import atexit
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future

from ..errors import InputError
from ..hub import HubUnavailable
from ..report import duration
from ..script import LEFT_BEHIND

logger = logging.getLogger(__name__)

TELL_EVERY = 30.0  # seconds
IDLE = "pushes"  # the thread's name while there is nothing to push


class Pushes:
    """Pushes of one run, in their order, on a thread of their own.

    Args:
        max_wait: seconds that the end of a run, and that of the process, wait for them.
        wait: as `concurrent.futures.wait`.
        clock: as `time.monotonic`.
    """

    def __init__(self, max_wait: float, wait: Callable = futures.wait, clock: Callable[[], float] = time.monotonic):
        self.max_wait = max_wait
        self._wait, self._clock = wait, clock
        self._pending: list[Future] = []
        self._queue: queue.SimpleQueue | None = None
        self._thread: threading.Thread | None = None

    @property
    def pending(self) -> list[Future]:
        """Those that are not done."""
        self._pending = [push for push in self._pending if not push.done()]
        return self._pending

    def submit(self, push: Callable, *args, **kwargs) -> Future:
        """Push after those that are pending; what it returns or raises comes with the future."""
        if self._queue is None:
            self._queue = queue.SimpleQueue()
            self._thread = threading.Thread(target=_run, args=(self._queue,), name=IDLE, daemon=True)
            self._thread.start()
            atexit.register(self.drain)
        future = Future()
        self._queue.put((future, functools.partial(push, *args, **kwargs)))
        self._pending.append(future)
        return future

    def result(self, push: Future, action: str):
        """What a push returns, which is waited for `max_wait` seconds; every half minute a line says so.

        Raises:
            HubUnavailable: it is not done by then; it and those before it are left behind.
            Exception: what it raised.
        """
        start = self._clock()
        try:
            while not push.done():
                waited = self._clock() - start
                if waited >= self.max_wait:
                    raise HubUnavailable(
                        f"{action} is not done after {duration(waited)}; run the same command again, or give it longer "
                        "(--hub_max_wait, in seconds)"
                    )
                self._wait([push], timeout=min(TELL_EVERY, self.max_wait - waited))
                if not push.done():
                    waited = duration(self._clock() - start)
                    print(
                        f"waiting for the Hub: {action}, for {waited} of at most {duration(self.max_wait)}", flush=True
                    )
        except BaseException:
            self._pending = []
            self._stop()
            raise
        if not self.pending:
            self._stop().join()
        return push.result()

    def drain(self):
        """Wait for what is pending, as [`Pushes.result`] does; what fails has been said, or is said now."""
        if not self.pending:
            return
        try:
            self.result(self.pending[-1], "the last push of training")
        except InputError as error:
            logger.warning("%s", error)

    def _stop(self) -> threading.Thread:
        """Let the thread end after what it does now; a later push gets another one."""
        self._queue.put(None)
        self._queue = None
        return self._thread


def _run(jobs: queue.SimpleQueue):
    thread = threading.current_thread()
    while (job := jobs.get()) is not None:
        future, push = job
        thread.name = LEFT_BEHIND  # if the process ends now
        try:
            future.set_result(push())
        except BaseException as error:
            future.set_exception(error)
        thread.name = IDLE
