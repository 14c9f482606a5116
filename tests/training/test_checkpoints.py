"""Checkpoints: whole or not there, compared before they are gone on from, and without code in them."""

import json
import math
import os
import pickle
import resource
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers.saved_checkpoints import SAVING, checkpoint, evaluate_each, names
from helpers.teachers import save_resnet, teacher_in
from helpers.trainers import CountingTeacher, rows, student, trainer, views_trainer
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import TrainerCallback, trainer_utils

from modeling_deit_distill import InputError, report
from modeling_deit_distill.output_folder import (
    begin_checkpoint,
    best_in,
    commit_checkpoint,
    damage,
    disk_errors_explained,
    last_complete,
    remove_old_checkpoints,
    remove_unfinished_checkpoints,
    step_of,
)
from modeling_deit_distill.training.checkpoints import find_checkpoint

BY_SCORE = {**SAVING, "metric_for_best_model": "score", "greater_is_better": True}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of four steps, six an epoch, with all its checkpoints; never changed."""
    folder = tmp_path_factory.mktemp("trained")
    run = views_trainer(folder, rows(26), **SAVING)
    run.train()
    return folder, run


def test_a_checkpoint_comes_whole_and_leaves_nothing_beside_it(trained):
    folder, _ = trained
    assert names(folder) == [f"checkpoint-{step}" for step in (1, 2, 3, 4)]
    assert all(damage(path) is None for path in folder.iterdir())
    kept = json.loads((folder / "checkpoint-4" / "complete.json").read_text())
    assert kept["facts"]["effective_batch_size"] == 4 and kept["facts"]["num_images"] == 26
    needed = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert needed < kept["files"].keys()
    assert kept["files"].keys() | {"complete.json", "training_args.bin"} == set(names(folder / "checkpoint-4"))


def test_damage_is_named(tmp_path):
    path = checkpoint(tmp_path)
    assert damage(path) is None
    weights = path / "model.safetensors"
    weights.write_bytes(b"Weights" + b"weights" * 99)
    assert "model.safetensors has changed since it was written" in damage(path)
    assert damage(path, contents=False) is None
    weights.write_bytes(b"weights" * 50)
    assert damage(path) == "model.safetensors has 350 bytes instead of 700"
    weights.unlink()
    assert damage(path) == "model.safetensors is missing"
    for content in ('{"files": {"mod', '{"files": []}', '{"files": {}}', "[]"):
        (path / "complete.json").write_text(content)
        assert damage(path) == "complete.json cannot be read"
    (path / "optimizer.pt").unlink()
    assert damage(path) == "it has no optimiser's state"
    (path / "trainer_state.json").write_text("{")
    assert damage(path) == "trainer_state.json is missing or cut off"
    assert damage(tmp_path / "nowhere") == "there is no such folder"


def test_what_is_not_pushed_is_not_missed_and_an_older_checkpoint_is_taken(tmp_path):
    path = checkpoint(tmp_path)
    (path / "training_args.bin").unlink()
    assert damage(path) is None
    (path / "complete.json").unlink()
    assert damage(path) == "config.json is missing"
    (path / "config.json").write_text("{}")
    assert damage(path) is None
    (path / "model.safetensors").unlink()
    assert damage(path) == "model.safetensors is missing"


def test_the_last_whole_one_is_found_by_its_step_and_the_others_are_named(tmp_path, capsys):
    for step in (9, 10, 11):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-11" / "optimizer.pt").write_bytes(b"m")
    found, passed_over = last_complete(tmp_path)
    assert found == tmp_path / "checkpoint-10"
    assert passed_over == {tmp_path / "checkpoint-11": "optimizer.pt has 1 bytes instead of 1,400"}
    settings = {"process_index": 0, "output_dir": str(tmp_path), "overwrite_output_dir": False, "dry_run": False}
    args = SimpleNamespace(**settings, resume_from_checkpoint="true")
    assert find_checkpoint(args) == str(found)
    assert "checkpoint-11: optimizer.pt has 1 bytes instead of 1,400" in capsys.readouterr().out
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").unlink()
    assert find_checkpoint(args) is None
    assert (
        f"no complete checkpoint of the student in {tmp_path} yet: its training starts from the beginning"
        in capsys.readouterr().out
    )
    args.resume_from_checkpoint = str(tmp_path / "checkpoint-11")
    with pytest.raises(InputError, match="checkpoint-11' is no complete checkpoint: optimizer.pt has 1 bytes"):
        find_checkpoint(args)


def test_the_one_of_the_same_step_is_replaced(tmp_path):
    first = checkpoint(tmp_path)
    (first / "only_here").touch()
    checkpoint(tmp_path)
    assert names(tmp_path) == ["checkpoint-1"] and not (first / "only_here").exists()


def test_a_kill_while_one_is_written_loses_nothing_and_half_a_checkpoint_goes(tmp_path):
    checkpoint(tmp_path, 3)
    begin_checkpoint(tmp_path / "checkpoint-3")  # again, of the same step
    begin_checkpoint(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(b"weig")
    checkpoint(tmp_path, 2).rename(tmp_path / "_removing-checkpoint-2")
    (tmp_path / "_saving-5" / "checkpoint-5").mkdir(parents=True)  # of an earlier version
    assert damage(tmp_path / "checkpoint-4") == "its saving was interrupted"
    assert last_complete(tmp_path)[0] is None
    remove_unfinished_checkpoints(tmp_path)
    assert names(tmp_path) == ["checkpoint-3"] and damage(tmp_path / "checkpoint-3") is None


def test_what_a_kill_left_of_a_run_is_no_checkpoint_of_the_next_one(tmp_path):
    checkpoint(tmp_path, 3)
    begin_checkpoint(tmp_path / "checkpoint-3")
    views_trainer(tmp_path, rows(26), **{**SAVING, "max_steps": 1}).train()
    assert names(tmp_path) == ["checkpoint-1"]


def test_the_damaged_and_the_oldest_are_removed_and_never_the_last_or_best(tmp_path):
    paths = {step: checkpoint(tmp_path, step) for step in (2, 9, 10, 30)}
    (paths[30] / "optimizer.pt").unlink()
    remove_old_checkpoints(tmp_path, None, set())
    assert len(names(tmp_path)) == 4
    remove_old_checkpoints(tmp_path, 3, {paths[10]})
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-2", "checkpoint-9"]
    remove_old_checkpoints(tmp_path, 2, {paths[10], paths[2]})
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-2"]
    remove_old_checkpoints(tmp_path, 1, {paths[10], paths[2]})
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-2"]


def test_the_best_checkpoint_is_remembered_under_the_name_it_gets(tmp_path):
    run = views_trainer(tmp_path, rows(26), **BY_SCORE, save_total_limit=1)
    evaluate_each(run, "steps", 1)
    run.train()
    assert (run.state.best_global_step, run.state.best_model_checkpoint) == (1, str(tmp_path / "checkpoint-1"))
    state = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
    assert (state["best_global_step"], state["best_model_checkpoint"]) == (1, None)  # folders move


def test_the_best_checkpoint_is_found_where_the_run_has_moved_to(tmp_path):
    run = views_trainer(tmp_path / "old", rows(26), **BY_SCORE)
    evaluate_each(run, "steps", 1)
    run.args.load_best_model_at_end = True  # only now there is something to evaluate on
    run.train()
    assert run.state.best_global_step == 1
    (tmp_path / "old").rename(tmp_path / "new")
    again = views_trainer(tmp_path / "new", rows(26), **BY_SCORE)
    evaluate_each(again, "steps", 1)
    again.args.load_best_model_at_end = True
    again.train(resume_from_checkpoint=True)
    best, last = (load_file(tmp_path / "new" / f"checkpoint-{step}" / "model.safetensors") for step in (1, 4))
    for name, value in best.items():
        assert torch.equal(run.model.state_dict()[name], value)
        assert torch.equal(again.model.state_dict()[name], value)
    assert not all(torch.equal(value, last[name]) for name, value in best.items())
    shutil.rmtree(tmp_path / "new" / "checkpoint-1")
    with pytest.raises(InputError, match="checkpoint-1, the best so far, is not in .*--load_best_model_at_end false"):
        again.train(resume_from_checkpoint=True)


def test_one_that_the_hub_keeps_under_another_name_is_gone_on_from(trained, tmp_path):
    kept = shutil.copytree(trained[0] / "checkpoint-2", tmp_path / "hub" / "last-checkpoint")
    assert step_of(kept) == 2
    run = views_trainer(tmp_path / "out", rows(26), **SAVING)
    run.train(resume_from_checkpoint=str(kept))
    assert run.seen == trained[1].seen[2 * 4 :]
    assert names(tmp_path / "out") == ["checkpoint-3", "checkpoint-4"]
    for name, value in trained[1].model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name]), name


def test_another_length_is_said(trained, tmp_path, caplog):
    words = "was to take 4 steps, this one takes {}: from here on the learning rate is that of the new length"
    for steps, is_said in ((3, True), (4, False)):
        run = views_trainer(tmp_path, rows(26), **{**SAVING, "max_steps": steps})
        run.train(resume_from_checkpoint=str(trained[0] / "checkpoint-2"))
        assert (words.format(steps) in caplog.text) == is_said
        caplog.clear()


def test_a_fraction_of_the_run_is_no_difference_when_it_is_resumed(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(trainer_utils.logger, "warning_once", said.append)
    for steps, every, batch in ((2, 0.25, 4), (4, 0.25, 4), (6, 0.5, 4), (8, 0.5, 2)):
        halved = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 4 // batch}
        settings = {**SAVING, "max_steps": steps, "logging_steps": every, **halved}
        run = views_trainer(tmp_path, rows(40), **settings)
        run.train(resume_from_checkpoint=steps > 2)
        assert run.state.logging_steps == math.ceil(every * steps)
    assert len(said) == 2 and "logging_steps: 0.5 (from args) != 0.25" in said[0]
    assert "per_device_train_batch_size: 2" in said[1] and "logging_steps" not in said[1]


def test_another_number_of_threads_is_said_once_and_kept(trained, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(report, "_said", set())
    for threads, said in ((torch.get_num_threads(), 0), (7, 1)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        run = views_trainer(tmp_path / str(threads), rows(26), **SAVING)
        run.train(resume_from_checkpoint=str(trained[0] / "checkpoint-2"))
        assert caplog.text.count("this one goes on on CPU") == said
        parts = json.loads((tmp_path / str(threads) / "checkpoint-4" / "complete.json").read_text())["hardware"]
        assert list(parts) == ["0", "2"][: 1 + said] and f"of {threads} thread(s)" in list(parts.values())[-1]


def test_epochs_of_warm_up_are_the_same_though_the_trainer_counts_them_in_steps(tmp_path):
    for steps in (2, 4):
        run = views_trainer(tmp_path, rows(26), **{**SAVING, "max_steps": steps, "warmup_epochs": 0.5})
        run.train(resume_from_checkpoint=steps > 2)
    assert run.state.global_step == 4


def test_what_is_beyond_the_end_is_refused(trained, tmp_path):
    run = views_trainer(tmp_path, rows(26), **{**SAVING, "max_steps": 3})
    with pytest.raises(InputError, match="is of step 4, this run ends at 3"):
        run.train(resume_from_checkpoint=str(trained[0] / "checkpoint-4"))


def test_a_damaged_checkpoint_that_was_named_is_refused(trained, tmp_path):
    shutil.copytree(trained[0] / "checkpoint-2", tmp_path / "checkpoint-2")
    with open(tmp_path / "checkpoint-2" / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    run = views_trainer(tmp_path / "out", rows(26), **SAVING)
    with pytest.raises(InputError, match="model.safetensors has changed"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with pytest.raises(InputError, match="there is no such folder"):
        run.train(resume_from_checkpoint=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="there is no complete checkpoint"):
        run.train(resume_from_checkpoint="true")


def test_training_removes_the_word_of_an_interruption(tmp_path):
    run = views_trainer(tmp_path, rows(26), **{**SAVING, "max_steps": 1})
    (tmp_path / "interrupted.json").write_text("{}")
    run.train()
    assert not (tmp_path / "interrupted.json").exists()


@pytest.mark.parametrize("largest", [3_000, 40_000])
def test_a_full_disk_is_one_line_and_leaves_the_earlier_checkpoint(tmp_path, largest):
    class FillUp(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    run = views_trainer(tmp_path, rows(26), **SAVING)
    run.add_callback(FillUp())
    words = "^checkpoint-3 cannot be written .*checkpoint-2 is intact: make room, then .*--resume_from_checkpoint true$"
    try:
        with pytest.raises(InputError, match=words):
            run.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    sizes = [path.stat().st_size for path in (tmp_path / "checkpoint-2").iterdir()]
    assert max(sizes) > largest
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert damage(tmp_path / "checkpoint-2") is None


TORCHS = "[enforce fail at inline_container.cc:672] . unexpected pos 192 vs 86"


def test_each_librarys_words_for_a_full_disk_are_known(tmp_path):
    for error in (OSError(28, "No space left"), SafetensorError("I/O error"), RuntimeError(TORCHS)):
        with (
            pytest.raises(InputError, match="there is no earlier checkpoint; make room"),
            disk_errors_explained(tmp_path, "the model"),
        ):
            raise error


def test_an_error_of_another_kind_is_not_the_disks(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"), disk_errors_explained(tmp_path, "the model"):
        raise RuntimeError("out of memory")


OTHER_RUNS = [
    ({"per_device_train_batch_size": 8}, "effective_batch_size 4, this run has 8"),
    ({"gradient_accumulation_steps": 2}, "effective_batch_size 4, this run has 8"),
    ({"seed": 1}, "seed 42, this run has 1"),
    ({"repeated_augmentation": 1}, "repeated_augmentation 3, this run has 1"),
    ({"learning_rate": 0.5}, "learning_rate 0.01, this run has 0.5"),
    ({"weight_decay": 0.0}, "weight_decay 0.05, this run has 0.0"),
    ({"adam_beta2": 0.95}, "adam_beta2 0.999, this run has 0.95"),
    ({"max_grad_norm": 1.0}, "max_grad_norm 0.0, this run has 1.0"),
    ({"optim": "sgd", "optim_args": "momentum=0.9"}, 'optim "adamw_torch_fused", this run has "sgd"'),
    ({"warmup_steps": 3}, "warmup_steps 0, this run has 3"),
    ({"warmup_epochs": 1}, "warmup_epochs 0.0, this run has 1"),
    ({"balanced_views": True}, "balanced_views false, this run has true"),
    ({"class_weights": "balanced"}, r"class_weights null, this run has \[1\.238"),
    ({"min_learning_rate": 1e-5}, "min_learning_rate 0.0, this run has 1e-05"),
]


def test_a_checkpoint_of_another_run_is_refused(trained, tmp_path):
    for changes, words in OTHER_RUNS:
        run = views_trainer(tmp_path, rows(26), **{**SAVING, **changes})
        with pytest.raises(InputError, match=f"checkpoint-2 was made with {words}.*give the same to go on"):
            run.train(resume_from_checkpoint=str(trained[0] / "checkpoint-2"))


def test_a_checkpoint_of_other_data_or_of_another_model_is_refused(trained, tmp_path):
    run = views_trainer(tmp_path, rows(27), **SAVING)
    with pytest.raises(InputError, match="num_images 26, this run has 27"):
        run.train(resume_from_checkpoint=str(trained[0] / "checkpoint-2"))
    run = views_trainer(tmp_path, rows(26), **SAVING)
    run.model = student(hidden_size=32, drop_path_rate=0.2)
    with pytest.raises(InputError, match="checkpoint-2 was made with hidden_size 16, this run has 32"):
        run.train(resume_from_checkpoint=str(trained[0] / "checkpoint-2"))


def test_a_checkpoint_of_another_teacher_is_refused(tmp_path):
    def run_with(name, **changes):
        run = views_trainer(tmp_path / "run", rows(26), **{**SAVING, "max_steps": 2})
        model = save_resnet(tmp_path / name, [*"abcdefg"])
        for value in changes.values():
            torch.nn.init.constant_(model.classifier[1].bias, value)
            model.save_pretrained(tmp_path / name)
        run.answers.teacher = teacher_in(tmp_path / name, [*"abcdefg"])
        return run

    run_with("one").train()
    with pytest.raises(InputError, match="checkpoint-1 was made with the teacher one .* this run has other"):
        run_with("other", bias=1.0).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    run_with("moved").train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))


def test_a_module_of_the_users_own_may_change(trained, tmp_path):
    run = views_trainer(tmp_path, rows(26), **SAVING)
    torch.nn.init.zeros_(run.answers.teacher.net[-1].bias)
    run.train(resume_from_checkpoint=str(trained[0] / "checkpoint-2"))
    assert run.state.global_step == 4


def test_the_same_batch_in_other_parts_goes_on(trained, tmp_path):
    run = views_trainer(
        tmp_path, rows(26), **{**SAVING, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    )
    run.train(resume_from_checkpoint=str(trained[0] / "checkpoint-2"))
    assert run.seen == trained[1].seen[2 * 4 :]


def test_a_checkpoint_at_its_last_step_trains_nothing(trained, tmp_path):
    run = views_trainer(tmp_path, rows(26), **SAVING)
    done = run.train(resume_from_checkpoint=str(trained[0] / "checkpoint-4"))
    assert run.seen == [] and run.state.global_step == 4
    # the figures are those of the whole run, although this part of it did nothing
    whole = next(entry for entry in trained[1].state.log_history if "train_loss" in entry)
    assert done.metrics["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-5)
    for name, value in trained[1].model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name]), name


def test_true_takes_the_last_whole_one_or_says_that_there_is_none(trained, tmp_path):
    run = views_trainer(tmp_path, rows(26), **SAVING)
    with pytest.raises(InputError, match="there is no complete checkpoint"):
        run.train(resume_from_checkpoint=True)
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoint-4" / "optimizer.pt").write_bytes(b"")
    run.train(resume_from_checkpoint=True)
    assert run.seen == trained[1].seen[3 * 4 :]


class Exploit:
    """Makes a file where it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(trained, tmp_path, name):
    path = shutil.copytree(trained[0] / "checkpoint-1", tmp_path / "checkpoint-1")
    run = views_trainer(tmp_path, rows(26), **SAVING)
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save(Exploit(tmp_path / "executed"), path / name)
        assert name in damage(path)
        commit_checkpoint(path, json.loads((path / "complete.json").read_text())["facts"])  # by somebody who knows how
        with pytest.raises(InputError, match="holds a pickle with more than numbers in it, which is not loaded"):
            run.train(resume_from_checkpoint=str(path))
        assert not (tmp_path / "executed").exists()


def test_the_best_checkpoint_is_kept_over_a_resumption_though_a_better_evaluation_fell_between_saves(tmp_path):
    saving = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    saving |= {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}

    def run(stop, resume=None):
        each = trainer(tmp_path, teacher=CountingTeacher(), **{**saving, "max_steps": stop})
        scores = {1: 0.1, 2: 0.5, 3: 0.9, 4: 0.2, 5: 0.3, 6: 0.1}  # the best, of step 3, has no checkpoint
        each.compute_metrics = lambda evaluated: {"score": scores[each.state.global_step]}
        each.train(resume_from_checkpoint=resume)
        return each.state

    run(4)
    assert best_in(tmp_path / "checkpoint-4") == "checkpoint-2"
    state = run(6, resume=True)
    assert state.best_global_step == 3 and state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


def test_a_second_training_in_a_folder_removes_the_checkpoints_of_the_first(tmp_path, caplog):
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    views_trainer(tmp_path, rows(26), max_steps=6, **saving).train()
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6"]
    assert "of an earlier training" not in caplog.text
    views_trainer(tmp_path, rows(26), max_steps=4, **saving).train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    assert "holds 2 checkpoint(s) of an earlier training, up to checkpoint-6" in caplog.text


def test_a_checkpoint_of_the_model_alone_is_whole_but_nothing_goes_on_from_it(tmp_path):
    views_trainer(tmp_path, rows(26), save_strategy="steps", save_steps=2, max_steps=4, save_only_model=True).train()
    assert "it holds the model alone (save_only_model)" in damage(tmp_path / "checkpoint-4")
    with pytest.raises(InputError, match=r"it holds the model alone \(save_only_model\)"):
        views_trainer(tmp_path, rows(26)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    (tmp_path / "checkpoint-4" / "model.safetensors").unlink()
    assert damage(tmp_path / "checkpoint-4") == "model.safetensors is missing"
    remove_old_checkpoints(tmp_path, 1, set())
    assert names(tmp_path) == ["checkpoint-2"]  # the damaged one goes first
