"""The student: architecture, initialisation, outputs, other image sizes, saving and loading."""

import copy
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import HfApi
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    dynamic_module_utils,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

import modeling_deit_distill
from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification, DeiTDistillModel
from modeling_deit_distill.modeling_deit_distill import (
    DeiTDistillClassifierOutput,
    drop_path,
    fuse_logits,
    resize_position_embeddings,
)

CODE_FILES = {"configuration_deit_distill.py", "modeling_deit_distill.py"}
AUTO_MAP = {
    "AutoConfig": "configuration_deit_distill.DeiTDistillConfig",
    "AutoModel": "modeling_deit_distill.DeiTDistillModel",
    "AutoModelForImageClassification": "modeling_deit_distill.DeiTDistillForImageClassification",
}


def images(batch=3, size=(32, 32), channels=3) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, labels=(0, 1, 4)) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(images(len(labels)), labels=torch.tensor(labels)).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# --- architecture ---------------------------------------------------------------------------------------------------


def test_parameter_counts():
    for size, token, count in [
        # to two decimals the table of the paper's sizes: 5.72 / 5.91, 22.05 / 22.44, 86.57 / 87.34 million
        ("tiny", False, 5_717_416),
        ("tiny", True, 5_910_800),
        ("small", False, 22_050_664),
        ("small", True, 22_436_432),
        ("base", False, 86_567_656),
        ("base", True, 87_338_192),
    ]:
        config = DeiTDistillConfig.from_size(size, use_distillation_token=token, num_labels=1000)
        with torch.device("meta"):
            model = DeiTDistillForImageClassification(config)
        assert sum(parameter.numel() for parameter in model.parameters()) == count, (size, token)


def test_a_block_is_pytorchs_pre_norm_encoder_layer(tiny_model):
    layer = tiny_model(drop_path_rate=0.0).deit.layers[0]
    nn.init.normal_(layer.norm1.weight), nn.init.normal_(layer.norm2.bias)  # else LayerNorm hides a swap
    reference = nn.TransformerEncoderLayer(
        32, 4, 64, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    pairs = {
        "self_attn.in_proj_": "attention.qkv.",
        "self_attn.out_proj.": "attention.proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    ours = layer.state_dict()
    reference.load_state_dict(
        {theirs + kind: ours[mine + kind] for theirs, mine in pairs.items() for kind in ("weight", "bias")}
    )
    tokens = torch.randn(2, 18, 32)
    torch.testing.assert_close(layer(tokens)[0], reference(tokens), rtol=1e-4, atol=1e-5)


def test_tokens_are_class_distillation_patches_each_with_its_position(tiny_model):
    model = tiny_model()
    embeddings, pixels = model.deit.embeddings, images()
    tokens = model(pixels, output_hidden_states=True).hidden_states[0]

    kernel = embeddings.patch_embeddings
    patches = F.unfold(pixels, kernel_size=8, stride=8).transpose(1, 2)  # row by row
    patches = patches @ kernel.weight.flatten(1).T + kernel.bias
    prefix = torch.cat([embeddings.cls_token, embeddings.distillation_token], dim=1).expand(3, -1, -1)
    expected = torch.cat([prefix, patches], dim=1) + model.get_position_embeddings()
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


def test_each_head_reads_its_own_token(tiny_model):
    model = tiny_model()
    output, tokens = model(images()), model.deit(images()).last_hidden_state
    torch.testing.assert_close(output.cls_logits, model.cls_classifier(tokens[:, 0]))
    torch.testing.assert_close(output.distillation_logits, model.distillation_classifier(tokens[:, 1]))
    assert not torch.allclose(output.cls_logits, output.distillation_logits)


@pytest.mark.parametrize(("token", "prefix"), [(True, 2), (False, 1)])
def test_prefix_tokens(tiny_model, token, prefix):
    model = tiny_model(use_distillation_token=token)
    output = model.deit(images())
    assert output.last_hidden_state.shape == (3, prefix + 16, 32)
    assert model.get_position_embeddings().shape == (1, prefix + 16, 32)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])


def test_without_the_distillation_token_nothing_of_it_remains(tiny_model):
    model = tiny_model(use_distillation_token=False)
    assert not [name for name in model.state_dict() if "distillation" in name]
    output = model(images())
    assert output.distillation_logits is None
    assert torch.equal(output.logits, output.cls_logits)


def test_qkv_is_one_projection_whose_bias_is_optional(tiny_model):
    with_bias, without = tiny_model().state_dict(), tiny_model(qkv_bias=False).state_dict()
    assert [tuple(t.shape) for name, t in with_bias.items() if name.endswith("qkv.weight")] == [(96, 32)] * 2
    assert with_bias.keys() - without.keys() == {f"deit.layers.{i}.attention.qkv.bias" for i in range(2)}


def test_a_patch_may_be_a_rectangle(tiny_model):
    model = tiny_model(image_size=(32, 48), patch_size=(8, 16))
    assert model.deit(images(size=(32, 48))).last_hidden_state.shape == (3, 2 + 4 * 3, 32)


# --- initialisation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.02, 0.1])
def test_initialisation(std):
    config = DeiTDistillConfig.from_size("tiny", num_hidden_layers=2, num_labels=100, initializer_range=std)
    model = DeiTDistillForImageClassification(config)
    drawn = set()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:  # mean and std of n normal draws have standard errors std/√n and std/√(2n): five of them
            n = parameter.numel()
            assert abs(parameter.mean()) < 5 * std / n**0.5, name
            assert abs(parameter.std() - std) < 5 * std / (2 * n) ** 0.5, name
            drawn.add(name)
    # Tokens and positions are drawn too (transformers' own DeiT starts them at zero).
    assert {f"deit.embeddings.{name}" for name in ("cls_token", "distillation_token", "position_embeddings")} <= drawn
    assert len(drawn) == 4 + 2 * 4 + 2  # + patch embedding; qkv, proj, fc1, fc2 of two blocks; two heads


def test_no_two_tensors_share_their_draws(tiny_model):
    model = tiny_model()
    assert not torch.equal(model.deit.embeddings.cls_token, model.deit.embeddings.distillation_token)
    assert not torch.equal(model.cls_classifier.weight, model.distillation_classifier.weight)
    first, second = model.deit.layers
    assert not torch.equal(first.attention.qkv.weight, second.attention.qkv.weight)


def test_the_seed_decides_the_initial_weights(tiny_config):
    def weights(seed):
        torch.manual_seed(seed)
        return DeiTDistillForImageClassification(tiny_config()).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["deit.embeddings.cls_token"], other["deit.embeddings.cls_token"])


# --- fusion ---------------------------------------------------------------------------------------------------------

FUSED_PROBABILITIES = {
    "logit_mean": lambda cls, distillation: ((cls + distillation) / 2).softmax(-1),
    "softmax_mean": lambda cls, distillation: (cls.softmax(-1) + distillation.softmax(-1)) / 2,
    "cls": lambda cls, distillation: cls.softmax(-1),
    "distillation": lambda cls, distillation: distillation.softmax(-1),
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("fusion", FUSED_PROBABILITIES)
def test_fusion_and_output_type_are_the_same_in_training_and_evaluation(tiny_model, fusion, training):
    model = tiny_model(fusion=fusion, drop_path_rate=0.3).train(training)
    output = model(images())
    assert type(output) is DeiTDistillClassifierOutput
    assert list(output) == ["logits", "cls_logits", "distillation_logits"]
    expected = FUSED_PROBABILITIES[fusion](output.cls_logits, output.distillation_logits)
    torch.testing.assert_close(output.logits.softmax(-1), expected)


def test_softmax_mean_gives_the_log_of_the_mean_probability():
    # softmax (3/4, 1/4) and (1/2, 1/2): mean (5/8, 3/8).
    cls, distillation = torch.tensor([[3.0, 1.0]]).log() + 7, torch.zeros(1, 2)
    torch.testing.assert_close(
        fuse_logits(cls, distillation, "softmax_mean"), torch.tensor([[0.625, 0.375]]).log(), rtol=1e-5, atol=1e-6
    )


def test_softmax_mean_stays_finite_where_a_probability_vanishes():
    cls = torch.tensor([[500.0, -500.0]])
    torch.testing.assert_close(fuse_logits(cls, cls, "softmax_mean"), torch.tensor([[0.0, -1000.0]]))


def test_fusion_is_read_at_each_forward(tiny_model):
    model = tiny_model(fusion="cls")
    before = model(images())
    model.config.fusion = "distillation"
    after = model(images())
    assert torch.equal(before.logits, before.cls_logits)
    assert torch.equal(after.logits, before.distillation_logits)
    assert not torch.equal(before.logits, after.logits)


@pytest.mark.parametrize("token", [True, False])
def test_an_unknown_fusion_is_refused_in_the_forward(tiny_model, token):
    model = tiny_model(use_distillation_token=token)
    model.config.fusion = "median"
    with pytest.raises(ValueError, match="median"):
        model(images())


# --- loss and signature ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["logit_mean", "softmax_mean"])
def test_loss_is_the_cross_entropy_of_the_fused_logits(tiny_model, fusion):
    model = tiny_model(fusion=fusion)
    output = model(images(), labels=torch.tensor([0, 4, 2]))
    log_probs = output.logits.log_softmax(-1)
    torch.testing.assert_close(output.loss, -(log_probs[0, 0] + log_probs[1, 4] + log_probs[2, 2]) / 3)


def test_loss_of_probabilities(tiny_model):
    model, target = tiny_model(), torch.rand(3, 5).softmax(-1)
    output = model(images(), labels=target)
    torch.testing.assert_close(output.loss, -(target * output.logits.log_softmax(-1)).sum() / 3)


def test_without_labels_there_is_no_loss(tiny_model):
    assert tiny_model()(images()).loss is None


@pytest.mark.parametrize("token", [True, False])
def test_every_parameter_learns_from_the_loss(tiny_model, token):
    grads = gradients(tiny_model(use_distillation_token=token))
    assert [name for name, grad in grads.items() if not grad.abs().sum() > 0] == []


@pytest.mark.parametrize("model_class", [DeiTDistillModel, DeiTDistillForImageClassification])
def test_forward_takes_no_arbitrary_keywords(model_class):
    # Trainer would take them as a sign that the loss is already divided by the accumulation steps.
    kinds = {parameter.kind for parameter in inspect.signature(model_class.forward).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def test_as_a_tuple(tiny_model):
    model, labels = tiny_model(), torch.tensor([0, 1, 2])
    output = model(images(), labels=labels)
    loss, logits, cls_logits, distillation_logits = model(images(), labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)
    assert torch.equal(cls_logits, output.cls_logits)
    assert torch.equal(distillation_logits, output.distillation_logits)
    tokens, pooled = model.deit(images(), return_dict=False)
    assert torch.equal(tokens[:, 0], pooled)


def test_unfit_images_are_refused(tiny_model):
    model, interpolate = tiny_model(), {"interpolate_pos_encoding": True}
    for pixels, arguments, message in [
        (images(size=(40, 40)), {}, "40x40.*32x32.*interpolate_pos_encoding"),
        (images(size=(32, 40)), {}, "32x40.*32x32"),
        (images(channels=1), {}, "1 channels.* 3"),
        (images(channels=1), interpolate, "1 channels.* 3"),
        (images(size=(4, 32)), interpolate, "4x32.*patch"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(pixels, **arguments)


# --- stochastic depth and dropout -----------------------------------------------------------------------------------


def test_drop_path_drops_whole_samples_and_scales_up_the_rest():
    branch = torch.randn(10_000, 3, 2)
    dropped = drop_path(branch, 0.25, training=True)
    kept = dropped.flatten(1).abs().sum(1) > 0
    torch.testing.assert_close(dropped[kept], branch[kept] / 0.75)
    assert (dropped[~kept] == 0).all()
    # Binomial: standard error √(0.25 · 0.75 / 10,000) = 0.0043; five of them.
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.022)


def test_drop_path_preserves_the_mean():
    # Values 0 or 1/0.6: standard error of the mean √(0.4 / 0.6 / 20,000) = 0.0058; five of them.
    assert drop_path(torch.ones(20_000, 1), 0.4, training=True).mean().item() == pytest.approx(1.0, abs=0.029)


@pytest.mark.parametrize(("rate", "training"), [(0.5, False), (0.0, True)])
def test_drop_path_is_off(rate, training):
    branch = torch.randn(50, 4)
    assert torch.equal(drop_path(branch, rate, training), branch)


def test_drop_path_follows_the_seed():
    def dropped(seed):
        torch.manual_seed(seed)
        return drop_path(torch.ones(50, 1), 0.5, training=True)

    assert torch.equal(dropped(3), dropped(3))
    assert not torch.equal(dropped(3), dropped(4))


def test_drop_path_grows_linearly_over_depth(tiny_model):
    # A block leaves a sample as it was if both branches are dropped: rates 0, 0.3 and 0.6, squared.
    model = tiny_model(num_hidden_layers=3, drop_path_rate=0.6, image_size=8).train()
    states = model(images(2000, size=(8, 8)), output_hidden_states=True).hidden_states
    unchanged = [
        (before == after).all(-1).all(-1).float().mean().item()
        for before, after in zip(states[:-1], states[1:], strict=True)
    ]
    # Binomial: the largest standard error is √(0.36 · 0.64 / 2000) = 0.011; four of them.
    assert unchanged == [0.0, pytest.approx(0.09, abs=0.043), pytest.approx(0.36, abs=0.043)]


def test_drop_path_acts_in_training_only(tiny_model):
    model, without = tiny_model(drop_path_rate=0.5), tiny_model(drop_path_rate=0.0)
    assert torch.equal(model(images()).logits, without(images()).logits)
    assert not torch.equal(model.train()(images(16)).logits, without.train()(images(16)).logits)


def test_dropout_can_be_left_on_in_evaluation(tiny_model):
    model = tiny_model(hidden_dropout_prob=0.5)
    expected = model(images(2)).logits
    for layer in model.deit.layers:
        layer.dropout.train()
    assert not torch.allclose(model(images(2)).logits, expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_acts_in_training_only(tiny_model, name, attention):
    model = tiny_model(**{name: 0.5}, drop_path_rate=0.0)
    model.set_attn_implementation(attention)
    still = tiny_model(drop_path_rate=0.0)(images()).logits
    torch.testing.assert_close(model(images()).logits, still, rtol=1e-4, atol=1e-5)
    model.train()
    assert not torch.allclose(model(images()).logits, model(images()).logits, rtol=1e-2)


@pytest.mark.parametrize("silent", ["attention.proj", "mlp.fc2"])
def test_dropout_follows_both_branches_of_a_block(tiny_model, silent):
    layer = tiny_model(hidden_dropout_prob=0.5).deit.layers[0].train()
    nn.init.zeros_(layer.get_submodule(silent).weight)  # the other branch alone remains
    tokens = torch.randn(2, 18, 32)
    # Half of the values of the branch are dropped: of 1152, standard error √1152 / 2 = 17; five of them.
    unchanged = (layer(tokens)[0] == tokens).sum().item()
    assert unchanged == pytest.approx(576, abs=85)


def test_dropout_follows_the_embeddings(tiny_model):
    tokens = tiny_model(hidden_dropout_prob=0.5).deit.embeddings.train()(images(2))
    assert (tokens == 0).sum().item() == pytest.approx(576, abs=85)


# --- attention ------------------------------------------------------------------------------------------------------


def test_sdpa_equals_eager_in_outputs_and_gradients(tiny_model):
    sdpa, eager = tiny_model(), tiny_model()
    sdpa.set_attn_implementation("sdpa"), eager.set_attn_implementation("eager")
    torch.testing.assert_close(sdpa(images()).logits, eager(images()).logits, rtol=1e-4, atol=1e-5)
    ours, theirs = gradients(sdpa), gradients(eager)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5, msg=name)


def test_sdpa_is_the_default(tiny_model):
    assert tiny_model().config._attn_implementation == "sdpa"


def test_any_kernel_of_the_attention_interface_may_be_used(tiny_model, monkeypatch):
    shapes = []

    def spy(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        shapes.append((tuple(query.shape), scaling, dropout))
        return F.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "spy", spy)
    model = tiny_model(attention_probs_dropout_prob=0.5)
    expected = model(images()).logits
    model.set_attn_implementation("spy")
    torch.testing.assert_close(model(images()).logits, expected)
    # (batch, heads, tokens, head), in the last block the prefix tokens alone; no dropout in evaluation
    assert shapes == [((3, 4, 18, 8), 8**-0.5, 0.0), ((3, 4, 2, 8), 8**-0.5, 0.0)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attentions(tiny_model, attention):
    model = tiny_model()
    model.set_attn_implementation(attention)
    output = model(images(), output_attentions=True)
    assert [tuple(weights.shape) for weights in output.attentions] == [(3, 4, 18, 18)] * 2
    for weights in output.attentions:
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 18))
    plain = model(images())
    torch.testing.assert_close(output.logits, plain.logits, rtol=1e-4, atol=1e-5)
    assert plain.attentions is None and plain.hidden_states is None


def test_attentions_by_hand(tiny_model):
    model = tiny_model()
    layer = model.deit.layers[0]
    output = model(images(), output_attentions=True, output_hidden_states=True)
    query, key, _ = layer.attention.qkv(layer.norm1(output.hidden_states[0])).chunk(3, dim=-1)
    for head in range(4):
        dims = slice(8 * head, 8 * head + 8)
        expected = (query[..., dims] @ key[..., dims].transpose(1, 2) / 8**0.5).softmax(-1)
        torch.testing.assert_close(output.attentions[0][:, head], expected, rtol=1e-4, atol=1e-5)


def test_hidden_states(tiny_model):
    model = tiny_model(num_hidden_layers=3)
    output = model.deit(images(), output_hidden_states=True)
    assert isinstance(output, BaseModelOutputWithPooling)
    assert [tuple(state.shape) for state in output.hidden_states] == [(3, 18, 32)] * 4
    assert torch.equal(output.hidden_states[0], model.deit.embeddings(images()))
    assert torch.equal(model.deit.norm(output.hidden_states[-1]), output.last_hidden_state)
    for state, after, layer in zip(output.hidden_states, output.hidden_states[1:], model.deit.layers, strict=False):
        assert torch.equal(layer(state)[0], after)


def test_outputs_may_be_asked_for_in_the_configuration(tiny_model):
    output = tiny_model(output_attentions=True, output_hidden_states=True)(images())
    assert len(output.attentions) == 2 and len(output.hidden_states) == 3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("token", [True, False])
def test_the_last_block_spares_the_patches_that_nobody_reads(tiny_model, token, attention):
    model = tiny_model(use_distillation_token=token, drop_path_rate=0.5).double().train()
    model.set_attn_implementation(attention)
    seen, prefix = [], 2 if token else 1
    for layer in model.deit.layers:
        layer.mlp.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    pixel_values, labels = images().double(), torch.tensor([0, 1, 2])

    def loss_and_gradients(**arguments):
        torch.manual_seed(0)  # the same branches are dropped
        loss = model(pixel_values, labels=labels, **arguments).loss
        return loss, torch.autograd.grad(loss, [*model.parameters()])

    spared = loss_and_gradients()
    whole = loss_and_gradients(output_hidden_states=True)
    assert seen == [16 + prefix, prefix] + [16 + prefix] * 2
    torch.testing.assert_close(spared, whole)


@pytest.mark.parametrize("token", [True, False])
def test_prefix_only_leaves_out_the_patches(tiny_model, token):
    model, prefix = tiny_model(use_distillation_token=token).deit, 2 if token else 1
    whole, spared = model(images()), model(images(), prefix_only=True)
    torch.testing.assert_close(spared.last_hidden_state, whole.last_hidden_state[:, :prefix], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(spared.pooler_output, whole.pooler_output, rtol=1e-4, atol=1e-5)


# --- training aids --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # its new name is too new for us
@pytest.mark.parametrize("arguments", [None, {"use_reentrant": False}, {"use_reentrant": True}], ids=str)
def test_gradient_checkpointing_recomputes_the_same_gradients(tiny_model, arguments):
    model = tiny_model(drop_path_rate=0.5, hidden_dropout_prob=0.1).train()
    mlp_calls = []
    model.deit.layers[1].mlp.register_forward_hook(lambda *_: mlp_calls.append(1))

    torch.manual_seed(5)
    plain = gradients(model)
    assert len(mlp_calls) == 1
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)
    torch.manual_seed(5)
    checkpointed = gradients(model)
    assert len(mlp_calls) == 1 + 2  # forward, and again in backward

    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], msg=name)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_compiles_into_one_graph(tiny_model, training):
    model = tiny_model(drop_path_rate=0.0).train(training)
    labels = torch.tensor([0, 1, 2])
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images(), labels=labels).loss, model(images(), labels=labels).loss)


@pytest.mark.parametrize("fusion", FUSED_PROBABILITIES)
def test_bfloat16(tiny_model, fusion):
    model = tiny_model(fusion=fusion)
    expected = model(images()).logits
    logits = model.to(torch.bfloat16)(images().bfloat16()).logits
    assert logits.dtype == torch.bfloat16
    # Eight bits of mantissa: 0.4 % a rounding, over some ten roundings on values around 1.
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize(
    ("weights", "pixels"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str
)
def test_pixels_may_have_another_dtype_than_the_weights(tiny_model, weights, pixels, autocast):
    expected = tiny_model()(images()).logits
    model = tiny_model().to(weights)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = model(images().to(pixels), labels=torch.tensor([0, 1, 4]))
    torch.testing.assert_close(output.logits.float(), expected, rtol=0.05, atol=0.1)
    assert output.logits.dtype == (torch.bfloat16 if autocast else weights)
    output.loss.float().backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {weights}
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# --- other image sizes ----------------------------------------------------------------------------------------------


def test_interpolation_at_the_models_own_size_changes_nothing(tiny_model):
    model = tiny_model()
    assert torch.equal(model(images(), interpolate_pos_encoding=True).logits, model(images()).logits)


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (8, 64)], ids=str)
def test_interpolation_equals_resizing_the_model(tiny_model, size):
    model = tiny_model()
    resized = copy.deepcopy(model)
    resized.resize_position_embeddings(size)
    pixels = images(size=size)
    output = model.deit(pixels, interpolate_pos_encoding=True).last_hidden_state
    assert output.shape == (3, 2 + size[0] * size[1] // 64, 32)
    torch.testing.assert_close(output, resized.deit(pixels).last_hidden_state)
    assert model.config.image_size == 32  # interpolating leaves the model as it is


def test_interpolation_passes_gradients_to_the_positions(tiny_model):
    model = tiny_model()
    model(images(size=(48, 48)), labels=torch.tensor([0, 1, 2]), interpolate_pos_encoding=True).loss.backward()
    assert (model.get_position_embeddings().grad[0].abs().sum(-1) > 0).all()


def public_resize(pos_embed: torch.Tensor, num_extra_tokens: int, new_size: int) -> torch.Tensor:
    """facebookresearch/deit, main.py, under `if args.finetune`."""
    embedding_size = pos_embed.shape[-1]
    orig_size = int((pos_embed.shape[-2] - num_extra_tokens) ** 0.5)
    extra_tokens = pos_embed[:, :num_extra_tokens]
    pos_tokens = pos_embed[:, num_extra_tokens:]
    pos_tokens = pos_tokens.reshape(-1, orig_size, orig_size, embedding_size).permute(0, 3, 1, 2)
    pos_tokens = F.interpolate(pos_tokens, size=(new_size, new_size), mode="bicubic", align_corners=False)
    pos_tokens = pos_tokens.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat((extra_tokens, pos_tokens), dim=1)


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("image_size", [48, 16])
def test_resizing_is_the_public_procedure(tiny_model, image_size, token):
    model = tiny_model(use_distillation_token=token)
    before = model.get_position_embeddings().detach().clone()
    model.resize_position_embeddings(image_size)
    after = model.get_position_embeddings()
    prefix = 1 + token
    torch.testing.assert_close(after.detach(), public_resize(before, prefix, image_size // 8))
    assert torch.equal(after[:, :prefix], before[:, :prefix])
    assert model.config.image_size == image_size
    assert after.requires_grad
    assert model(images(size=(image_size, image_size))).logits.shape == (3, 5)


def test_height_and_width_are_not_exchanged():
    # Positions that depend on their row alone still do so in another, oblong grid.
    rows = torch.arange(4.0).repeat_interleave(3).view(1, 12, 1)
    resized = resize_position_embeddings(torch.cat([torch.tensor([[[9.0]]]), rows], dim=1), (4, 3), (4, 5))
    torch.testing.assert_close(resized[0, 1:, 0], torch.arange(4.0).repeat_interleave(5))
    assert resized[0, 0, 0] == 9


def test_resizing_keeps_dtype_and_frozen_positions(tiny_model):
    model = tiny_model().to(torch.bfloat16).requires_grad_(False)
    model.resize_position_embeddings(48)
    assert model.get_position_embeddings().dtype == torch.bfloat16
    assert not model.get_position_embeddings().requires_grad


def test_resizing_to_a_size_between_patches_is_refused_and_changes_nothing(tiny_model):
    model = tiny_model()
    expected = model(images()).logits
    with pytest.raises(ValueError, match="image_size 33"):
        model.resize_position_embeddings(33)
    assert model.config.image_size == 32
    assert torch.equal(model(images()).logits, expected)


# --- saving and loading ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config):
    """A saved classifier of 32 pixels."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(7)
    DeiTDistillForImageClassification(tiny_config(fusion="softmax_mean")).save_pretrained(folder)
    return folder


def load(folder, **arguments):
    return DeiTDistillForImageClassification.from_pretrained(folder, **arguments)


def assert_same_weights(ours: nn.Module, theirs: nn.Module, but=()):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    differing = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert differing == list(but)


@pytest.mark.parametrize("token", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_save_and_load_keep_every_bit(tiny_model, tmp_path, token, dtype):
    model = tiny_model(use_distillation_token=token, image_size=(32, 48)).to(dtype)
    model.save_pretrained(tmp_path)
    loaded, info = load(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert not loaded.training
    assert_same_weights(loaded, model)
    pixels = images(size=(32, 48)).to(dtype)
    assert torch.equal(loaded(pixels).logits, model(pixels).logits)


def test_the_saved_folder_serves_every_auto_class(checkpoint):
    assert json.loads((checkpoint / "config.json").read_text())["auto_map"] == AUTO_MAP
    for name in CODE_FILES:
        assert (checkpoint / name).read_text() == (Path(modeling_deit_distill.__file__).parent / name).read_text()


@pytest.fixture
def modules_folder(monkeypatch, tmp_path):
    """Where transformers copies the code of a checkpoint to, and from where it imports it."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {name: sys.modules.pop(name) for name in [*sys.modules] if name.startswith("transformers_modules")}
    yield tmp_path / "modules"
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
    sys.modules.update(before)


def test_the_code_in_the_folder_is_enough(checkpoint, modules_folder):
    config_class, model_class, classifier_class = (
        dynamic_module_utils.get_class_from_dynamic_module(AUTO_MAP[name], checkpoint)
        for name in ("AutoConfig", "AutoModel", "AutoModelForImageClassification")
    )
    assert classifier_class is not DeiTDistillForImageClassification
    assert Path(inspect.getfile(classifier_class)).is_relative_to(modules_folder)
    config = config_class.from_pretrained(checkpoint)
    transformer = model_class.from_pretrained(checkpoint, config=config)
    classifier = classifier_class.from_pretrained(checkpoint, config=config)
    assert (type(classifier.config), config.fusion) == (config_class, "softmax_mean")
    assert torch.equal(transformer(images()).last_hidden_state, load(checkpoint).deit(images()).last_hidden_state)
    assert torch.equal(classifier(images()).logits, load(checkpoint)(images()).logits)


def test_a_loaded_model_saves_as_completely_as_a_new_one(checkpoint, tmp_path):
    load(checkpoint).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {path.name for path in tmp_path.glob("*.py")} == CODE_FILES
    assert_same_weights(load(tmp_path), load(checkpoint))


def test_saving_the_transformer_alone(tiny_config, tmp_path):
    model = DeiTDistillModel(tiny_config())
    model.save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert {"AutoConfig", "AutoModel"} <= auto_map.keys() and auto_map.items() <= AUTO_MAP.items()
    assert {path.name for path in tmp_path.glob("*.py")} == CODE_FILES
    assert_same_weights(AutoModel.from_pretrained(tmp_path), model)


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (DeiTDistillForImageClassification, DeiTDistillForImageClassification),
        (AutoModelForImageClassification, DeiTDistillForImageClassification),
        (DeiTDistillModel, DeiTDistillModel),
        (AutoModel, DeiTDistillModel),
    ],
    ids=["own classifier", "AutoModelForImageClassification", "own transformer", "AutoModel"],
)
@pytest.mark.parametrize("image_size", [32, (16, 40)], ids=str)
def test_loading_into_an_image_size(checkpoint, loader, expected, image_size):
    # With the package imported, the Auto classes need no remote code.
    remote = {} if loader is expected else {"trust_remote_code": False}
    model, info = loader.from_pretrained(checkpoint, image_size=image_size, output_loading_info=True, **remote)
    assert type(model) is expected
    assert not any(info.values())  # nothing missing, nothing left over, nothing drawn anew

    reference = expected.from_pretrained(checkpoint)
    reference.resize_position_embeddings(image_size)
    assert_same_weights(model, reference)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    assert torch.equal(model(images(size=size))[0], reference(images(size=size))[0])
    assert model.config.image_size == image_size


@pytest.mark.parametrize("loader", [DeiTDistillForImageClassification, AutoModelForImageClassification])
def test_loading_with_a_changed_config(checkpoint, loader):
    config = AutoConfig.from_pretrained(checkpoint, image_size=48, drop_path_rate=0.4, fusion="cls")
    model = loader.from_pretrained(checkpoint, config=config)
    assert_same_weights(model, load(checkpoint, image_size=48))
    assert (model.config.image_size, model.config.drop_path_rate, model.config.fusion) == (48, 0.4, "cls")
    assert config.image_size == 48  # the caller's own config is left as it was


def test_a_resized_model_saves_and_loads_at_its_new_size(checkpoint, tmp_path):
    model = load(checkpoint, image_size=48)
    model.save_pretrained(tmp_path)
    assert_same_weights(load(tmp_path), model)
    assert load(tmp_path).config.image_size == 48


@pytest.mark.parametrize("image_size", [32, 48])
def test_new_classes_draw_new_heads_and_keep_all_else(checkpoint, image_size):
    old = load(checkpoint, image_size=image_size)
    new, info = load(
        checkpoint, num_labels=7, image_size=image_size, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same_weights(new.deit, old.deit)
    for head in (new.cls_classifier, new.distillation_classifier):
        assert head.weight.shape == (7, 32) and (head.bias == 0).all()
        # 224 normal draws of std 0.2: standard error 0.2 / √448 = 0.0094; five of them.
        assert head.weight.std().item() == pytest.approx(0.2, abs=0.047)


def test_other_classes_are_refused_unless_asked_for(checkpoint):
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(checkpoint, num_labels=7)


def test_a_classifier_on_a_saved_transformer_draws_its_heads_only(checkpoint, tmp_path):
    transformer = DeiTDistillModel.from_pretrained(checkpoint)
    transformer.save_pretrained(tmp_path)
    model, info = load(tmp_path, output_loading_info=True)
    assert all(name.split(".")[0].endswith("_classifier") for name in info["missing_keys"])
    assert_same_weights(model.deit, transformer)


def test_positions_are_never_drawn_anew(checkpoint):
    # Not even where the shapes would fit by chance.
    for changes in ({"patch_size": 4}, {"patch_size": 4, "image_size": 16}, {"use_distillation_token": False}):
        for ignore in (False, True):
            with pytest.raises(ValueError, match=next(iter(changes))):
                load(checkpoint, ignore_mismatched_sizes=ignore, **changes)


@pytest.mark.parametrize("saved", [8, (8, 8)], ids=str)
def test_the_same_patch_size_may_be_written_as_a_pair(tiny_config, tiny_model, tmp_path, saved):
    model = tiny_model(patch_size=saved)
    model.save_pretrained(tmp_path)
    for patch_size in (8, (8, 8), [8, 8]):
        assert_same_weights(load(tmp_path, config=tiny_config(patch_size=patch_size)), model)


def test_loading_into_a_size_between_patches_is_refused(checkpoint):
    with pytest.raises(ValueError, match="image_size 33"):
        load(checkpoint, image_size=33)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_may_be_chosen_when_loading(checkpoint, attention):
    assert load(checkpoint, attn_implementation=attention).config._attn_implementation == attention


def test_dtype_may_be_chosen_when_loading(checkpoint):
    model = load(checkpoint, dtype=torch.bfloat16, image_size=48)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own call
@pytest.mark.parametrize("loader", [DeiTDistillForImageClassification, AutoModelForImageClassification])
def test_a_revision_is_loaded_at_its_own_image_size(server, tiny_model, tmp_path, loader):
    HfApi().create_repo("me/model")
    revisions = {}
    for size in (32, 48):
        tiny_model(image_size=size).save_pretrained(tmp_path / str(size))
        revisions[size] = HfApi().upload_folder(repo_id="me/model", folder_path=tmp_path / str(size)).oid
    early = loader.from_pretrained("me/model", revision=revisions[32])
    assert early.config.image_size == 32 and loader.from_pretrained("me/model").config.image_size == 48
    assert_same_weights(early, load(tmp_path / "32"))
    resized = loader.from_pretrained("me/model", revision=revisions[32], image_size=16)
    assert_same_weights(resized, load(tmp_path / "32", image_size=16))


# --- in a process of its own ----------------------------------------------------------------------------------------


def run_python(code: str, folder: Path, *arguments: str, **environment: str) -> str:
    """The output of `code`, run in `folder` by a Python that does not look for modules there."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_MODULES_CACHE")}
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**inherited, "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


STRANGER = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):  # the package may be installed where the tests run
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_deit_distill":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

folder, pixels, answers = sys.argv[1:4]
pixels = torch.load(pixels)
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
transformer = AutoModel.from_pretrained(folder, trust_remote_code=True)
classifier = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
larger = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True, image_size=48)
classifier.save_pretrained("again")
again = AutoModelForImageClassification.from_pretrained("again", trust_remote_code=True)
with torch.no_grad():
    torch.save({
        "config": config.to_dict(),
        "tokens": transformer(pixels).last_hidden_state,
        "logits": classifier(pixels).logits,
        "again": again(pixels).logits,
        "positions at 48": larger.get_position_embeddings().detach(),
        "module": type(classifier).__module__,
    }, answers)
"""


@pytest.fixture(scope="module")
def stranger(checkpoint, tmp_path_factory):
    """What a process that has never heard of the package finds in the checkpoint, and the folder it worked in."""
    folder = tmp_path_factory.mktemp("elsewhere")
    torch.save(images(), folder / "pixels.pt")
    modules = tmp_path_factory.mktemp("modules")
    run_python(STRANGER, folder, str(checkpoint), "pixels.pt", "answers.pt", HF_MODULES_CACHE=str(modules))
    return folder, torch.load(folder / "answers.pt")


@pytest.mark.slow
def test_a_stranger_loads_every_auto_class(checkpoint, stranger):
    _, answers = stranger
    model = load(checkpoint)
    assert answers["module"].startswith("transformers_modules.")
    assert (answers["config"]["model_type"], answers["config"]["fusion"]) == ("deit_distill", "softmax_mean")
    with torch.no_grad():
        torch.testing.assert_close(answers["tokens"], model.deit(images()).last_hidden_state)
        torch.testing.assert_close(answers["logits"], model(images()).logits)


@pytest.mark.slow
def test_a_stranger_loads_into_another_image_size(checkpoint, stranger):
    _, answers = stranger
    positions = load(checkpoint, image_size=48).get_position_embeddings().detach()
    torch.testing.assert_close(answers["positions at 48"], positions)


@pytest.mark.slow
def test_a_stranger_saves_as_completely_as_we_do(checkpoint, stranger):
    folder, answers = stranger
    assert json.loads((folder / "again" / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {path.name for path in (folder / "again").glob("*.py")} == CODE_FILES
    assert torch.equal(answers["again"], answers["logits"])


LAZY = """
import sys
import transformers, transformers.modeling_utils, transformers.modeling_layers
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
before = {name.split(".")[0] for name in sys.modules}
import modeling_deit_distill
print(*sorted({name.split(".")[0] for name in sys.modules} - before))
print(*sorted(name for name in sys.modules if name.startswith("modeling_deit_distill.")))
"""


@pytest.mark.slow
def test_importing_the_package_costs_no_more_than_the_model(tmp_path):
    repository = Path(modeling_deit_distill.__file__).parent.parent
    added, own = run_python(LAZY, tmp_path, PYTHONPATH=str(repository)).splitlines()
    assert own.split() == [f"modeling_deit_distill.{name[:-3]}" for name in sorted(CODE_FILES)]
    heavy = {"accelerate", "datasets", "evaluate", "matplotlib", "pandas", "pyarrow", "sklearn", "timm", "torchvision"}
    assert not heavy & set(added.split())


def test_every_public_name_is_found_and_listed():
    assert set(modeling_deit_distill.__all__) <= set(dir(modeling_deit_distill))
    for name in modeling_deit_distill.__all__:
        assert getattr(modeling_deit_distill, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        modeling_deit_distill.no_such_name  # noqa: B018
