"""The script with what small and unbalanced sets need: what the summary says, and what comes of it."""

import json

import pytest
import torch
from helpers.runs import RECIPE, STUDENT, arguments, without_teacher, words_of
from safetensors.torch import load_file

import train_deit
from modeling_deit_distill import InputError

KEEPING_THE_BEST = {"load_best_model_at_end": "true", "metric_for_best_model": "macro_f1", "save_total_limit": "1"}


@pytest.fixture
def from_checkpoint(run, photos, tmp_path):
    """A run's settings that start from the finished one's student, with its teacher."""
    chosen = {key: value for key, value in RECIPE.items() if key not in STUDENT and not key.startswith("teacher_")}
    chosen |= {"model_name_or_path": run[0], "teacher_name_or_path": run[0] / "teacher", "train_teacher": "false"}
    return {**chosen, "train_dir": photos, "validation_fraction": "0.25", "output_dir": tmp_path / "out"}


@pytest.mark.slow
def test_a_frozen_body_stops_early_and_is_not_trained_again(from_checkpoint, run, tmp_path, capsys):
    # The student is right on all held-out images already, so no evaluation brings a gain.
    asked = {"freeze_blocks": "1", "layer_decay": "0.5", "balanced_views": "true", "learning_rate": "1e-6"}
    asked |= {"early_stopping_patience": "2", "num_train_epochs": "9", **KEEPING_THE_BEST}
    train_deit.main(words_of({**from_checkpoint, **asked}))
    printed = " ".join(capsys.readouterr().out.split())
    assert "frozen patches, tokens, positions, the first 1 of 2 blocks; nothing is dropped" in printed
    assert "layer decay 0.5: peak 5e-07 in block 2, 1e-06 in the heads" in printed
    assert "balanced views an epoch keeps its" in printed
    assert "early stopping after 2 epochs without a better eval_macro_f1; the best weights are kept" in printed
    assert "stopped early at step " in printed
    before, after = (load_file(folder / "model.safetensors") for folder in (run[0], tmp_path / "out"))
    assert torch.equal(before["deit.layers.0.mlp.fc1.weight"], after["deit.layers.0.mlp.fc1.weight"])
    assert not torch.equal(before["deit.layers.1.mlp.fc1.weight"], after["deit.layers.1.mlp.fc1.weight"])
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["epoch"] == 3
    (tmp_path / "out" / "all_results.json").unlink()  # as if it was killed before its end
    train_deit.main([*words_of({**from_checkpoint, **asked}), "--resume_from_checkpoint", "true"])
    again = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert again["epoch"] == 3 and again["eval_macro_f1"] == results["eval_macro_f1"]


def test_weights_of_classes_are_said_and_resumed_only_with_the_same(photos, tmp_path, capsys):
    weights = tmp_path / "weights.csv"
    weights.write_text("class,weight\nred,2\ngreen,1\nblue,0.5\n")
    settings = {**without_teacher(), "distillation_type": "none", "train_dir": photos, "output_dir": tmp_path / "out"}
    settings |= {"class_weights": weights, "max_steps": "2", "save_strategy": "steps", "save_steps": "1"}
    train_deit.main(words_of(settings))
    printed = " ".join(capsys.readouterr().out.split())
    assert "class weights weights.csv, from 0.5 (blue) to 2 (red); on average 1.1" in printed
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert str(tmp_path) not in json.dumps(record)
    (tmp_path / "out" / "all_results.json").unlink()
    weights.write_text("red,2\ngreen,1\nblue,1\n")
    with pytest.raises(InputError, match=r"made with class_weights \[0.5, 1.0, 2.0\], this run has \[1.0, 1.0, 2.0\]"):
        train_deit.main([*words_of(settings), "--resume_from_checkpoint", "true"])


REFUSED = [
    ({"freeze_blocks": "1"}, "freeze_blocks is 1 but the student is new"),
    ({"class_weights": "balanced", "balanced_views": "true"}, "both make up for rare classes.*keep one"),
    ({"class_weights": "nowhere.json"}, "class_weights 'nowhere.json' is no file"),
    ({"early_stopping_patience": "2"}, "load_best_model_at_end is not true"),
]


@pytest.mark.parametrize(("asked", "words"), REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_trained(photos, tmp_path, asked, words):
    with pytest.raises(InputError, match=words):
        train_deit.main(arguments(train_dir=photos, output_dir=tmp_path / "out", **asked))
    assert not (tmp_path / "out" / "teacher").exists()
