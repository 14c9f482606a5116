"""How a process ends that was one of a group, and one that was alone."""

import os
import shlex
import subprocess
import sys

import pytest
from helpers.paths import ROOT

# Each case is a child of one process, which has imported everything.
SCRIPT = """
import atexit, os
import torch
from modeling_deit_distill.script import end_process


class Last:
    def __del__(self, write=os.write):
        write(1, b"the interpreter was taken down\\n")


def run(kind, given):
    global last
    atexit.register(print, "registered", flush=True)
    last = Last()
    if kind == "group":
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        last.kept = torch.distributed.group.WORLD
    print("printed", end=" ")
    end_process(given)


for kind in ("group", "alone"):
    for given in (3, None):
        child = os.fork()
        if not child:
            run(kind, given)
        print(kind, given, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
EXPECTED = """\
printed registered
group 3 3
printed registered
group None 0
printed registered
the interpreter was taken down
alone 3 3
printed registered
the interpreter was taken down
alone None 0
"""


@pytest.mark.slow
def test_a_process_of_a_group_ends_before_the_interpreter_is_taken_down():
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == EXPECTED


UNREAD = """
import os
from modeling_deit_distill.script import run_script


def main(words):
    os.read(0, 1)  # until the reader has left
    {}


run_script(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rest", "exit_code"),
    [
        ("print('line')", 141),
        ("print('line\\n' * 10**6)", 141),
        ("print('line'); raise SystemExit(0)", 141),
        ("print('line'); return 3", 3),
        ("print('line'); raise SystemExit(2)", 2),
    ],
)
def test_output_that_nobody_reads_ends_the_command_without_a_word(rest, exit_code):
    """As of `train_deit.py ... | head`; 141 is 128 plus SIGPIPE, as a shell reports it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", UNREAD.format(rest)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **streams) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == exit_code


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "exit_code", "said"),
    [
        (">&-", 0, ""),
        (">/dev/full", 1, "error: the output cannot be written (No space left on device)\n"),
    ],
)
def test_a_command_ends_in_order_without_a_place_for_its_output(where, exit_code, said):
    script = "from modeling_deit_distill.script import run_script\nrun_script(lambda words: print('line'))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} {where}"
    done = subprocess.run(command, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (exit_code, said)


# A worker ends as Linux ends one that writes to shared memory which is full.
WORKER_SCRIPT = """
import os, signal
import torch
from modeling_deit_distill.script import run_script


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGBUS)


def main(arguments):
    list(torch.utils.data.DataLoader(Images(), num_workers=1, multiprocessing_context="fork"))


run_script(main, [])
"""


@pytest.mark.slow
def test_a_worker_without_shared_memory_ends_a_command_by_one_line():
    done = subprocess.run([sys.executable, "-c", WORKER_SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "error: shared memory (/dev/shm), which hands over" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
