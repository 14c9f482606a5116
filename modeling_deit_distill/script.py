"""How a command runs and ends: one line for bad input, an exit code, and the end of one of several processes."""

import atexit
import contextlib
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import torch

from .errors import InputError, LocalInputError, printable, printable_lines, worker_failure
from .signals import Interrupted, handling, leave, leave_to_the_system

INPUT_ERROR_EXIT_CODE = 2  # argparse's own, for a command line that is wrong
UNREAD_EXIT_CODE = 128 + signal.SIGPIPE  # as a shell reports it
# The name of a thread whose work the end of this process does not wait for, nor for that of the threads that it uses.
LEFT_BEHIND = "left behind"


def run_script(main: Callable[[list[str]], object], arguments: list[str] | None = None):
    """Run a command and end this process with its exit code.

    An [`InputError`] is printed as one line on the error stream, and the exit code is 2. So is a worker of a DataLoader
    that lacks shared memory. Of several processes the first prints it, unless only one of them met it. A signal that
    ends the command is one line too, and the exit code is 128 plus its number. Where nobody reads the output any more,
    the command ends without a word, as after SIGPIPE. Any other error is a fault of ours and keeps its traceback. What
    we log has its control characters written out: names of classes, files and models come from anywhere.

    Args:
        main: takes the command line's words; a whole number that it returns is the exit code.
        arguments: these words; by default those of this process.
    """
    try:
        with handling(leave, takes_ctrl_c=True), _saying_what_interrupted(), _printable_logs():
            returned = main(sys.argv[1:] if arguments is None else arguments)
        exit_code = returned if isinstance(returned, int) else 0
    except InputError as error:
        _end_with_one_line(error)
    except RuntimeError as error:
        if (words := worker_failure(error)) is None:
            raise
        _end_with_one_line(LocalInputError(words))
    except BrokenPipeError:
        if not _is_unread():
            raise
        exit_code = UNREAD_EXIT_CODE
    except Interrupted as interrupted:
        leave_to_the_system()
        exit_code = interrupted.code
    except SystemExit as error:
        exit_code = error.code
    end_process(_flushed(exit_code))


def _is_unread() -> bool:
    """Whether the reader of our output has left, as `head` does."""
    watched = select.poll()
    watched.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in watched.poll(0))


def _flushed(exit_code: int | str | None) -> int | str | None:
    """Write what is left of our output, if there is one; the exit code, another than 0 where it cannot be written."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try again
        if isinstance(error, BrokenPipeError):
            return exit_code or UNREAD_EXIT_CODE
        print(f"error: the output cannot be written ({error.strerror})", file=sys.stderr)
        return exit_code or 1
    return exit_code


def _end_with_one_line(error: InputError):
    if int(os.environ.get("RANK", "0")) == 0 or isinstance(error, LocalInputError):
        print(f"error: {printable(str(error))}", file=sys.stderr)
    _end_beside_threads(_flushed(INPUT_ERROR_EXIT_CODE))


@contextlib.contextmanager
def _printable_logs() -> Iterator[None]:
    make_record = logging.getLogRecordFactory()

    def make_printable(name: str, *args, **kwargs) -> logging.LogRecord:
        """A record, of ours with its control characters written out."""
        record = make_record(name, *args, **kwargs)
        if name.split(".")[0] == __package__:
            record.msg, record.args = printable_lines(record.getMessage()), ()
        return record

    logging.setLogRecordFactory(make_printable)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make_record)


def end_process(exit_code: int | str | None = 0):
    """End this process; one of a group ends without the interpreter's own last steps.

    gloo's threads live as long as anything refers to their group, FSDP's or Accelerate's state for one, and one of them
    may drop the last tensor of a collective only then. It needs the interpreter for that, and where this is being taken
    down already, the process aborts ("terminate called without an active exception") though all its work was done.
    What was registered to run at the exit still runs.

    Args:
        exit_code: None is 0, as for `sys.exit`.
    """
    if not torch.distributed.is_initialized():
        _end_beside_threads(exit_code)
    torch.distributed.destroy_process_group()
    _end_at_once(exit_code)


def _end_beside_threads(exit_code: int | str | None):
    # The interpreter would join the threads that an upload has started, which may hang.
    if any(thread.name == LEFT_BEHIND for thread in threading.enumerate()):
        _end_at_once(exit_code)
    sys.exit(exit_code)


def _end_at_once(exit_code: int | str | None):
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code or 0)


@contextlib.contextmanager
def _saying_what_interrupted() -> Iterator[None]:
    # A bar of progress leaves the cursor in its line; one of a terminal that was closed is written nowhere.
    try:
        yield
    except Interrupted as interrupted:
        if int(os.environ.get("RANK", "0")) == 0:
            with contextlib.suppress(OSError):
                print(f"\n{interrupted}" if sys.stderr.isatty() else interrupted, flush=True)
        raise
