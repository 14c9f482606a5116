"""The Slurm script, with stand-ins for Slurm's commands: what it runs, and when it goes back into the queue."""

import os
import shlex
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import yaml
from helpers.paths import ROOT

from modeling_deit_distill.recipes import parse_arguments
from modeling_deit_distill.stopping import leave_word

SCRIPT = ROOT / "examples" / "slurm" / "train.sbatch"
OUTPUT_DIR = "outputs/imagenet_deit_small_distilled_hard"  # the recipe's: a run begun by hand goes on
JOB = {"SLURM_JOB_NODELIST": "a,b", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_CPUS_PER_TASK": "12"}


def run_job(folder: Path, number: signal.Signals | None = None) -> tuple[subprocess.CompletedProcess, list[str]]:
    """How a job ended whose run failed or was interrupted by a signal, and what it asked of Slurm's commands."""
    left = "true"
    if number is not None:
        leave_word(SimpleNamespace(output_dir=str(folder)), number, None)
        left = f"mv interrupted.json {OUTPUT_DIR}"
    commands = {
        "scontrol": 'echo "$@" >> said',
        "srun": f'echo "$COMMAND" > said; echo "$@" > words; mkdir -p {OUTPUT_DIR}; {left}; exit 1',
    }
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    environment = {**os.environ, **JOB, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", SCRIPT], cwd=folder, env=environment, capture_output=True, text=True)
    return done, (folder / "said").read_text().splitlines()


def test_it_goes_back_into_the_queue_at_the_end_of_its_time_alone(tmp_path):
    assert "\n#SBATCH --signal=USR1@" in SCRIPT.read_text()
    # The last job finds the record of the one before, which must not bring it back.
    for number, code in ((signal.SIGTERM, 1), (signal.SIGUSR1, 0), (None, 1)):
        done, said = run_job(tmp_path, number)
        assert done.returncode == code, done.stderr
        assert ("requeue 7" in said) == (code == 0)
        assert number is None or number.name in done.stdout


def test_its_command_is_one_of_ours(tmp_path):
    _, said = run_job(tmp_path)
    assert "--cpus-per-task=12" in (tmp_path / "words").read_text()
    python, program, recipe, *words = shlex.split(said[0])
    assert (python, program) == ("python", "train_deit.py")
    assert words[words.index("--output_dir") + 1] == OUTPUT_DIR
    assert yaml.safe_load((ROOT / recipe).read_text())["output_dir"] == OUTPUT_DIR
    *_, args = parse_arguments([str(ROOT / recipe), *words, "--output_dir", str(tmp_path / "out"), "--bf16", "false"])
    assert args.resume_from_checkpoint == "true"


def test_what_is_commented_out_can_be_used(tmp_path):
    """Each line under "What to train" is bash, and its arguments are ours."""
    lines = [line.lstrip("# ") for line in SCRIPT.read_text().splitlines() if line.startswith("# more+=")]
    assert len(lines) == 2
    shown = subprocess.run(
        ["bash", "-c", "\n".join([*lines, 'printf "%s\\n" "${more[@]}"'])], capture_output=True, text=True, check=True
    )
    recipe = str(ROOT / "examples" / "recipes" / "digits.yaml")
    *_, args = parse_arguments([recipe, *shown.stdout.split(), "--output_dir", str(tmp_path), "--bf16", "false"])
    assert args.dry_run and args.teacher_store == "answers"
