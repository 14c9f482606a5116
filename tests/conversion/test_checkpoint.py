"""Checkpoints in every format that meets a user: the same weights, the same logits, there and back."""

import json

import pytest
import timm
import torch
from helpers.checkpoints import (
    NATIVE,
    TOLERANCE,
    assert_same_weights,
    difference,
    images,
    own_fields,
    randomise,
    student,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForImageClassification,
)

from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification
from modeling_deit_distill.conversion import checkpoint as checkpoint_module
from modeling_deit_distill.conversion import saving
from modeling_deit_distill.conversion.checkpoint import PretrainedStudent, build_model, load_checkpoint
from modeling_deit_distill.conversion.saving import save_checkpoint, save_native, save_timm
from modeling_deit_distill.conversion.weight_names import ours_to_native
from modeling_deit_distill.data.evaluation import evaluation_processor

SIZES = ["tiny", *(pytest.param(size, marks=pytest.mark.slow) for size in ("small", "base"))]
TOKENS = [True, False]


# Parity at the paper's sizes


@pytest.mark.parametrize("distilled", TOKENS)
@pytest.mark.parametrize("size", SIZES)
def test_a_public_checkpoint_answers_as_in_timm_and_goes_back_bit_for_bit(tmp_path, size, distilled):
    name = f"deit_{size}_{'distilled_' if distilled else ''}patch16_224"
    public = randomise(timm.create_model(name))
    torch.save({"model": public.state_dict()}, tmp_path / "deit.pth")
    checkpoint = load_checkpoint(str(tmp_path / "deit.pth"))
    assert checkpoint.format == "public"
    expected = own_fields(DeiTDistillConfig.from_size(size, use_distillation_token=distilled))
    labels = {name: getattr(checkpoint.config, name) for name in ("id2label", "label2id")}
    assert own_fields(checkpoint.config) == {**expected, **labels}
    assert difference(build_model(checkpoint), public, torch.randn(1, 3, 224, 224)) <= TOLERANCE
    save_timm(checkpoint, tmp_path / "timm")
    assert_same_weights(load_file(tmp_path / "timm" / "model.safetensors"), public.state_dict())
    description = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert description["architecture"] == name and "model_args" not in description
    again = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    assert_same_weights(again.state_dict(), public.state_dict())


@pytest.mark.parametrize("distilled", TOKENS)
@pytest.mark.parametrize("size", SIZES)
def test_a_native_export_answers_as_ours_and_comes_back_bit_for_bit(tmp_path, size, distilled):
    config = DeiTDistillConfig.from_size(size, use_distillation_token=distilled, num_labels=10)
    ours = randomise(DeiTDistillForImageClassification(config))
    save_native(
        PretrainedStudent(config, ours.state_dict(), evaluation_processor(224), "deit_distill"), tmp_path / "native"
    )
    native = AutoModelForImageClassification.from_pretrained(tmp_path / "native")
    assert type(native) is (DeiTForImageClassificationWithTeacher if distilled else ViTForImageClassification)
    assert difference(ours, native, torch.randn(1, 3, 224, 224)) <= TOLERANCE
    again = load_checkpoint(str(tmp_path / "native"))
    assert again.format == "native"
    assert_same_weights(again.state_dict, ours.state_dict())
    assert own_fields(again.config) == own_fields(config)


def test_the_epsilon_of_the_source_is_kept(tmp_path):
    native = randomise(DeiTForImageClassificationWithTeacher(DeiTConfig(**NATIVE)))
    assert native.config.layer_norm_eps == 1e-12
    with torch.no_grad():
        for parameter in native.deit.embeddings.parameters():
            parameter.mul_(1e-3)  # variances near 1e-8: an epsilon of 1e-6 would drown them
    native.save_pretrained(tmp_path / "native")
    checkpoint = load_checkpoint(str(tmp_path / "native"))
    assert checkpoint.config.layer_norm_eps == 1e-12
    ours, pixels = build_model(checkpoint), torch.randn(2, 3, 32, 32)
    assert difference(ours, native, pixels) <= TOLERANCE
    config = DeiTDistillConfig.from_dict({**checkpoint.config.to_dict(), "layer_norm_eps": 1e-6})
    other = build_model(PretrainedStudent(config, checkpoint.state_dict, checkpoint.processor, "native"))
    assert difference(other, native, pixels) > 100 * TOLERANCE


# Native sources


@pytest.mark.parametrize("distilled", TOKENS)
@pytest.mark.parametrize("layout", ["folder", "old", "new"])
def test_native_names_old_and_new_are_read(tmp_path, layout, distilled):
    cls = DeiTForImageClassificationWithTeacher if distilled else ViTForImageClassification
    native = randomise(cls((DeiTConfig if distilled else ViTConfig)(**NATIVE, layer_norm_eps=1e-6)))
    native.save_pretrained(tmp_path / "native", max_shard_size="50KB" if layout == "folder" else "1GB")
    source = tmp_path / "native"
    if layout == "folder":
        assert (source / "model.safetensors.index.json").exists()
    else:
        ours = build_model(load_checkpoint(str(source)))
        state = ours_to_native(ours.state_dict(), cls.__name__) if layout == "old" else native.state_dict()
        assert any("encoder.layer.1.attention.attention.key" in name for name in state) == (layout == "old")
        source = tmp_path / "native.pt"
        torch.save(state, source)
        write(tmp_path, config={"num_attention_heads": 4})
    checkpoint = load_checkpoint(str(source))
    assert checkpoint.format == "native"
    assert difference(build_model(checkpoint), native, torch.randn(2, 3, 32, 32)) <= TOLERANCE


def test_a_pooler_is_left_out(tmp_path):
    native = randomise(ViTForImageClassification(ViTConfig(**NATIVE)))
    native.save_pretrained(tmp_path / "vit")
    weights = load_file(tmp_path / "vit" / "model.safetensors")
    weights |= {"vit.pooler.dense.weight": torch.randn(32, 32), "vit.pooler.dense.bias": torch.randn(32)}
    (tmp_path / "vit" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "vit" / "pytorch_model.bin")
    model = build_model(load_checkpoint(str(tmp_path / "vit")))
    assert difference(model, native, torch.randn(2, 3, 32, 32)) <= TOLERANCE


def test_two_tokens_with_one_head_read_the_class_head_and_say_so(tmp_path, monkeypatch):
    warnings = []
    for module in (checkpoint_module, saving):
        monkeypatch.setattr(module.logger, "warning", warnings.append)
    native = randomise(DeiTForImageClassification(DeiTConfig(**NATIVE)))
    native.save_pretrained(tmp_path / "native")
    checkpoint = load_checkpoint(str(tmp_path / "native"))
    assert "the distillation head is zero, and `fusion` is cls" in warnings[0]
    assert checkpoint.config.fusion == "cls"
    assert not checkpoint.state_dict["distillation_classifier.weight"].any()
    ours, pixels = build_model(checkpoint), torch.randn(2, 3, 32, 32)
    assert difference(ours, native, pixels) <= TOLERANCE
    save_native(checkpoint, tmp_path / "back")
    assert "the distillation head stays behind" in warnings[1]
    back = AutoModelForImageClassification.from_pretrained(tmp_path / "back")
    assert type(back) is DeiTForImageClassification
    assert_same_weights(back.state_dict(), native.state_dict())
    assert_same_weights(load_checkpoint(str(tmp_path / "back")).state_dict, checkpoint.state_dict)


# Round trips


VARIANTS = {
    "distilled": {},
    "plain": {"use_distillation_token": False},
    "wide images": {"image_size": [32, 64], "patch_size": [8, 16]},
    "odd sizes": {"intermediate_size": 50, "num_channels": 1, "qkv_bias": False},
    "another activation": {"hidden_act": "relu"},
}
FORMATS = {save_checkpoint: "deit_distill", save_native: "native", save_timm: "timm"}


def one_number_if_square(height: int, width: int) -> int | list[int]:
    return height if height == width else [height, width]


@st.composite
def small_configurations(draw) -> dict:
    """Overrides of `tiny_config`, in all that a checkpoint of any format must keep."""
    heads, rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    height, width = draw(st.sampled_from([(8, 8), (4, 16), (8, 4)]))  # of a patch
    names = draw(st.lists(st.text("abc é,", min_size=1), min_size=2, max_size=6, unique=True))
    return {
        "num_attention_heads": heads,
        "hidden_size": heads * draw(st.sampled_from([4, 10])),
        "intermediate_size": draw(st.integers(1, 90)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "image_size": one_number_if_square(rows * height, columns * width),
        "patch_size": one_number_if_square(height, width),
        "num_channels": draw(st.sampled_from([1, 3])),
        "qkv_bias": draw(st.booleans()),
        "use_distillation_token": draw(st.booleans()),
        "hidden_act": draw(st.sampled_from(["gelu", "gelu_pytorch_tanh", "relu", "silu"])),
        "drop_path_rate": draw(st.sampled_from([0.0, 0.3])),
        "hidden_dropout_prob": draw(st.sampled_from([0.0, 0.1])),
        "attention_probs_dropout_prob": draw(st.sampled_from([0.0, 0.2])),
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


@settings(max_examples=20, deadline=None)
@given(overrides=small_configurations(), is_half=st.booleans())
@pytest.mark.parametrize("save", FORMATS)
@pytest.mark.slow
def test_nothing_is_lost_on_the_way_there_and_back(tiny_config, tmp_path_factory, save, overrides, is_half):
    start = student(tiny_config, initializer_range=0.02, **overrides)
    if is_half:
        start.state_dict.update({name: tensor.bfloat16() for name, tensor in start.state_dict.items()})
    folder = tmp_path_factory.mktemp("there")
    save(start, folder)
    back = load_checkpoint(str(folder))
    assert_same_weights(back.state_dict, start.state_dict)
    assert own_fields(back.config) == own_fields(start.config)
    assert back.processor.to_dict() == start.processor.to_dict()
    assert back.format == FORMATS[save]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_format_answers_alike(tiny_config, tmp_path, variant):
    start = student(tiny_config, **VARIANTS[variant])
    ours = build_model(start)
    save_checkpoint(start, tmp_path / "ours")
    save_native(start, tmp_path / "native")
    save_timm(start, tmp_path / "timm")
    others = [
        AutoModelForImageClassification.from_pretrained(tmp_path / "ours", trust_remote_code=True),
        AutoModelForImageClassification.from_pretrained(tmp_path / "native"),
        timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval(),
    ]
    pixel_values = images(ours)
    for other in others:
        assert difference(ours, other, pixel_values) <= TOLERANCE


def test_a_built_model_is_none_of_the_checkpoints_memory(tiny_config):
    checkpoint = student(tiny_config)
    draws = torch.get_rng_state()
    model = build_model(checkpoint)
    assert torch.equal(torch.get_rng_state(), draws)
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        model.cls_classifier.bias.add_(1)
    assert not torch.equal(model.cls_classifier.bias, checkpoint.state_dict["cls_classifier.bias"])
