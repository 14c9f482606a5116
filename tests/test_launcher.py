"""The words that start a run again as it was started."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.paths import PYTHONPATH

from modeling_deit_distill import launcher
from modeling_deit_distill.launcher import launching

ACCELERATE = {"ACCELERATE_DYNAMO_USE_FULLGRAPH": "False"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2"}
CHILD = """if True:
    from types import SimpleNamespace
    import torch
    from modeling_deit_distill.launcher import launching
    print(launching(SimpleNamespace(world_size=1, device=torch.device("cpu"))))
"""


def started(monkeypatch, variables, world_size=1, threads=None, parent=()):
    """What is printed where a launcher has set these variables."""
    for name in (*ACCELERATE, *TORCHRUN, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**variables, **({"OMP_NUM_THREADS": threads} if threads else {})}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launcher, "_words_of_parent", lambda script: list(parent))
    return launching(SimpleNamespace(world_size=world_size, device=torch.device("cpu")))


def test_the_launcher_that_was_used_is_named(monkeypatch):
    for words, said in (
        (({},), "python train_deit.py"),
        (({}, 1, "1"), "OMP_NUM_THREADS=1 python train_deit.py"),
        (({}, 2), "the same launcher and train_deit.py"),
        ((ACCELERATE, 1, "1"), "accelerate launch --quiet train_deit.py"),
        ((ACCELERATE, 1, "2"), "accelerate launch --quiet --num_cpu_threads_per_process 2 train_deit.py"),
        ((ACCELERATE | TORCHRUN, 2, "1"), "accelerate launch --quiet --num_processes 2 train_deit.py"),
        ((TORCHRUN, 2, "1"), "torchrun --nproc_per_node 2 train_deit.py"),
        ((TORCHRUN, 2, "3"), "OMP_NUM_THREADS=3 torchrun --nproc_per_node 2 train_deit.py"),
    ):
        assert started(monkeypatch, *words) == said


def test_the_launchers_own_arguments_stay(monkeypatch):
    words = ["accelerate", "launch", "--quiet", "--config_file", "my fsdp.yaml"]
    said = "accelerate launch --quiet --config_file 'my fsdp.yaml' train_deit.py"
    assert started(monkeypatch, ACCELERATE, 2, "1", words) == said
    words = ["accelerate", "launch", "--num-cpu-threads-per-process", "2"]
    assert started(monkeypatch, ACCELERATE, 1, "2", words) == " ".join([*words, "train_deit.py"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["accelerate", "launch", "--quiet", "--mixed_precision", "no"], None),
        (["/anywhere/bin/accelerate", "launch", "--quiet"], ["accelerate", "launch", "--quiet"]),
        (["python3.12", "/anywhere/bin/torchrun", "--standalone"], ["torchrun", "--standalone"]),
        (["/usr/bin/python3", "-m", "torch.distributed.run"], ["python", "-m", "torch.distributed.run"]),
        (["bash", "job.sh"], []),
    ],
)
def test_the_launchers_words_are_those_before_the_script(monkeypatch, words, said):
    monkeypatch.setattr(launcher, "_parents_words", [*words, "code/train_deit.py", "recipe.yaml"])
    assert launcher._words_of_parent("train_deit.py") == (words if said is None else said)
    monkeypatch.setattr(launcher, "_parents_words", [])
    assert launcher._words_of_parent("train_deit.py") == []


def test_a_module_is_started_as_a_module(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="modeling_deit_distill.train"))
    module = "-m modeling_deit_distill.train"
    assert started(monkeypatch, {}) == f"python {module}"
    assert started(monkeypatch, ACCELERATE, 2, "1") == f"accelerate launch --quiet --num_processes 2 {module}"
    monkeypatch.undo()
    for option in ("-m", "--module"):
        words = ["accelerate", "launch", "--quiet", option, "modeling_deit_distill.train", "digits.yaml"]
        monkeypatch.setattr(launcher, "_parents_words", words)
        assert launcher._words_of_parent(module) == ["accelerate", "launch", "--quiet"]


@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="the system tells no command line")
def test_a_processes_words_are_read():
    assert "pytest" in " ".join(launcher._words_of(os.getppid())) + " ".join(launcher._words_of(os.getpid()))
    assert launcher._words_of(-1) == []


@pytest.mark.slow
def test_accelerate_launch_and_its_threads(tmp_path):
    script = tmp_path / "train_deit.py"
    script.write_text(CHILD)
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    for more in ([], ["--num_cpu_threads_per_process", "2"]):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *more, str(script)]
        environment |= {"PYTHONPATH": PYTHONPATH}
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert said.strip() == " ".join(["python -m accelerate.commands.launch --quiet", *more, "train_deit.py"])
