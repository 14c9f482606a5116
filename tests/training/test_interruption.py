"""SIGTERM: in training it makes a checkpoint and ends, elsewhere it ends at once."""

import json
import signal
from types import SimpleNamespace

import pytest
from helpers.saved_checkpoints import SAVING, checkpoint, evaluate_each, names
from helpers.trainers import rows, views_trainer
from transformers import TrainerCallback

from modeling_deit_distill.output_folder import damage
from modeling_deit_distill.training.interruption import Interrupted, ending_in_order


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


def test_sigterm_outside_training_ends_at_once_and_names_the_last_checkpoint(tmp_path, capsys):
    args = SimpleNamespace(process_index=0, output_dir=str(tmp_path / "out"), dry_run=False)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="no checkpoint was made yet"), ending_in_order(args):
        signal.raise_signal(signal.SIGTERM)
    kept = json.loads((tmp_path / "out" / "interrupted.json").read_text())
    assert kept == {"signal": "SIGTERM", "global_step": None, "checkpoint": None}
    checkpoint(tmp_path / "out", 7)
    with pytest.raises(Interrupted, match="checkpoint-7 is whole"), ending_in_order(args):
        assert not (tmp_path / "out" / "interrupted.json").exists()
        signal.raise_signal(signal.SIGTERM)
    assert json.loads((tmp_path / "out" / "interrupted.json").read_text())["global_step"] == 7
    assert "--resume_from_checkpoint true goes on" in capsys.readouterr().out
    with ending_in_order(args):
        pass
    assert names(tmp_path / "out") == ["checkpoint-7"]
    assert signal.getsignal(signal.SIGTERM) is before
