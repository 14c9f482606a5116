"""The command line of conversion."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.checkpoints import assert_same_weights, student

from modeling_deit_distill import InputError
from modeling_deit_distill.conversion import reading
from modeling_deit_distill.conversion.__main__ import main
from modeling_deit_distill.conversion.checkpoint import load_checkpoint
from modeling_deit_distill.conversion.saving import save_checkpoint

# Command line


def test_a_checkpoint_is_converted_in_one_line(tiny_config, tmp_path, capsys):
    start = student(tiny_config)
    save_checkpoint(start, tmp_path / "ours")
    for target in ("native", "timm", "deit_distill"):
        main([str(tmp_path / "ours"), str(tmp_path / "new" / target), "--to", target])
        printed = capsys.readouterr().out
        assert printed.count("\n") == 1 and printed.endswith(f"{tmp_path / 'new' / target} ({target})\n")
        assert "deit_distill, 24,298 parameters, with distillation token, 5 classes, 32x32 pixels" in printed
        assert_same_weights(load_checkpoint(str(tmp_path / "new" / target)).state_dict, start.state_dict)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"native", "timm", "deit_distill"}


def test_a_destination_in_use_is_left_alone(tiny_config, tmp_path):
    save_checkpoint(student(tiny_config), tmp_path / "ours")
    (tmp_path / "taken").mkdir()
    main([str(tmp_path / "ours"), str(tmp_path / "taken")])  # empty, so it is free
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "taken").iterdir()}
    assert "config.json" in before
    with pytest.raises(InputError, match="taken exists and is not an empty folder; choose another, or empty it"):
        main([str(tmp_path / "ours"), str(tmp_path / "taken")])
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "taken").iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        main([str(tmp_path / "ours"), str(tmp_path / "file" / "below")])


def test_a_conversion_that_fails_leaves_nothing(tiny_config, tmp_path):
    save_checkpoint(student(tiny_config, fusion="softmax_mean"), tmp_path / "ours")
    with pytest.raises(InputError, match="change `fusion`"):
        main([str(tmp_path / "ours"), str(tmp_path / "native"), "--to", "native"])
    assert {path.name for path in tmp_path.iterdir()} == {"ours"}


@pytest.mark.slow
def test_an_error_is_one_line_and_exit_code_two(tmp_path):
    command = [sys.executable, "-m", "modeling_deit_distill.conversion", "nowhere.pth", str(tmp_path / "new")]
    environment = {**os.environ, "PYTHONPATH": str(Path(reading.__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: 'nowhere.pth' is no file") and done.stderr.count("\n") == 1
