"""Signals: in training they make a checkpoint and end the run, elsewhere they end it at once."""

import contextlib
import json
import signal
from types import SimpleNamespace

import pytest
import torch
from helpers.saved_checkpoints import SAVING, checkpoint, evaluate_each, names
from helpers.trainers import rows, views_trainer
from transformers import TrainerCallback

from modeling_deit_distill import launcher
from modeling_deit_distill.output_folder import damage
from modeling_deit_distill.signals import Interrupted
from modeling_deit_distill.training.interruption import ending_in_order


class SignalAt(TrainerCallback):
    """SIGTERM within a step, or within its evaluation."""

    def __init__(self, step, in_evaluation=False):
        self.step, self.in_evaluation = step, in_evaluation

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step and not self.in_evaluation:
            signal.raise_signal(signal.SIGTERM)

    def on_evaluate(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.in_evaluation:
            signal.raise_signal(signal.SIGTERM)


class LauncherEndsAt(TrainerCallback):
    """Another parent within a step."""

    def __init__(self, step, monkeypatch):
        self.step, self.monkeypatch = step, monkeypatch

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.monkeypatch.setattr(launcher, "_parent", -1)


@pytest.mark.parametrize(
    ("step", "in_evaluation", "evaluated", "stopped", "evaluations"),
    [
        (1, False, ("no", None), 2, 0),
        (1, False, ("steps", 2), 2, 1),  # what is due at that step is not lost
        (5, False, ("epoch", None), 6, 1),  # nor at the end of an epoch
        (2, True, ("steps", 2), 3, 1),
        (7, False, ("no", None), 8, 0),  # the last step
    ],
)
def test_sigterm_makes_a_checkpoint_after_the_step_and_ends(
    tmp_path, step, in_evaluation, evaluated, stopped, evaluations
):
    run = views_trainer(tmp_path, rows(26), **{**SAVING, "max_steps": 8, "save_strategy": "no", "save_total_limit": 1})
    evaluate_each(run, *evaluated)
    run.add_callback(SignalAt(step, in_evaluation))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=f"checkpoint-{stopped} is whole") as interrupted:
        run.train()
    assert interrupted.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert names(tmp_path) == [f"checkpoint-{stopped}", "interrupted.json"]
    assert damage(tmp_path / f"checkpoint-{stopped}") is None
    kept = {"signal": "SIGTERM", "global_step": stopped, "checkpoint": str(tmp_path / f"checkpoint-{stopped}")}
    assert json.loads((tmp_path / "interrupted.json").read_text()) == kept
    assert len(run.seen) == 4 * stopped
    assert sum("eval_loss" in entry for entry in run.state.log_history) == evaluations


@pytest.mark.parametrize("order", [("SIGTERM", "SIGUSR1"), ("SIGUSR1", "SIGTERM")])
def test_a_job_that_is_cancelled_near_its_time_limit_is_cancelled(tmp_path, order):
    class Signals(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                for name in order:
                    signal.raise_signal(getattr(signal, name))

    run = views_trainer(tmp_path, rows(26), **{**SAVING, "max_steps": 8, "save_strategy": "no", "save_total_limit": 1})
    run.add_callback(Signals())
    with pytest.raises(Interrupted):
        run.train()
    assert json.loads((tmp_path / "interrupted.json").read_text())["signal"] == "SIGTERM"


@pytest.mark.parametrize("is_ignored", [False, True])
def test_a_launcher_that_is_gone_is_as_a_closed_terminal(tmp_path, monkeypatch, capsys, is_ignored):
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_FULLGRAPH", "False")
    run = views_trainer(tmp_path, rows(26), **{**SAVING, "max_steps": 3, "save_strategy": "no"})
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN) if is_ignored else None
    run.add_callback(LauncherEndsAt(1, monkeypatch))
    try:
        with contextlib.nullcontext() if is_ignored else pytest.raises(Interrupted, match="by SIGHUP: .*checkpoint-2"):
            run.train()
    finally:
        if is_ignored:
            signal.signal(signal.SIGHUP, before)
    said = "the launcher has ended: the run ends after this step, as after SIGHUP"
    assert capsys.readouterr().out.count(said) == (not is_ignored)
    assert run.state.global_step == (3 if is_ignored else 2)


def test_a_checkpoint_of_the_model_alone_has_no_command_to_go_on(tmp_path):
    run = views_trainer(
        tmp_path, rows(26), **{**SAVING, "max_steps": 8, "save_only_model": True, "save_strategy": "no"}
    )
    run.add_callback(SignalAt(1))
    with pytest.raises(Interrupted, match="checkpoint-2 holds the model alone .*: model_name_or_path .*checkpoint-2$"):
        run.train()
    assert json.loads((tmp_path / "interrupted.json").read_text())["checkpoint"] is None
    said = interrupted_at_once(run_args(tmp_path))
    assert "alone (save_only_model); start from its weights with --model_name_or_path" in said


def run_args(folder, **changes):
    """What a run's arguments say of its output folder."""
    settings = {
        "process_index": 0,
        "device": torch.device("cpu"),
        "world_size": 1,
        "dry_run": False,
        "overwrite_output_dir": False,
    }
    settings |= {"push_to_hub": False, "do_predict": False, "resume_from_checkpoint": None}
    return SimpleNamespace(output_dir=str(folder), **{**settings, **changes})


def interrupted_at_once(args, *words):
    """What a signal outside training raises."""
    with pytest.raises(Interrupted) as interrupted, ending_in_order(args, list(words)):
        signal.raise_signal(signal.SIGTERM)
    return str(interrupted.value)


def test_a_signal_outside_training_ends_at_once_and_names_the_last_checkpoint(tmp_path):
    folder = tmp_path / "out"
    args = run_args(folder)
    before = signal.getsignal(signal.SIGTERM)
    said = interrupted_at_once(args, "recipe.yaml", "--seed", "3", "--hub_token", "hf_secret")
    go_on = "go on with OMP_NUM_THREADS=1 python train_deit.py recipe.yaml --seed 3 --resume_from_checkpoint true"
    assert said == f"interrupted by SIGTERM: no checkpoint was made yet; {go_on}"
    kept = json.loads((folder / "interrupted.json").read_text())
    assert kept == {"signal": "SIGTERM", "global_step": None, "checkpoint": None}
    checkpoint(folder, 7)
    assert interrupted_at_once(args).startswith(f"interrupted by SIGTERM: {folder / 'checkpoint-7'} is whole; go on")
    assert json.loads((folder / "interrupted.json").read_text())["global_step"] == 7
    with ending_in_order(args, []):
        assert not (folder / "interrupted.json").exists()
    assert names(folder) == ["checkpoint-7"]
    assert signal.getsignal(signal.SIGTERM) is before
    (folder / "all_results.json").write_text("{}")
    assert interrupted_at_once(args) == f"interrupted by SIGTERM: the run in {folder} is finished"
    args.push_to_hub = True
    assert interrupted_at_once(args).endswith(
        "is finished; go on with OMP_NUM_THREADS=1 python train_deit.py --resume_from_checkpoint true"
    )


def test_a_signal_before_an_earlier_run_is_replaced_does_not_go_on_from_that_one(tmp_path):
    checkpoint(tmp_path, 7)
    args, words = run_args(tmp_path, overwrite_output_dir=True), ["--overwrite_output_dir", "--seed", "3"]
    said = interrupted_at_once(args, *words)
    assert "nothing of this run is kept yet, and the earlier one is as it was; go on with " in said
    assert said.endswith("python train_deit.py --overwrite_output_dir --seed 3")
    with pytest.raises(Interrupted) as interrupted, ending_in_order(args, words):
        checkpoint(tmp_path, 7)
        signal.raise_signal(signal.SIGHUP)
    assert "checkpoint-7 is whole" in str(interrupted.value)
    again = "train_deit.py --seed 3 --overwrite_output_dir false --resume_from_checkpoint true"
    assert str(interrupted.value).endswith(again)


def test_a_dry_run_that_is_interrupted_writes_nothing(tmp_path):
    assert interrupted_at_once(run_args(tmp_path / "out", dry_run=True)) == "interrupted by SIGTERM"
    assert not (tmp_path / "out").exists()


def test_what_fails_because_another_process_left_is_that_interruption(tmp_path):
    args = run_args(tmp_path, world_size=2, process_index=1)
    with pytest.raises(RuntimeError, match="Connection closed"), ending_in_order(args, []):
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(Interrupted, match="by SIGUSR1") as interrupted, ending_in_order(args, []):
        (tmp_path / "interrupted.json").write_text('{"signal": "SIGUSR1"}')
        raise RuntimeError("Connection closed by peer")
    assert interrupted.value.code == 138


@pytest.mark.parametrize("save_strategy", ["no", "steps"])
def test_a_signal_after_the_last_step_waits_for_the_results_where_nothing_else_is_kept(tmp_path, save_strategy):
    settings = {**SAVING, "max_steps": 2, "save_strategy": save_strategy}
    run, done = views_trainer(tmp_path, rows(26), **settings), []
    args = run_args(tmp_path)
    with pytest.raises(Interrupted), ending_in_order(args, []), run.interruption.until_results():
        run.train()
        signal.raise_signal(signal.SIGTERM)
        done.append("results")
    assert done == (["results"] if save_strategy == "no" else [])


def test_bars_are_closed_once_though_the_signal_comes_in_the_last_evaluation_of_training(tmp_path):
    settings = {**SAVING, "max_steps": 2, "save_strategy": "no", "disable_tqdm": False}
    run = views_trainer(tmp_path, rows(26), **settings)
    evaluate_each(run, "steps", 2)
    run.add_callback(SignalAt(2, in_evaluation=True))
    with pytest.raises(Interrupted, match="no checkpoint was made yet"), ending_in_order(run_args(tmp_path), []):
        run.train()
