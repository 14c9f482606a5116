"""What is written: exports to transformers and to timm, and what they cannot hold."""

import json

import pytest
import torch
from helpers.checkpoints import NAMES, student
from transformers import AutoImageProcessor, AutoModel

from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification, InputError
from modeling_deit_distill.conversion import saving
from modeling_deit_distill.conversion.checkpoint import PretrainedStudent, build_model, load_checkpoint
from modeling_deit_distill.conversion.saving import save_checkpoint, save_native, save_timm
from modeling_deit_distill.conversion.weight_names import why_not_native
from modeling_deit_distill.data.evaluation import evaluation_processor


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
