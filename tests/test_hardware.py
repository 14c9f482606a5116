"""What a run computes on, in words."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from modeling_deit_distill import hardware, hints
from modeling_deit_distill.hardware import (
    change_in_words,
    device_in_words,
    hardware_by_step,
    keep_freed_memory,
    num_cores,
    parts_in_words,
    workers_by_default,
    workers_in_words,
)

CPU = torch.device("cpu")


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for module in (hardware, hints):
        monkeypatch.setattr(module, "num_cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("ACCELERATE_DYNAMO_USE_FULLGRAPH", raising=False)


def test_the_summary_tells_threads_and_cores(two_cores, monkeypatch):
    assert device_in_words(SimpleNamespace(device=CPU, world_size=1)) == "cpu, 1 of 2 cores (OMP_NUM_THREADS)"
    assert "1 of 2 cores in each process" in device_in_words(SimpleNamespace(device=CPU, world_size=2))
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert device_in_words(SimpleNamespace(device=CPU, world_size=1)) == "cpu, 1 of 2 cores"
    assert device_in_words(SimpleNamespace(device=torch.device("cuda:0"), world_size=1)) == "cuda:0"


def test_the_card_names_the_device():
    assert hardware.hardware(SimpleNamespace(device=torch.device("mps"), world_size=1)) == "1 × mps"
    assert hardware.hardware(SimpleNamespace(device=CPU, world_size=2)).startswith("CPU (")


def test_a_hint_where_cores_are_left_alone(two_cores, monkeypatch):
    args = SimpleNamespace(device=CPU, world_size=1)
    assert hints.of_threads(args) == "OMP_NUM_THREADS leaves this run 1 of 2 cores; all of them: OMP_NUM_THREADS=2"
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_FULLGRAPH", "False")
    assert "accelerate launch --quiet --num_cpu_threads_per_process 2 train_deit.py" in hints.of_threads(args)
    assert hints.of_threads(SimpleNamespace(device=CPU, world_size=2)) is None
    assert hints.of_threads(SimpleNamespace(device=torch.device("cuda"), world_size=1)) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert hints.of_threads(args) is None


def test_the_parts_of_a_run_and_their_hardware():
    begun = hardware_by_step({}, 0, "one thread")
    assert begun == {"0": "one thread"} and hardware_by_step(begun, 12, "one thread") == begun
    parts = hardware_by_step(begun, 1200, "two threads")
    assert parts_in_words(parts) == "one thread; from step 1,200 on two threads"
    assert change_in_words({}, "one thread") is change_in_words(begun, "one thread") is None
    assert change_in_words(begun, "two threads").startswith("the checkpoint is of a run on one thread, this one goes")
    assert change_in_words(parts, "two threads") is None


# --- workers ----------------------------------------------------------------------------------------------------------


def test_workers_are_the_cores_shared_among_the_processes(monkeypatch):
    monkeypatch.setattr("multiprocessing.get_start_method", lambda allow_none: "fork")
    for cores, processes, expected in [(8, 1, 8), (8, 2, 4), (8, 3, 2), (2, 8, 1), (96, 1, 16), (96, 8, 12)]:
        monkeypatch.setattr(hardware, "num_cores", lambda cores=cores: cores)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert workers_by_default("cuda") == expected, (cores, processes)
        assert workers_by_default("cpu") == 0
    monkeypatch.setattr("multiprocessing.get_start_method", lambda allow_none: "spawn")
    assert workers_by_default("cuda") == 0


@pytest.mark.parametrize(("cores", "expected"), [(12, 12), (96, 12), (1, 1)])
def test_a_task_of_slurm_has_its_share_whether_it_is_bound_to_it_or_not(monkeypatch, cores, expected):
    monkeypatch.setattr(hardware, "num_cores", lambda: cores)
    for name, value in (("SLURM_GTIDS", "0,1,2,3,4,5,6,7"), ("SLURM_CPUS_ON_NODE", "96")):
        monkeypatch.setenv(name, value)
    assert (hardware.processes_of_machine(), hardware.cores_of_process()) == (8, expected)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # torchrun in a task
    assert (hardware.processes_of_machine(), hardware.cores_of_process()) == (4, max(cores // 4, 1))
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setenv("SLURM_GTIDS", "0")  # a batch script, which Slurm binds to nothing
    assert (hardware.processes_of_machine(), hardware.cores_of_process()) == (1, cores)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8), ("", 8)],
)
def test_a_container_may_have_fewer_cores(tmp_path, monkeypatch, quota, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(8), raising=False)
    monkeypatch.setattr(hardware, "QUOTA", tmp_path / "cpu.max")
    assert num_cores() == 8
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert num_cores() == expected


def test_memory_is_shared_and_bounded_by_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=800))
    monkeypatch.setattr(hardware, "MOST_MEMORY", tmp_path / "memory.max")
    monkeypatch.setattr(hardware, "MEMORY_IN_USE", tmp_path / "memory.current")
    for name in ("LOCAL_WORLD_SIZE", "SLURM_GTIDS"):
        monkeypatch.delenv(name, raising=False)
    assert hardware.spare_memory() == 800
    monkeypatch.setenv("SLURM_GTIDS", "8,9,10,11")  # the second of two nodes
    assert hardware.spare_memory() == 200
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert hardware.spare_memory() == 400
    (tmp_path / "memory.current").write_text("300\n")
    for most, expected in (("max", 400), ("900", 300), ("200", 0)):
        (tmp_path / "memory.max").write_text(f"{most}\n")
        assert hardware.spare_memory() == expected


def test_the_summary_tells_the_workers(monkeypatch):
    monkeypatch.setattr(hardware, "num_cores", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    four, none = SimpleNamespace(dataloader_num_workers=4), SimpleNamespace(dataloader_num_workers=0)
    assert workers_in_words(four, is_automatic=False) == "4 in each process"
    words = "4 in each process, which has 4 cores; --dataloader_num_workers overrides this"
    assert workers_in_words(four, is_automatic=True) == words
    for is_automatic in (True, False):
        assert workers_in_words(none, is_automatic) == "0: the training process decodes the images itself"


PAGE_FAULTS = """
import resource
from modeling_deit_distill.hardware import keep_freed_memory

def faults_of_blocks(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        blocks = [bytearray(20_000_000) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of_blocks(2)
given_back = faults_of_blocks(5)
is_kept = keep_freed_memory("cpu")
faults_of_blocks(2)
print(is_kept, given_back, faults_of_blocks(5))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_freed_memory_is_used_again():
    """In place of five times some 20,000 new pages, next to none."""
    environment = {name: value for name, value in os.environ.items() if name not in hardware._USERS_MALLOC}
    done = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS], env=environment, capture_output=True, text=True, check=True
    )
    is_kept, given_back, kept = done.stdout.split()
    assert is_kept == "True" and int(kept) < int(given_back) / 10


def test_memory_is_left_to_other_devices_users_and_libraries(monkeypatch):
    assert not keep_freed_memory("cuda")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keep_freed_memory("cpu")
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory("cpu")
