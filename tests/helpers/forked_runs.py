"""Runs of `train_deit.py` that get a signal at a chosen moment, forked from one process that has imported everything.

Starting Python and its imports would cost more than the runs themselves. A moment is a number of function calls since
training began, or within the saving of checkpoints: any place in the code may be hit, and each test hits the same. Or
it is one of `MOMENTS`, by name.
"""

import contextlib
import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from helpers.paths import PYTHONPATH, ROOT

# Where a process signals itself: a function's call of that number, of those that come after the start of another one.
MOMENTS = {
    "reading the data": ("plan:load_image_data", 1, None),
    "the teacher's training": ("teachers.training:_TeacherTrainer.compute_loss", 5, None),
    "evaluating the teacher": ("teachers.training:_TeacherTrainer.prediction_step", 2, None),
    "saving the teacher": ("teachers.checkpoints:commit_checkpoint", 2, None),
    "before the first step": ("trainer:DistillationTrainer.evaluate_teacher", 1, None),
    "a step": ("trainer:DistillationTrainer.compute_loss", 5, None),
    "an evaluation": ("trainer:DistillationTrainer.prediction_step", 1, None),
    "saving": ("training.checkpoints:commit_checkpoint", 2, None),
    "after the last step": ("training.checkpoints:Checkpoints.end", 1, None),
    "the last evaluation": ("trainer:DistillationTrainer.prediction_step", 1, "training.checkpoints:Checkpoints.end"),
    "writing the results": ("publishing.folder:look_inside", 1, None),
}


@dataclass
class Done:
    """How a run ended: the exit code of each process (negative: the signal), what was printed, calls by phase."""

    codes: list[int]
    printed: str
    calls: dict[str, int]


class ForkedRuns:
    """Start the process that forks; `run` asks it for a run and waits."""

    def __init__(self, folder: Path):
        self._log = folder / "forked_run.txt"
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment, "cwd": ROOT}
        self._process = subprocess.Popen([sys.executable, "-m", "helpers.forked_runs"], **pipes)

    def run(
        self,
        words: list[str],
        kill: str | None = None,
        at: int = 0,
        phase: str = "train",
        processes: int = 1,
        moment: str | None = None,
        to_all: bool = False,
    ):
        """A run with these arguments.

        Args:
            words: the command line.
            kill: signal that it sends itself and its workers, or None.
            at, phase: after how many calls, in "train" or in "save"; of the first process.
            processes: how many; a signal that ends one ends all, as under a launcher.
            moment: one of `MOMENTS`, where it signals itself alone, instead of a number of calls.
            to_all: whether all processes signal themselves there, or the first one alone.
        """
        request = {"words": words, "kill": kill, "at": at, "phase": phase, "processes": processes}
        request |= {"moment": moment, "to_all": to_all}
        self._process.stdin.write(json.dumps({**request, "log": str(self._log)}) + "\n")
        self._process.stdin.flush()
        codes = json.loads(self._process.stdout.readline())
        calls = self._log.with_suffix(".json")
        return Done(codes, self._log.read_text(), json.loads(calls.read_text()) if calls.exists() else {})

    def close(self):
        """End the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def serve():
    """Fork a run for each line of standard input, and print its exit codes."""
    import train_deit
    from modeling_deit_distill.script import run_script

    for line in sys.stdin:
        request = json.loads(line)
        Path(request["log"]).write_text("")
        Path(request["log"]).with_suffix(".json").unlink(missing_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = {fork(train_deit, run_script, request, rank, port): rank for rank in range(request["processes"])}
        print(json.dumps(wait_for(ranks)), flush=True)


def wait_for(ranks: dict[int, int]) -> list[int]:
    """The exit codes by rank; the end of one by a signal ends the others."""
    codes = {}
    while len(codes) < len(ranks):
        process, status = os.wait()
        if process in ranks:
            codes[ranks[process]] = os.waitstatus_to_exitcode(status)
            if os.WIFSIGNALED(status):
                for other in ranks.keys() - {process}:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(other, signal.SIGKILL)
    return [codes[rank] for rank in sorted(codes)]


def fork(train_deit, run_script, request: dict, rank: int, port: int) -> int:
    """Start one process of a run; its number."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if request["processes"] > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": request["processes"], "MASTER_PORT": port}
        os.environ.update({**{key: str(value) for key, value in places.items()}, "MASTER_ADDR": "127.0.0.1"})
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if request["moment"] is None:
        calls = count_calls(request["kill"] if rank == 0 else None, request["at"], request["phase"])
    else:
        calls = {}
        if rank == 0 or request["to_all"]:
            signal_itself(request["moment"], getattr(signal, request["kill"]))

    def main(words: list[str]):
        train_deit.main(words)
        sys.setprofile(None)
        if rank == 0:
            Path(request["log"]).with_suffix(".json").write_text(json.dumps(calls))

    code = 1
    try:
        run_script(main, request["words"])
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.setprofile(None)
        sys.stdout.flush()
        os._exit(code)


def signal_itself(moment: str, number: int):
    """Send this process a signal at one of `MOMENTS`."""
    place, count, after = MOMENTS[moment]
    calls, have_begun = [0], [after is None]

    def note():
        calls[0] += have_begun[0]
        if have_begun[0] and calls[0] == count:
            signal.raise_signal(number)

    wrap(place, note)
    if after is not None:
        wrap(after, lambda: have_begun.__setitem__(0, True))


def wrap(place: str, before):
    """Call `before` first whenever what `place` names, within the package, is called."""
    module, _, names = place.partition(":")
    *owners, name = names.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(f"modeling_deit_distill.{module}"))
    method = getattr(owner, name)

    def wrapped(*args, **kwargs):
        before()
        return method(*args, **kwargs)

    setattr(owner, name, wrapped)


def count_calls(kill: str | None, at: int, phase: str) -> dict[str, int]:
    """Count the calls of a trainer's training, and of its savings; send the signal when it is time."""
    from modeling_deit_distill import DistillationTrainer
    from modeling_deit_distill.training.checkpoints import Checkpoints

    calls, phases, process = {"train": 0, "save": 0}, [], os.getpid()

    def count(frame, event, argument):
        if event not in ("call", "c_call") or os.getpid() != process:  # a worker inherits the counting
            return
        for name in phases:
            calls[name] += 1
            if kill is not None and name == phase and calls[name] == at:
                send(getattr(signal, kill))

    def counted(method, name):
        def wrapped(*args, **kwargs):
            phases.append(name)
            sys.setprofile(count)
            try:
                return method(*args, **kwargs)
            finally:
                phases.remove(name)
                sys.setprofile(count if phases else None)

        return wrapped

    DistillationTrainer.train = counted(DistillationTrainer.train, "train")
    DistillationTrainer._save_checkpoint = counted(DistillationTrainer._save_checkpoint, "save")
    Checkpoints.on_save = counted(Checkpoints.on_save, "save")
    return calls


def send(number: int):
    """Send a signal to this process and its workers, as somebody else."""
    killer = os.fork()
    if not killer:
        os.killpg(0, number)
        os._exit(0)
    os.waitpid(killer, 0)


if __name__ == "__main__":
    serve()
