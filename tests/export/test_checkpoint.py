"""What is exported: any checkpoint that `conversion` reads, in float32, with the image processor that fits it."""

import shutil

import pytest
import torch
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from modeling_deit_distill import DeiTDistillForImageClassification, InputError
from modeling_deit_distill.data.evaluation import evaluation_processor
from modeling_deit_distill.export.checkpoint import fit_processor, load_model

NATIVE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
NATIVE |= {"image_size": 32, "patch_size": 8, "num_labels": 5}


def sizes_of(processor) -> list[dict[str, int]]:
    """What an image is resized to, and what is cut out of it."""
    return [{name: side for name, side in dict(size).items() if side} for size in (processor.size, processor.crop_size)]


def test_the_resized_image_keeps_its_ratio_to_the_crop():
    processor = evaluation_processor(224)  # shorter side 256
    fit_processor(processor, (224, 224))
    assert sizes_of(processor) == [{"shortest_edge": 256}, {"height": 224, "width": 224}]
    fit_processor(processor, (384, 384))  # 256 · 384 / 224 = 438.9
    assert sizes_of(processor) == sizes_of(evaluation_processor(384))
    assert sizes_of(processor) == [{"shortest_edge": 438}, {"height": 384, "width": 384}]
    processor = evaluation_processor(224)
    fit_processor(processor, (112, 448))  # a tall image must hold the crop's width
    assert sizes_of(processor) == [{"shortest_edge": 512}, {"height": 112, "width": 448}]


def test_without_a_crop_the_whole_image_is_fitted():
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    fit_processor(processor, (24, 40))
    assert (processor.size["height"], processor.size["width"]) == (24, 40)


def test_half_precision_is_exported_as_float32(checkpoint, tmp_path):
    source = shutil.copytree(checkpoint(fusion="cls"), tmp_path / "half")
    DeiTDistillForImageClassification.from_pretrained(source).to(torch.bfloat16).save_pretrained(source)
    model, _ = load_model(str(source))
    assert model.dtype == torch.float32
    assert model.config.to_dict()["dtype"] == "float32"
    assert not model.training


def test_models_of_transformers_come_with_their_own_image_processor(tmp_path):
    DeiTForImageClassificationWithTeacher(DeiTConfig(**NATIVE)).save_pretrained(tmp_path / "deit")
    evaluation_processor(32, crop_pct=0.8).save_pretrained(tmp_path / "deit")
    model, processor = load_model(str(tmp_path / "deit"))
    assert model.config.use_distillation_token and model.config.num_labels == 5
    assert sizes_of(processor) == [{"shortest_edge": 40}, {"height": 32, "width": 32}]

    ViTForImageClassification(ViTConfig(**NATIVE)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3).save_pretrained(tmp_path / "vit")
    model, processor = load_model(str(tmp_path / "vit"))
    assert not model.config.use_distillation_token
    assert dict(processor.size) == {"height": 32, "width": 32} and list(processor.image_mean) == [0.5] * 3


def test_without_an_image_processor_that_of_the_paper_is_taken_and_said(tiny_model, tmp_path, caplog):
    tiny_model().save_pretrained(tmp_path)
    _, processor = load_model(str(tmp_path))
    assert sizes_of(processor) == [{"shortest_edge": 36}, {"height": 32, "width": 32}]
    assert "has no preprocessor_config.json: images are prepared as in the paper" in caplog.text


def test_checkpoints_that_cannot_be_exported_say_why(checkpoint, tiny_model, tmp_path):
    source = checkpoint(fusion="cls")
    with pytest.raises(InputError, match="^image_size 33: image_size 33 is not divisible by patch_size 8"):
        load_model(str(source), "33")
    broken = shutil.copytree(source, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="broken' cannot be read"):
        load_model(str(broken))
    tiny_model().deit.save_pretrained(tmp_path / "headless")
    with pytest.raises(InputError, match="headless' has no classification head"):
        load_model(str(tmp_path / "headless"))
    with pytest.raises(InputError, match="no/source"):
        load_model(str(tmp_path / "no" / "source"))
    for name, kind in (("several", "multi_label_classification"), ("value", "regression")):
        tiny_model(problem_type=kind).save_pretrained(tmp_path / name)
        with pytest.raises(
            InputError, match=f"{name}' has problem_type '{kind}' and 5 class.*; an export answers with"
        ):
            load_model(str(tmp_path / name))


def test_an_image_processor_that_does_not_fit_is_refused(checkpoint):
    with pytest.raises(InputError, match=r"makes \(3, 32, 32\) of an image, but the model takes \(1, 32, 32\)"):
        load_model(str(checkpoint(num_channels=1)))
