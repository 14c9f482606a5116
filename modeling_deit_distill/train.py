"""`train_deit.py` where there is no checkout: `accelerate launch --quiet -m modeling_deit_distill.train digits.yaml`.

The recipes of `examples/recipes` are in the package, and are found by their names.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the libraries are imported is no traceback

from train_deit import main

from .script import run_script

if __name__ == "__main__":
    run_script(main)
