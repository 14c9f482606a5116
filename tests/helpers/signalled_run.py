"""What a launcher starts: `train_deit.py` that signals itself, `signalled_run SIGTERM MOMENT WORDS...`."""

import os
import signal
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

from helpers.forked_runs import signal_itself
from helpers.paths import ROOT

sys.path.insert(0, str(ROOT))

import train_deit
from modeling_deit_distill.script import run_script

if __name__ == "__main__":
    kill, moment, *words = sys.argv[1:]
    signal_itself(moment, getattr(signal, kill))
    run_script(train_deit.main, words)
