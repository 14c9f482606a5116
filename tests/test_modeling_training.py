"""The student in training: stochastic depth, dropout, checkpointed gradients, compilation, low precision."""

import pytest
import torch
from helpers.students import FUSED_PROBABILITIES, gradients, images
from torch import nn

from modeling_deit_distill.modeling_deit_distill import drop_path

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


@pytest.mark.slow
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
