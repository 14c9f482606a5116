"""The student: architecture, initialisation, outputs."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from helpers.students import FUSED_PROBABILITIES, gradients, images
from torch import nn
from transformers import (
    AttentionInterface,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_deit_distill import (
    DeiTDistillConfig,
    DeiTDistillForImageClassification,
    DeiTDistillModel,
    modeling_deit_distill,
)
from modeling_deit_distill.modeling_deit_distill import (
    DeiTDistillClassifierOutput,
    fuse_logits,
)

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


@pytest.mark.parametrize(
    ("precision", "trains", "is_fused"), [("bf16", True, False), ("bf16", False, True), ("fp32", True, True)]
)
def test_attention_is_written_out_where_bf16_is_trained_on_a_cpu(tiny_model, monkeypatch, precision, trains, is_fused):
    fused, kernel = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **kw: fused.append(1) or kernel(*args, **kw))
    model = tiny_model()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), torch.set_grad_enabled(trains):
        model(images())
    assert len(fused) == (2 if is_fused else 0)


@pytest.mark.parametrize("size", [(8, 12), (9, 14)])  # the second leaves a rest at the edges, as a convolution does
def test_patches_are_a_product_where_bf16_is_trained_on_a_cpu(size):
    """Whole numbers, so that bf16 is exact: the same tokens and gradients as of the convolution in float32."""
    generator = torch.Generator().manual_seed(0)
    projection = modeling_deit_distill.PatchConv(3, 5, (4, 6), (4, 6))
    for parameter in projection.parameters():
        parameter.data = torch.randint(-1, 2, parameter.shape, generator=generator).float()
    pixel_values = torch.randint(-1, 2, (2, 3, *size), generator=generator).float()
    by_convolution = projection(pixel_values)
    with torch.autocast("cpu", torch.bfloat16):
        by_product = projection(pixel_values)
    assert (by_convolution.dtype, by_product.dtype) == (torch.float32, torch.bfloat16)
    assert "Convolution" in str(graph_of(by_convolution)) and "Convolution" not in str(graph_of(by_product))
    assert by_product.tolist() == by_convolution.tolist() and by_product.shape == (2, 5, 2, 2)
    expected, found = (
        torch.autograd.grad(tokens.float().sum(), list(projection.parameters()))
        for tokens in (by_convolution, by_product)
    )
    assert [each.tolist() for each in found] == [each.tolist() for each in expected]


def test_hooks_on_the_patches_projection_are_called_where_bf16_is_trained(tiny_model):
    model, shapes = tiny_model(), []
    projection = model.deit.embeddings.patch_embeddings
    projection.register_forward_hook(lambda module, given, tokens: shapes.append(tuple(tokens.shape)))
    model(images())
    with torch.autocast("cpu", torch.bfloat16):
        model(images())
    assert len(shapes) == 2 and shapes[0] == shapes[1]


def graph_of(tensor: torch.Tensor) -> list[str]:
    """The names of the operations that led to a tensor, the last one first."""
    names, pending = [], [tensor.grad_fn]
    while pending:
        node = pending.pop()
        names.append(node.name())
        pending += [each for each, _ in node.next_functions if each is not None]
    return names


def test_attention_is_fused_where_its_weights_would_not_fit(tiny_model, monkeypatch):
    monkeypatch.setattr(modeling_deit_distill, "MAX_WRITTEN_OUT", 17)  # of 18 tokens
    monkeypatch.setattr(modeling_deit_distill, "eager_attention_forward", None)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(tiny_model()(images()).logits).all()


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
