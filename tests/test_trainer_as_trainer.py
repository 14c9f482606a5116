"""What a program relies on that takes our trainer for one of transformers'."""

import pytest
import torch
from helpers.trainers import CountingTeacher, rows, trainer, views_trainer
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from modeling_deit_distill import InputError
from modeling_deit_distill.output_folder import begin_checkpoint, damage


def test_a_prediction_in_bf16_leaves_the_weights_in_fp32(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher(), bf16_full_eval=True)
    run.train()
    run.predict(run.eval_dataset)
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}


def test_a_model_saved_by_hand_moves_no_folder(tmp_path):
    run = trainer(tmp_path / "out", teacher=CountingTeacher(), max_steps=1)
    run.train()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for folder in (f"{tmp_path}/out/", tmp_path / "out", f"{tmp_path}/elsewhere"):
        run.save_model(folder, _internal_call=True)
    assert (tmp_path / "out" / "mine.txt").exists()
    assert not list(tmp_path.glob("_replaced*")) and not (tmp_path / "elsewhere" / "complete.json").exists()


def test_every_other_callback_sees_a_whole_checkpoint(tmp_path):
    seen = []

    class Reporter(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append(damage(tmp_path / f"checkpoint-{state.global_step}"))

    run = views_trainer(tmp_path, rows(26), save_strategy="steps", save_steps=2, max_steps=4)
    run.callback_handler.callbacks.insert(len(run.callback_handler.callbacks) - 1, Reporter())
    run.train()
    assert seen == [None, None]
    own = [type(each).__name__ for each in run.callback_handler.callbacks]
    assert own[:5] == ["SetEpoch", "AverageWeights", "Progress", "Checkpoints", "Publisher"]
    assert own[-1] == "StopAtSignal"


def test_an_unfinished_checkpoint_that_is_named_is_named_as_such(tmp_path):
    views_trainer(tmp_path, rows(26), save_strategy="steps", save_steps=2, max_steps=2).train()
    begin_checkpoint(tmp_path / "checkpoint-4")
    run = views_trainer(tmp_path, rows(26), max_steps=4)
    with pytest.raises(InputError, match="its saving was interrupted; give one, or true for the last"):
        run.train(resume_from_checkpoint=get_last_checkpoint(str(tmp_path)))
    assert run.train(resume_from_checkpoint=True).global_step == 4


def test_the_arguments_are_the_users_own(tmp_path):
    run = views_trainer(tmp_path, rows(26), save_strategy="steps", save_steps=1, max_steps=3, save_total_limit=2)
    run.train()
    assert (run.args.save_total_limit, run.args.hub_strategy) == (2, "every_save")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
