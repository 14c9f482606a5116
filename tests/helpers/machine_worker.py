"""What `test_machines.py` launches: `train_deit.py`, with RANK in the words replaced by the process's number."""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

from helpers.paths import ROOT

sys.path.insert(0, str(ROOT))

import train_deit
from modeling_deit_distill.script import run_script

if __name__ == "__main__":
    run_script(train_deit.main, [word.replace("RANK", os.environ["RANK"]) for word in sys.argv[1:]])
