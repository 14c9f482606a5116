"""The end of a process that was one of several."""

import atexit
import os
import sys

import torch


def end_process(exit_code: int | None = 0):
    """End this process; one of a group ends without the interpreter's own last steps.

    gloo's threads live as long as anything refers to their group, FSDP's or Accelerate's state for one, and one of them
    may drop the last tensor of a collective only then. It needs the interpreter for that, and where this is being taken
    down already, the process aborts ("terminate called without an active exception") though all its work was done.
    What was registered to run at the exit still runs.

    Args:
        exit_code: None is 0, as for `sys.exit`.
    """
    if not torch.distributed.is_initialized():
        sys.exit(exit_code)
    torch.distributed.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code or 0)
