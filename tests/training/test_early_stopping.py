"""A run that stops where it gets no better, what it says, and that nothing is trained after it."""

from types import SimpleNamespace

import pytest
from helpers.trainers import CountingTeacher, trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState
from transformers.trainer_utils import SchedulerType

from modeling_deit_distill import DistillationTrainingArguments, InputError
from modeling_deit_distill.training.early_stopping import early_stopping_in_words, evaluations_without_gain, has_stopped

BEST = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
# Four steps an epoch, ten epochs; the metric is what a test says of each evaluation.
STOPPING = {
    **BEST,
    "max_steps": -1,
    "num_train_epochs": 10,
    "metric_for_best_model": "score",
    "greater_is_better": True,
}


def settings_of(**changes):
    values = {"metric_for_best_model": "eval_score", "greater_is_better": True, "early_stopping_patience": 2}
    values |= {"lr_scheduler_type": SchedulerType.COSINE, "eval_strategy": "epoch", "eval_steps": None}
    return SimpleNamespace(**{**values, **changes})


# ---- the count ----


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([], 0), ([0.3], 0), ([0.3, 0.4], 0), ([0.3, 0.3], 1), ([0.5, 0.4, 0.45, 0.5], 3), ([0.5, 0.4, 0.6, 0.1], 1)],
)
def test_evaluations_without_gain_by_hand(scores, expected):
    log = [{"loss": 1.0, "step": 1}, *({"eval_score": score, "step": 2} for score in scores)]
    assert evaluations_without_gain(log, settings_of()) == expected
    losses = [{"eval_score": -score, "step": 2} for score in scores]
    assert evaluations_without_gain(losses, settings_of(greater_is_better=False)) == expected
    at_start = {"eval_score": 0.9, "step": 0}
    assert evaluations_without_gain([at_start, *log], settings_of()) == expected
    assert has_stopped(log, settings_of()) == (expected >= 2)
    assert not has_stopped(log, settings_of(early_stopping_patience=None))


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), max_size=20))
def test_the_count_is_that_of_transformers(scores):
    args, state, control = settings_of(), TrainerState(), TrainerControl()
    callback = EarlyStoppingCallback(100)
    for score in scores:
        callback.on_evaluate(args, state, control, {"eval_score": score})
        if state.best_metric is None or score > state.best_metric:  # as Trainer, afterwards
            state.best_metric = score
    log = [{"eval_score": score, "step": 1} for score in scores]
    assert evaluations_without_gain(log, args) == callback.early_stopping_patience_counter


# ---- a run ----


def run_with(folder, scores, **changes):
    run = trainer(folder, teacher=CountingTeacher(), **{**STOPPING, **changes})
    of_epoch = dict(enumerate(scores, start=1))
    run.compute_metrics = lambda evaluated: {"score": of_epoch[round(run.state.epoch)]}
    return run


def test_a_run_stops_keeps_the_best_and_says_so(tmp_path, capsys):
    run = run_with(tmp_path, [0.5, 0.6, 0.4, 0.6, 0.9], early_stopping_patience=2)
    run.train()
    assert run.state.global_step == 4 * 4
    assert run.state.best_model_checkpoint.endswith("checkpoint-8")
    words = "stopped early at step 16 of 40: 2 evaluation(s) since step 8 brought no better eval_score than 0.6; the "
    words += "weights of checkpoint-8 are loaded"
    assert words in capsys.readouterr().out


def test_a_run_that_gets_better_goes_on_to_its_end(tmp_path, capsys):
    run = run_with(tmp_path, [0.1, 0.1, 0.2, 0.2], num_train_epochs=4, early_stopping_patience=2)
    run.train()
    assert run.state.global_step == 16 and "stopped early" not in capsys.readouterr().out


def test_nothing_is_trained_after_an_early_stop(tmp_path, caplog):
    scores = [0.5, 0.6, 0.4, 0.6, 0.9, 0.1, 0.2, 0.9]
    run_with(tmp_path, scores, early_stopping_patience=2).train()
    again = run_with(tmp_path, scores, early_stopping_patience=2)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 16
    assert "the run stopped early at step 16, so nothing is left to train; a larger" in caplog.text
    assert again.state.best_model_checkpoint.endswith("checkpoint-8")  # and its weights are loaded
    longer = run_with(tmp_path, scores, early_stopping_patience=3)  # the remedy
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 8 * 4 and longer.state.best_metric == 0.9


def test_a_resumed_run_goes_on_counting(tmp_path):
    scores = [0.5, 0.4, 0.4, 0.4, 0.4]
    run_with(tmp_path, scores, num_train_epochs=2, early_stopping_patience=3).train()
    again = run_with(tmp_path, scores, early_stopping_patience=3)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4 * 4  # one of the three was before


def test_the_step_at_which_it_stops_is_kept_where_others_are_not(tmp_path):
    steps = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 8}
    run = run_with(tmp_path, [0.5, 0.4, 0.4, 0.4], early_stopping_patience=2, **steps)
    run.train()
    assert run.state.global_step == 12 and (tmp_path / "checkpoint-12").exists()


# ---- before a run ----


def test_it_needs_the_best_model_to_be_loaded_and_the_remedy_works(tmp_path):
    given = {"early_stopping_patience": 3, "use_cpu": True, "report_to": "none", "output_dir": str(tmp_path)}
    with pytest.raises(
        InputError, match="early_stopping_patience is 3 but load_best_model_at_end is not true"
    ) as caught:
        DistillationTrainingArguments(**given)
    for words in ("load_best_model_at_end true", "eval_strategy epoch", "save_strategy epoch"):
        assert f"--{words}" in str(caught.value)
    args = DistillationTrainingArguments(**given, **BEST, metric_for_best_model="macro_f1")
    assert args.greater_is_better
    with pytest.raises(InputError, match="early_stopping_patience is 0; it must be at least 1"):
        DistillationTrainingArguments(**{**given, **BEST, "early_stopping_patience": 0})


def test_the_summary_says_how_it_goes_with_the_schedule():
    assert early_stopping_in_words(settings_of(early_stopping_patience=None), True) == {}
    words = early_stopping_in_words(settings_of(), trains_teacher=True)["early stopping"]
    assert words == (
        "after 2 epochs without a better eval_score; the best weights are kept; the cosine schedule is planned for the "
        "whole length, so a run that stops early ends before its rate is low; the teacher's training after 2 epochs"
    )
    constant = settings_of(lr_scheduler_type=SchedulerType.CONSTANT_WITH_WARMUP, eval_strategy="steps", eval_steps=50)
    assert early_stopping_in_words(constant, trains_teacher=False)["early stopping"] == (
        "after 2 evaluations (one each 50 steps) without a better eval_score; the best weights are kept"
    )
