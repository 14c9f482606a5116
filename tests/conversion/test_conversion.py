"""Checkpoints in every format that meets a user: the same weights, the same logits, there and back."""

import argparse
import json
import os
import pickle
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from helpers.hub_server import HubServer, skip_waits, use_hub
from huggingface_hub import HfApi
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    PreTrainedConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification, InputError
from modeling_deit_distill.conversion import checkpoint as checkpoint_module
from modeling_deit_distill.conversion import reading, saving
from modeling_deit_distill.conversion.__main__ import main
from modeling_deit_distill.conversion.checkpoint import PretrainedStudent, build_model, load_checkpoint
from modeling_deit_distill.conversion.saving import save_checkpoint, save_native, save_timm
from modeling_deit_distill.conversion.weight_names import ours_to_native, ours_to_public, public_to_ours, why_not_native
from modeling_deit_distill.data.evaluation import evaluation_processor

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own call

TOLERANCE = 1e-5
SIZES = ["tiny", *(pytest.param(size, marks=pytest.mark.slow) for size in ("small", "base"))]
TOKENS = [True, False]
NAMES = {0: "cat", 1: "dog", 2: "hen", 3: "ox", 4: "pig"}
LABELS = {"id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}}
NATIVE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
NATIVE |= {"image_size": 32, "patch_size": 8, "num_labels": 5}


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Every tensor random, so that no name can be mistaken for another; of a size that keeps the logits near one."""
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.05)
    return model.eval()


def student(tiny_config, **overrides) -> PretrainedStudent:
    config = tiny_config(**{**LABELS, "num_labels": 5, **overrides})
    height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    model = randomise(DeiTDistillForImageClassification(config))
    preprocessing = evaluation_processor(max(height, width)).to_dict()
    preprocessing["crop_size"] = {"height": height, "width": width}
    processor = type(evaluation_processor(8)).from_dict(preprocessing)
    return PretrainedStudent(config, model.state_dict(), processor, format="deit_distill")


def images(model) -> torch.Tensor:
    size = model.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(2, model.config.num_channels, height, width)


@torch.no_grad()
def difference(ours, theirs, pixel_values: torch.Tensor) -> float:
    answer = theirs(pixel_values)
    return (ours(pixel_values).logits - getattr(answer, "logits", answer)).abs().max().item()


def assert_same_weights(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]), name


def own_fields(config: DeiTDistillConfig) -> dict:
    names = {field.name for field in fields(DeiTDistillConfig)} - {field.name for field in fields(PreTrainedConfig)}
    return {name: getattr(config, name) for name in names | {"id2label", "label2id"}}


def refused(source) -> str:
    with pytest.raises(InputError) as caught:
        load_checkpoint(str(source))
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(folder: Path, **files) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


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


def test_only_what_transformers_computes_is_exported_to_it(tiny_config, tmp_path):
    for fusion, distilled in [("logit_mean", True), ("cls", True), ("softmax_mean", False)]:
        assert why_not_native(tiny_config(fusion=fusion, use_distillation_token=distilled)) is None
    for fusion in ("softmax_mean", "distillation"):
        checkpoint = student(tiny_config, fusion=fusion)
        assert f"{fusion!r} has no class in transformers" in why_not_native(checkpoint.config)
        with pytest.raises(InputError, match="change `fusion` in config.json to logit_mean or cls"):
            save_native(checkpoint, tmp_path / "native")
        with pytest.raises(InputError, match="has no class in timm"):
            save_timm(checkpoint, tmp_path / "timm")
    assert not list(tmp_path.iterdir())


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


def test_half_precision_stays_half_precision(tiny_config, tmp_path):
    start = student(tiny_config)
    half = {name: tensor.bfloat16() for name, tensor in start.state_dict.items()}
    save_native(PretrainedStudent(start.config, half, start.processor, "deit_distill"), tmp_path / "there")
    assert build_model(load_checkpoint(str(tmp_path / "there"))).dtype == torch.bfloat16


def test_ours_is_loaded_by_every_auto_class_and_carries_its_code(tiny_config, tmp_path):
    save_checkpoint(student(tiny_config), tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map.keys() == {"AutoConfig", "AutoModel", "AutoModelForImageClassification"}
    assert (tmp_path / "modeling_deit_distill.py").exists()
    assert AutoModel.from_pretrained(tmp_path).config.id2label == NAMES
    assert AutoImageProcessor.from_pretrained(tmp_path).size["shortest_edge"] == 36


def test_the_native_export_holds_no_code(tiny_config, tmp_path):
    save_native(student(tiny_config), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert "auto_map" not in (tmp_path / "config.json").read_text()


def test_a_built_model_is_none_of_the_checkpoints_memory(tiny_config):
    checkpoint = student(tiny_config)
    draws = torch.get_rng_state()
    model = build_model(checkpoint)
    assert torch.equal(torch.get_rng_state(), draws)
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        model.cls_classifier.bias.add_(1)
    assert not torch.equal(model.cls_classifier.bias, checkpoint.state_dict["cls_classifier.bias"])


def test_base_at_384_has_a_name_of_its_own_in_timm(tiny_config, tmp_path):
    # One block suffices for the name, which depends on width and image size.
    config = DeiTDistillConfig.from_size("base", image_size=384, num_hidden_layers=1, num_labels=2)
    model = DeiTDistillForImageClassification(config)
    save_timm(PretrainedStudent(config, model.state_dict(), evaluation_processor(384), "deit_distill"), tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    assert description["architecture"] == "deit_base_distilled_patch16_384"
    assert description["model_args"] == {"depth": 1}
    crop_pct = description["pretrained_cfg"]["crop_pct"]
    assert crop_pct == 0.875 and int(384 / crop_pct) == 438
    assert load_checkpoint(str(tmp_path)).processor.size["shortest_edge"] == 438


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps is 1e-12"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new' has no name in timm"),
    ],
)
def test_what_timm_cannot_hold_is_refused(tiny_config, tmp_path, overrides, reason):
    with pytest.raises(InputError, match=reason):
        save_timm(student(tiny_config, **overrides), tmp_path / "timm")


def test_timms_crop_fraction_gives_back_the_shorter_side():
    for crop, shorter in [(224, 256), (384, 438), (224, 248), (224, 224), (32, 36), (300, 343)]:
        assert int(crop / saving._crop_pct(crop, shorter)) == shorter


def test_every_width_of_the_mlp_survives_timms_ratio(tiny_config):
    for intermediate in range(1, 400):
        config = tiny_config(hidden_size=192, num_attention_heads=3, intermediate_size=intermediate)
        assert int(192 * saving._mlp_ratio(config)) == intermediate


# Files


@pytest.fixture
def public(tiny_config):
    """A student of width 64, whose single head needs no configuration, in the public names."""
    return ours_to_public(student(tiny_config, hidden_size=64, num_attention_heads=1).state_dict)


def test_the_public_codes_training_checkpoint_is_read(tmp_path, public, monkeypatch):
    warnings = []
    monkeypatch.setattr(reading.logger, "warning", warnings.append)
    content = {
        "model": public,
        "model_ema": {name: tensor + 1 for name, tensor in public.items()},
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "args": argparse.Namespace(model="deit_tiny", lr=5e-4, aa="rand-m9-mstd0.5-inc1", resume=None, betas=(0.9, 1)),
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    checkpoint = load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert_same_weights(checkpoint.state_dict, public_to_ours(public))
    assert "not those of `model_ema`" in warnings[0]


def test_a_state_dict_may_be_wrapped_by_ddp(tmp_path, public):
    wrapped = {f"module.{name}": tensor for name, tensor in public.items()}
    for suffix in (".safetensors", ".pth", ".pt", ".bin"):
        path = tmp_path / f"weights{suffix}"
        save_file(wrapped, path) if suffix == ".safetensors" else torch.save(wrapped, path)
        checkpoint = load_checkpoint(path)
        assert_same_weights(checkpoint.state_dict, public_to_ours(public))
        assert (checkpoint.config.num_attention_heads, checkpoint.config.image_size) == (1, 32), suffix


def test_our_own_names_are_read_from_a_file_too(tmp_path, public):
    torch.save(public_to_ours(public), tmp_path / "ours.pt")
    checkpoint = load_checkpoint(str(tmp_path / "ours.pt"))
    assert checkpoint.format == "deit_distill"
    assert_same_weights(checkpoint.state_dict, public_to_ours(public))


class Malicious:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("plain", [False, True])
def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path, public, plain):
    content = {"model": public, "args": Malicious(tmp_path / "made")}
    path = tmp_path / "bad.pth"
    path.write_bytes(pickle.dumps(content["args"], protocol=2)) if plain else torch.save(content, path)
    assert "is not opened" in refused(path)
    assert not (tmp_path / "made").exists()


def test_a_folder_with_such_a_pickle_is_refused_too(tiny_config, tmp_path):
    save_native(student(tiny_config), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"a": Malicious(tmp_path / "made")}, tmp_path / "pytorch_model.bin")
    assert "posix.mkdir, which is code" in refused(tmp_path)
    assert not (tmp_path / "made").exists()


def test_files_that_are_no_checkpoints_are_refused(tmp_path, public):
    torch.save({"model": public}, tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "page.safetensors").write_text("<html>not found</html>")
    (tmp_path / "weights.onnx").write_bytes(b"x")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3, "cls_token": torch.zeros(1)}, tmp_path / "mixed.pt")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pt")
    reasons = {
        "half.pth": "is no file that torch.save wrote",
        "empty.pth": "is no file that torch.save wrote",
        "page.safetensors": "cannot be read",
        "weights.onnx": "those end in .safetensors, .pth, .pt, .bin",
        "list.pt": "holds no state dict",
        "mixed.pt": "epoch is no tensor",
        "resnet.pt": "holds no DeiT: there is no patch embedding among conv1.weight",
    }
    for name, reason in reasons.items():
        assert reason in refused(tmp_path / name)


def test_weights_that_do_not_fit_are_named(tmp_path, public):
    def changed(**changes) -> str:
        state = {**public, **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
        torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, tmp_path / "x.pth")
        return refused(tmp_path / "x.pth")

    assert "no classification head" in changed(head__weight=None, head__bias=None)
    assert "deit.layers.1.norm1.bias missing" in changed(blocks__1__norm1__bias=None)
    assert "distillation_classifier.bias, distillation_classifier.weight missing" in changed(
        head_dist__weight=None, head_dist__bias=None
    )
    assert "blocks.0.ls1.gamma, blocks.1.ls1.gamma unexpected" in changed(
        blocks__0__ls1__gamma=torch.ones(64), blocks__1__ls1__gamma=torch.ones(64)
    )
    assert "deit.norm.weight is (63,), not (64,)" in changed(norm__weight=torch.ones(63))
    assert "deit.layers.0.mlp.fc1.weight is missing" in changed(blocks__0__mlp__fc1__weight=None)
    assert "has 3 dimensions, not 4" in changed(patch_embed__proj__weight=torch.ones(1, 2, 3))
    assert "15 patches are no square" in changed(pos_embed=torch.ones(1, 17, 64))


def test_a_body_without_a_head_is_refused(tmp_path):
    DeiTModel(DeiTConfig(**NATIVE)).save_pretrained(tmp_path)
    assert "no classification head" in refused(tmp_path)


def test_heads_that_cannot_be_inferred_are_asked_for(tiny_config, tmp_path):
    start = student(tiny_config)
    torch.save(ours_to_public(start.state_dict), tmp_path / "x.pth")
    assert "its width 32 is not divisible by 64" in refused(tmp_path / "x.pth")
    write(tmp_path, config={"num_attention_heads": 4})
    checkpoint = load_checkpoint(str(tmp_path / "x.pth"))
    assert checkpoint.config.num_attention_heads == 4 and checkpoint.format == "public"
    write(tmp_path, config={"num_attention_heads": 5})
    assert "not divisible by num_attention_heads 5" in refused(tmp_path / "x.pth")


def test_an_image_size_that_is_no_square_is_asked_for(tiny_config, tmp_path):
    start = student(tiny_config, image_size=[16, 48])  # 2 x 6 patches
    torch.save(ours_to_public(start.state_dict), tmp_path / "x.pth")
    write(tmp_path, config={"num_attention_heads": 4})
    assert "its 12 patches are no square" in refused(tmp_path / "x.pth")
    write(tmp_path, config={"num_attention_heads": 4, "image_size": [16, 48]})
    checkpoint = load_checkpoint(str(tmp_path / "x.pth"))
    assert checkpoint.config.image_size == [16, 48]
    assert dict(checkpoint.processor.crop_size)["width"] == 48
    assert checkpoint.processor.size["shortest_edge"] == int(48 / 0.875)  # a square image holds the crop as well


# Folders and names that are refused


def test_folders_that_hold_something_else_are_refused(tiny_config, tmp_path):
    assert "has no config.json" in refused(tmp_path)
    write(tmp_path, config={"model_type": "swin"})
    assert "describes a 'swin'" in refused(tmp_path)
    write(tmp_path, config={"model_type": "deit"})
    assert "has no weights (model.safetensors or pytorch_model.bin)" in refused(tmp_path)
    write(tmp_path, config=[1])
    assert "config.json" in refused(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "is no JSON" in refused(tmp_path)


def test_a_configuration_that_does_not_fit_is_refused(tiny_config, tmp_path):
    save_native(student(tiny_config), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    write(tmp_path, config={**config, "image_size": 64})
    assert "position_embeddings is (1, 18, 32), not (1, 66, 32)" in refused(tmp_path)
    write(tmp_path, config={**config, "id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}})
    assert "names 2 classes, its head has 5" in refused(tmp_path)
    write(tmp_path, config={**config, "hidden_size": "wide"})
    assert "cannot be used" in refused(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    native = DeiTForImageClassificationWithTeacher(DeiTConfig(**NATIVE))
    native.save_pretrained(tmp_path, max_shard_size="50KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[0]
    shard.unlink()
    assert f"lacks {shard.name}" in refused(tmp_path)


def test_names_that_mean_nothing_are_refused():
    for source, reason in [
        ("weights", "is no file, no folder, no model of timm's and no Hub name"),
        ("weights.pth", "is no file and no folder here; check the path"),
        ("../weights", "is no file and no folder here; check the path"),
        ("deit3_small_patch16_224", "is no DeiT of the paper; of timm's models those are: deit_base_distilled"),
        ("vit_tiny_patch16_224", "is no DeiT of the paper"),
        ("deit_tiny_patch16_224.nobody", "timm has no weights 'deit_tiny_patch16_224.nobody'"),
        ("a/b/c", "is no file and no folder here; check the path"),
    ]:
        assert reason in refused(source), source


def test_timms_folders_of_other_models_are_refused(tiny_config, tmp_path):
    save_timm(student(tiny_config), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for changes, reason in (
        ({"architecture": "deit3_small_patch16_224"}, "is timm's deit3_small_patch16_224, no DeiT of the paper"),
        ({"model_args": {**config["model_args"], "init_values": 0.1}}, "timm's init_values, which our model has not"),
        ({"global_pool": "avg"}, "global_pool 'avg'"),
        ({"model_args": {**config["model_args"], "act_layer": "mish"}}, "act_layer 'mish'"),
    ):
        write(tmp_path, config={**config, **changes})
        assert reason in refused(tmp_path)


# Names of classes


def test_a_thousand_classes_without_names_are_imagenets(tiny_config, tmp_path):
    start = student(tiny_config, hidden_size=64, num_attention_heads=1, num_labels=1000, id2label=None, label2id=None)
    torch.save(ours_to_public(start.state_dict), tmp_path / "x.pth")
    save_native(start, tmp_path / "native")  # LABEL_0 .. LABEL_999
    save_timm(start, tmp_path / "timm")
    assert load_checkpoint(str(tmp_path / "native")).config.id2label[0] == "LABEL_0"  # as its configuration says
    for source in ("x.pth", "timm"):
        config = load_checkpoint(str(tmp_path / source)).config
        assert config.id2label[0] == "tench, Tinca tinca" and config.label2id["goldfish, Carassius auratus"] == 1
        assert len(config.id2label) == 1000


def test_other_classes_keep_their_names_or_have_none(tiny_config, public, tmp_path):
    torch.save(public, tmp_path / "x.pth")
    assert load_checkpoint(str(tmp_path / "x.pth")).config.id2label == {index: f"LABEL_{index}" for index in range(5)}
    save_timm(student(tiny_config), tmp_path / "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["label_names"] == list(NAMES.values())
    write(tmp_path / "timm", config={**config, "label_descriptions": {"ox": "a strong animal"}})
    assert load_checkpoint(str(tmp_path / "timm")).config.id2label == {**NAMES, 3: "a strong animal"}


# Preprocessing


FACEBOOK = {
    "size": 256,
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "image_mean": list(IMAGENET_DEFAULT_MEAN),
    "image_std": list(IMAGENET_DEFAULT_STD),
    "feature_extractor_type": "DeiTFeatureExtractor",
    "resample": 3,
}
GOOGLE = ViTImageProcessor().to_dict() | {"resample": 2}
DICTS = {**FACEBOOK, "size": {"height": 256, "width": 256}, "crop_size": {"height": 224, "width": 224}}


def test_native_preprocessing_becomes_shorter_side_and_crop(tmp_path):
    native = ViTForImageClassification(ViTConfig(**{**NATIVE, "image_size": 224, "patch_size": 112}))
    native.save_pretrained(tmp_path)
    for preprocessor, shorter, mean in [
        (None, 256, IMAGENET_DEFAULT_MEAN),
        (FACEBOOK, 256, IMAGENET_DEFAULT_MEAN),
        (DICTS, 256, IMAGENET_DEFAULT_MEAN),
        (GOOGLE, 224, (0.5, 0.5, 0.5)),
        ({**FACEBOOK, "size": 438, "crop_size": 384}, 256, IMAGENET_DEFAULT_MEAN),  # another size than the model's
        ({**FACEBOOK, "do_normalize": False}, 256, (0, 0, 0)),
    ]:
        if preprocessor:
            write(tmp_path, preprocessor_config=preprocessor)
        found = load_checkpoint(str(tmp_path)).processor.to_dict()
        expected = evaluation_processor(224).to_dict() | {"size": {"shortest_edge": shorter}}
        assert found["image_mean"] == pytest.approx(mean)
        for key in ("size", "crop_size", "resample", "do_convert_rgb", "do_resize", "do_center_crop"):
            assert found[key] == expected[key], (key, preprocessor)


def test_a_bare_file_at_384_resizes_to_438(tiny_config, tmp_path):
    start = student(tiny_config, hidden_size=64, num_attention_heads=1, image_size=384, patch_size=96)
    torch.save(ours_to_public(start.state_dict), tmp_path / "x.pth")
    assert load_checkpoint(str(tmp_path / "x.pth")).processor.size["shortest_edge"] == 438


@pytest.mark.parametrize("overrides", [{}, {"fusion": "cls"}, {"use_distillation_token": False}])
def test_both_pipelines_give_the_same_scores(tiny_config, tmp_path, overrides):
    start = student(tiny_config, **overrides)
    save_checkpoint(start, tmp_path / "ours")
    save_native(start, tmp_path / "native")
    photo = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 110, 3), dtype=np.uint8))
    ours = pipeline("image-classification", model=str(tmp_path / "ours"), trust_remote_code=True)
    native = pipeline("image-classification", model=str(tmp_path / "native"))
    pixels = [each.image_processor(photo, return_tensors="pt")["pixel_values"] for each in (ours, native)]
    assert torch.equal(*pixels)
    scores = [{answer["label"]: answer["score"] for answer in each(photo)} for each in (ours, native)]
    assert scores[0].keys() == set(NAMES.values())
    assert scores[1] == pytest.approx(scores[0], abs=1e-6)
    assert max(scores[0].values()) - min(scores[0].values()) > 1e-3  # of an undecided model all would be alike


# The Hub


@pytest.fixture
def server(monkeypatch, tmp_path):
    with HubServer(user="timm") as server:
        use_hub(monkeypatch, server, tmp_path / "home")
        yield server


def publish(server, name: str, folder: Path):
    api = HfApi(endpoint=server.endpoint, token=server.token)
    api.create_repo(name)
    api.upload_folder(repo_id=name, folder_path=folder)


def test_a_name_of_timms_is_fetched_from_the_hub(server, tmp_path):
    model = randomise(timm.create_model("deit_tiny_distilled_patch16_224"))
    timm.models.save_for_hf(model, tmp_path / "timm", safe_serialization=True)  # as timm itself writes its folders
    name = "deit_tiny_distilled_patch16_224.fb_in1k"
    publish(server, f"timm/{name}", tmp_path / "timm")
    for source in (name, "deit_tiny_distilled_patch16_224", f"timm/{name}"):
        checkpoint = load_checkpoint(source)
        assert checkpoint.format == "timm"
        assert_same_weights(ours_to_public(checkpoint.state_dict), model.state_dict())
    assert checkpoint.config.num_attention_heads == 3
    assert checkpoint.processor.size["shortest_edge"] == int(224 / 0.9)  # timm's own fraction
    assert difference(build_model(checkpoint), model, torch.randn(1, 3, 224, 224)) <= TOLERANCE


def test_a_native_repository_is_fetched_from_the_hub(server, tmp_path):
    native = randomise(DeiTForImageClassificationWithTeacher(DeiTConfig(**NATIVE)))
    native.save_pretrained(tmp_path / "native")
    publish(server, "timm/native", tmp_path / "native")
    checkpoint = load_checkpoint("timm/native")
    assert difference(build_model(checkpoint), native, torch.randn(2, 3, 32, 32)) <= TOLERANCE
    assert "cannot be read" in refused("timm/nothing")


def test_a_hub_that_fails_is_no_hub_without_the_file(server, tmp_path, monkeypatch):
    skip_waits(monkeypatch)
    DeiTForImageClassificationWithTeacher(DeiTConfig(**NATIVE)).save_pretrained(tmp_path / "native")
    write(tmp_path / "native", preprocessor_config=GOOGLE)
    publish(server, "timm/native", tmp_path / "native")
    server.fail("*", "/resolve/main/preprocessor_config.json", 503, times=100)
    assert "cannot be read" in refused("timm/native")  # rather than ImageNet's statistics


def test_what_was_fetched_is_read_without_the_hub(tmp_path, monkeypatch):
    DeiTForImageClassificationWithTeacher(DeiTConfig(**NATIVE)).save_pretrained(tmp_path / "native")
    skip_waits(monkeypatch)
    with HubServer(user="timm") as server:
        use_hub(monkeypatch, server, tmp_path / "home")
        publish(server, "timm/native", tmp_path / "native")
        checkpoint = load_checkpoint("timm/native")  # it has no preprocessor, which is remembered too
    assert_same_weights(load_checkpoint("timm/native").state_dict, checkpoint.state_dict)
    assert "cannot be read" in refused("timm/other")


def test_what_lies_on_the_disk_goes_before_names(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(student(tiny_config), "deit_tiny_patch16_224")
    assert load_checkpoint("deit_tiny_patch16_224").config.id2label == NAMES


# Command line


def test_a_checkpoint_is_converted_in_one_line(tiny_config, tmp_path, capsys):
    start = student(tiny_config)
    save_checkpoint(start, tmp_path / "ours")
    for target in ("native", "timm", "deit_distill"):
        main([str(tmp_path / "ours"), str(tmp_path / "new" / target), "--to", target])
        printed = capsys.readouterr().out
        assert printed.count("\n") == 1 and printed.endswith(f"{tmp_path / 'new' / target} ({target})\n")
        assert "deit_distill, 24,298 parameters, with distillation token, 5 classes, 32x32 pixels" in printed
        assert_same_weights(load_checkpoint(str(tmp_path / "new" / target)).state_dict, start.state_dict)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"native", "timm", "deit_distill"}


def test_a_destination_in_use_is_left_alone(tiny_config, tmp_path):
    save_checkpoint(student(tiny_config), tmp_path / "ours")
    (tmp_path / "taken").mkdir()
    main([str(tmp_path / "ours"), str(tmp_path / "taken")])  # empty, so it is free
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "taken").iterdir()}
    assert "config.json" in before
    with pytest.raises(InputError, match="exists and is not empty; choose a new folder"):
        main([str(tmp_path / "ours"), str(tmp_path / "taken")])
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "taken").iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        main([str(tmp_path / "ours"), str(tmp_path / "file" / "below")])


def test_a_conversion_that_fails_leaves_nothing(tiny_config, tmp_path):
    save_checkpoint(student(tiny_config, fusion="softmax_mean"), tmp_path / "ours")
    with pytest.raises(InputError, match="change `fusion`"):
        main([str(tmp_path / "ours"), str(tmp_path / "native"), "--to", "native"])
    assert {path.name for path in tmp_path.iterdir()} == {"ours"}


@pytest.mark.slow
def test_an_error_is_one_line_and_exit_code_two(tmp_path):
    command = [sys.executable, "-m", "modeling_deit_distill.conversion", "nowhere.pth", str(tmp_path / "new")]
    environment = {**os.environ, "PYTHONPATH": str(Path(reading.__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: 'nowhere.pth' is no file") and done.stderr.count("\n") == 1
