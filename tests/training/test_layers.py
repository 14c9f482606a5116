"""Which layers train and how fast, by hand; what is frozen keeps every bit."""

from types import SimpleNamespace

import pytest
import torch
from helpers.trainers import CountingTeacher, rows, snapshot, student, trainer, views_trainer
from torch.optim import AdamW

from modeling_deit_distill import DeiTDistillConfig, DistillationTrainingArguments, InputError
from modeling_deit_distill.training.layers import (
    check_layers,
    freeze,
    layer_of,
    layer_scale,
    layers_in_words,
    scaled_by_layer,
)
from modeling_deit_distill.training.schedule import check_optimisation


def test_layers_are_numbered_as_in_beit_and_timm():
    # Two blocks: embeddings 0, blocks 1 and 2, norm and heads 3.
    layers = {name: layer_of(name, 2) for name, _ in student().named_parameters()}
    embeddings = ("cls_token", "distillation_token", "position_embeddings", "patch_embeddings.weight")
    assert {layers[f"deit.embeddings.{name}"] for name in embeddings} == {0}
    assert layers["deit.layers.0.norm1.weight"] == 1 and layers["deit.layers.1.mlp.fc2.bias"] == 2
    assert layers["deit.norm.weight"] == layers["cls_classifier.weight"] == layers["distillation_classifier.bias"] == 3
    assert set(layers.values()) == {0, 1, 2, 3}
    assert layer_of("module._orig_mod.deit.layers.11.attention.qkv.weight", 12) == 12


def test_scales_by_hand():
    assert [layer_scale(layer, 2, 0.5) for layer in range(4)] == [0.125, 0.25, 0.5, 1.0]
    # DeiT-Ti has 12 blocks: its patches train at 0.75^13 of the rate.
    assert layer_scale(0, 12, 0.75) == pytest.approx(0.02375726, rel=1e-6)


def test_groups_of_an_optimiser_by_hand():
    model = student()
    decayed = [each for each in model.parameters() if each.dim() == 2]
    others = [each for each in model.parameters() if each.dim() != 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=0.8)
    scaled_by_layer(optimizer, model, 0.5)
    found = [(round(group["lr"], 6), group["weight_decay"]) for group in optimizer.param_groups]
    # The heads first. Patches are a convolution, so nothing of the embeddings is two-dimensional.
    assert found == [(0.8, 0.05), (0.8, 0.0), (0.4, 0.05), (0.4, 0.0), (0.2, 0.05), (0.2, 0.0), (0.1, 0.0)]
    kept = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(kept) == sorted(id(parameter) for parameter in model.parameters())
    with torch.no_grad():
        before = [each.clone() for each in model.parameters()]
    model(torch.randn(2, 3, 16, 16), labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    # The first step of Adam is as long as the rate, whatever the gradient.
    moved = {
        layer_of(name, 2): (after - was).abs().max().item()
        for (name, after), was in zip(model.named_parameters(), before, strict=True)
        if name.endswith(("cls_token", "qkv.weight", "cls_classifier.weight"))
    }
    assert moved == pytest.approx({0: 0.1, 1: 0.2, 2: 0.4, 3: 0.8}, rel=0.2)


def test_the_schedule_scales_every_layer_alike_and_the_peak_is_logged(tmp_path):
    settings = {"layer_decay": 0.5, "max_steps": 4, "warmup_steps": 2, "learning_rate": 0.8}
    run = trainer(tmp_path, teacher=CountingTeacher(), **settings)
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "loss" in entry]
    assert rates == pytest.approx([0.0, 0.4, 0.8, 0.4])
    assert [group["initial_lr"] for group in run.optimizer.param_groups] == pytest.approx(
        [0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1]
    )
    weights = snapshot(run.model)
    run.args.max_steps = 5
    run.train()  # the same optimiser again: its rates are not divided twice
    assert run.optimizer.param_groups[-1]["initial_lr"] == pytest.approx(0.1)
    assert not torch.equal(weights["cls_classifier.weight"], run.model.cls_classifier.weight)


@pytest.mark.parametrize(("blocks", "frozen"), [("1", {0, 1}), ("2", {0, 1, 2}), ("all", {0, 1, 2})])
def test_frozen_layers_keep_every_bit_and_the_others_train(tmp_path, blocks, frozen):
    model = student(drop_path_rate=0.5)
    before = snapshot(model)
    run = trainer(tmp_path, model, CountingTeacher(), freeze_blocks=blocks, ema_decay=0.5)
    run.train()
    average = run.average.average.weights
    trained = [id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]]
    for name, parameter in model.named_parameters():
        is_frozen = layer_of(name, 2) in frozen or (blocks == "all" and name.startswith("deit.norm"))
        assert torch.equal(parameter, before[name]) == is_frozen, name
        assert torch.equal(average[name], before[name]) == is_frozen, name
        assert (id(parameter) in trained) != is_frozen
        assert (parameter.grad is None) or not is_frozen


def test_nothing_is_dropped_in_frozen_blocks():
    rates = {"drop_path_rate": 0.9, "hidden_dropout_prob": 0.9, "attention_probs_dropout_prob": 0.9}
    model, images = student(**rates), torch.randn(4, 3, 16, 16)
    freeze(model, "all")
    torch.testing.assert_close(model.train()(images).logits, model.eval()(images).logits)
    assert model.config.drop_path_rate == 0.9  # what is saved is the model as it was
    model = student(**rates)
    freeze(model, "1")
    assert [layer.drop_path_rate for layer in model.deit.layers] == pytest.approx([0.0, 0.9])
    assert [layer.attention.attention_dropout for layer in model.deit.layers] == [0.0, 0.9]


def test_a_frozen_body_goes_with_recomputed_activations(tmp_path):
    run = trainer(tmp_path, teacher=CountingTeacher(), freeze_blocks="all", gradient_checkpointing=True)
    before = snapshot(run.model)
    run.train()
    assert not torch.equal(run.model.cls_classifier.weight, before["cls_classifier.weight"])
    assert not torch.equal(run.model.distillation_classifier.weight, before["distillation_classifier.weight"])


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    settings = {"freeze_blocks": "1", "layer_decay": 0.5, "balanced_views": True, "class_weights": None}
    settings |= {"save_strategy": "steps", "save_steps": 5, "max_steps": 12, "ema_decay": 0.9}
    whole = views_trainer(tmp_path / "whole", rows(26), **settings)
    whole.train()
    again = views_trainer(tmp_path / "again", rows(26), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert again.seen == whole.seen[4 * 5 :]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    for changes, words in (
        ({"freeze_blocks": "2"}, 'freeze_blocks "1", this run has "2"'),
        ({"layer_decay": None}, "layer_decay 0.5, this run has null"),
    ):
        other = views_trainer(tmp_path / "other", rows(26), **{**settings, **changes})
        with pytest.raises(InputError, match=words):
            other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))


def settings_of(**changes):
    return SimpleNamespace(**{"freeze_blocks": None, "layer_decay": None, "learning_rate": 1e-3, **changes})


def test_what_cannot_be_frozen_is_refused():
    config = DeiTDistillConfig.from_size("tiny")
    check_layers(settings_of(freeze_blocks="12"), config, is_new=False)
    check_layers(settings_of(layer_decay=0.75), config, is_new=True)
    with pytest.raises(
        InputError, match="freeze_blocks is 13 but the student has 12 blocks; give at most that, or all"
    ):
        check_layers(settings_of(freeze_blocks="13"), config, is_new=False)
    with pytest.raises(InputError, match="freeze_blocks is all but the student is new.*--model_name_or_path"):
        check_layers(settings_of(freeze_blocks="all"), config, is_new=True)
    for blocks in ("12", "all"):
        with pytest.raises(InputError, match=f"freeze_blocks {blocks} leaves norm and heads alone.* drop one"):
            check_layers(settings_of(freeze_blocks=blocks, layer_decay=0.75), config, is_new=False)
    for value in ("0", "-1", "some", "1.5", "ALL", ""):
        with pytest.raises(InputError, match=f"freeze_blocks is '{value}'; give a number of blocks from 1 on, or all"):
            DistillationTrainingArguments(freeze_blocks=value, use_cpu=True)
    for value in (0.0, -0.5, 1.5):
        with pytest.raises(InputError, match="layer_decay is .*; it must be above 0 and at most 1"):
            DistillationTrainingArguments(layer_decay=value, use_cpu=True)
    assert DistillationTrainingArguments(freeze_blocks=4, use_cpu=True, report_to="none").freeze_blocks == "4"


def test_an_optimiser_that_makes_its_own_groups_is_refused(monkeypatch):
    args = DistillationTrainingArguments(layer_decay=0.75, use_cpu=True, report_to="none")
    own = lambda args, model: (AdamW, {"params": []})  # noqa: E731
    monkeypatch.setattr("modeling_deit_distill.training.schedule.Trainer.get_optimizer_cls_and_kwargs", own)
    with pytest.raises(InputError, match="optim .*: layer_decay does not go with it.*choose another --optim"):
        check_optimisation(args, student())


def test_the_summary_says_what_is_frozen_and_the_rates():
    config = DeiTDistillConfig.from_size("tiny")
    assert layers_in_words(settings_of(), config) == {}
    assert layers_in_words(settings_of(freeze_blocks="4", layer_decay=0.5), config) == {
        "frozen": "patches, tokens, positions, the first 4 of 12 blocks; nothing is dropped in them, the heads train",
        "layer decay": "0.5: peak 3.91e-06 in block 5, 0.001 in the heads",  # 0.001 · 0.5^8
    }
    assert layers_in_words(settings_of(layer_decay=0.75), config) == {
        "layer decay": "0.75: peak 2.38e-05 in patches, tokens and positions, 0.001 in the heads"
    }
    words = layers_in_words(settings_of(freeze_blocks="all"), config)["frozen"]
    assert words.startswith("patches, tokens, positions, all 12 blocks, final norm; nothing is dropped")
