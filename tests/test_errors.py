"""Errors of libraries that a user can mend, in words."""

import pytest

from modeling_deit_distill.errors import worker_failure

EXITED = "DataLoader worker (pid(s) 27) exited unexpectedly"
BUS_ERROR = (
    "DataLoader worker (pid 27) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory. Please try to raise your shared memory limit."
)
FULL = (
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  ...\n"
    "RuntimeError: unable to allocate shared memory(shm) for file </torch_26_0>: No space left on device (28)\n"
)
HANDLES = "unable to open shared memory object </torch_26_0> in read-write mode: Too many open files (24)"


def raised(words: str, cause: str | None = None) -> RuntimeError:
    error = RuntimeError(words)
    error.__cause__ = None if cause is None else RuntimeError(cause)
    return error


@pytest.mark.parametrize(
    ("error", "words", "reason"),
    [
        (raised(FULL), "--shm-size=8g", "No space left on device (28)"),
        (raised(EXITED, BUS_ERROR), "--shm-size=8g", "raise your shared memory limit."),
        (raised(BUS_ERROR), "--shm-size=8g", "raise your shared memory limit."),
        (raised(EXITED, "DataLoader worker (pid 27) is killed by signal: Killed. "), "want of memory", "Killed."),
        (raised(HANDLES), "ulimit -n 65536", "Too many open files (24)"),
        (raised("received 0 items of ancdata"), "ulimit -n 65536", "items of ancdata"),
    ],
)
def test_what_a_worker_lacks_is_one_line_with_the_remedy(error, words, reason):
    line = worker_failure(error)
    assert words in line and "--dataloader_num_workers 0 has none" in line and line.endswith(f"{reason})")
    assert "\n" not in line
    assert "fewer workers: --num_workers 0 has none" in worker_failure(error, "--num_workers")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory"),
        raised(EXITED, "DataLoader worker (pid 27) is killed by signal: Terminated. "),
        raised("Caught KeyError in DataLoader worker process 0.\nKeyError: 'image'"),
        OSError(28, "No space left on device"),
    ],
)
def test_other_errors_are_left_alone(error):
    assert worker_failure(error) is None
