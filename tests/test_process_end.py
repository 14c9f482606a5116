import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = """
import atexit, os, sys
import torch
from modeling_deit_distill.process_end import end_process


class Last:
    def __del__(self, write=os.write):
        write(1, b"the interpreter was taken down")


atexit.register(print, "registered", flush=True)
last = Last()
if sys.argv[1] == "group":
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    kept = torch.distributed.group.WORLD
print("printed", end=" ")
end_process({"None": None, "3": 3}[sys.argv[2]])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "expected"), [("group", ""), ("alone", "the interpreter was taken down")])
@pytest.mark.parametrize(("given", "exit_code"), [("3", 3), ("None", 0)])
def test_a_process_of_a_group_ends_before_the_interpreter_is_taken_down(kind, expected, given, exit_code):
    command = [sys.executable, "-c", SCRIPT, kind, given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == exit_code, done.stderr
    assert done.stdout == f"printed registered\n{expected}"
