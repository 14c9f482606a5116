"""Whether a finished run would go on with what is changed now."""

from types import SimpleNamespace

import pytest

from modeling_deit_distill.training.extension import is_longer

EPOCHS = {"max_steps": 700, "global_step": 700, "epoch": 100.0}
PART_OF_AN_EPOCH = {"max_steps": 11, "global_step": 11, "epoch": 11 / 7}  # 1.5 epochs of seven steps
STOPPED = {"max_steps": 700, "global_step": 280, "epoch": 40.0}
LOG = [{"eval_loss": loss, "step": step} for step, loss in ((7, 0.5), (14, 0.6), (21, 0.7))]


@pytest.mark.parametrize(
    ("state", "changed", "is_it"),
    [
        (EPOCHS, {"num_train_epochs": 100}, False),
        (EPOCHS, {"num_train_epochs": 50}, False),
        (EPOCHS, {"num_train_epochs": 200}, True),
        (EPOCHS, {"num_train_epochs": 100.5}, True),
        (EPOCHS, {"max_steps": 700}, False),
        (EPOCHS, {"max_steps": 701}, True),
        (PART_OF_AN_EPOCH, {"num_train_epochs": 1.5}, False),
        (PART_OF_AN_EPOCH, {"num_train_epochs": 2}, True),
        (STOPPED, {"num_train_epochs": 100, "early_stopping_patience": 2}, False),
        (STOPPED, {"num_train_epochs": 200, "early_stopping_patience": 2}, False),  # it would stop again at once
        (STOPPED, {"num_train_epochs": 100, "early_stopping_patience": 3}, True),
        (STOPPED, {"num_train_epochs": 100}, True),
    ],
)
def test_a_run_is_longer_by_epochs_steps_or_patience(state, changed, is_it):
    settings = {"max_steps": -1, "num_train_epochs": 3.0, "early_stopping_patience": None}
    settings |= {"metric_for_best_model": "loss", "greater_is_better": False}
    assert is_longer({**state, "log_history": LOG}, SimpleNamespace(**{**settings, **changed})) == is_it
