"""Machines without a shared disk: two processes with folders of their own."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers.paths import PYTHONPATH, ROOT
from helpers.runs import arguments, words_of

from modeling_deit_distill import InputError, machines
from modeling_deit_distill.machines import check_shared_folders


@pytest.fixture
def check(monkeypatch):
    """`check(shared, ...)`: the check of a run on two machines that share the folders `shared`."""

    def run(*shared, train_teacher=False, **changes):
        monkeypatch.setattr(machines, "_is_shared", lambda folder, args: str(folder) in shared)
        monkeypatch.setattr(machines, "gather_object", lambda objects: objects * 2)
        settings = {
            "world_size": 2,
            "process_index": 0,
            "local_process_index": 0,
            "dry_run": False,
            "output_dir": "out",
        }
        settings |= {"distillation_type": "hard", "teacher_store": None, "resume_from_checkpoint": None}
        settings |= {"load_best_model_at_end": False, "save_on_each_node": False}
        check_shared_folders(SimpleNamespace(train_teacher=train_teacher), SimpleNamespace(**{**settings, **changes}))

    return run


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train_teacher": True}, "output_dir 'out', from which all read the teacher .*train_teacher"),
        ({"resume_from_checkpoint": "true"}, "output_dir 'out', .*resume_from_checkpoint"),
        ({"load_best_model_at_end": True}, "output_dir 'out', .*load_best_model_at_end"),
        ({"teacher_store": "answers"}, "teacher_store 'answers'"),
        ({"teacher_store": "out/answers"}, "output_dir 'out', from which all read the teacher's answers .*view_epochs"),
    ],
)
def test_what_is_read_back_must_be_shared(check, changes, named):
    with pytest.raises(InputError, match=f"machines must share {named}"):
        check(**changes)
    check("out", ".", **changes)
    check(**changes, world_size=1)
    check(**changes, dry_run=True)


def test_a_run_without_a_teacher_needs_no_store(check, capsys):
    check(distillation_type="none", train_teacher=True, teacher_store="answers")
    assert "output_dir 'out' is not shared" in capsys.readouterr().out


def test_each_machine_saves_only_where_it_has_a_folder_of_its_own(check, capsys):
    check(save_on_each_node=True)
    assert "output_dir 'out' is not shared: the results are where process 0 runs" in capsys.readouterr().out
    with pytest.raises(InputError, match="save_on_each_node: 2 machines share output_dir 'out'"):
        check("out", save_on_each_node=True)


def launch(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    command += ["-m", "helpers.machine_worker", *words]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)


SHORT = {"dataset_name": "digits", "max_steps": "4", "eval_strategy": "no", "save_strategy": "steps", "save_steps": "2"}


@pytest.mark.slow
def test_a_teacher_is_trained_only_where_all_can_read_it(tmp_path):
    short = {**SHORT, "teacher_num_train_epochs": "1", "allow_weak_teacher": "true"}
    refused = launch(*arguments(**short, output_dir=tmp_path / "machine-RANK"))
    assert refused.returncode != 0
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert "machine-0', from which all read the teacher that process 0 trains there" in line
    assert not any((tmp_path / "machine-0").iterdir()) and not (tmp_path / "machine-1").exists()
    shared = launch(*arguments(**short, output_dir=tmp_path / "shared"))
    assert shared.returncode == 0, shared.stderr[-3000:]
    assert {"teacher", "all_results.json"} <= {path.name for path in (tmp_path / "shared").iterdir()}
    assert not list((tmp_path / "shared").glob(".shared-*"))


@pytest.mark.slow
def test_any_other_run_goes_on_and_ends_well_on_both(tmp_path):
    student = {key: value for key, value in SHORT.items()} | {"distillation_type": "none", "use_cpu": "true"}
    student |= {"hidden_size": "16", "num_hidden_layers": "2", "num_attention_heads": "2", "intermediate_size": "32"}
    student |= {
        "image_size": "16",
        "patch_size": "4",
        "report_to": "none",
        "bf16": "false",
        "repeated_augmentation": "1",
    }
    words = words_of({**student, "output_dir": tmp_path / "machine-RANK"})
    done = launch(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "is not shared: the results are where process 0 runs" in done.stdout
    assert (tmp_path / "machine-0" / "all_results.json").exists()
    assert not (tmp_path / "machine-1" / "all_results.json").exists()
    again = launch(*words)  # process 1 knows of no results
    assert again.returncode == 0, again.stderr[-3000:]
    assert "holds a finished run; nothing is trained" in again.stdout
