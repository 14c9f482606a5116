"""What a checkpoint's configuration says: classes, preprocessing, and models that are no DeiT."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from helpers.checkpoints import NAMES, NATIVE, refused, student, write
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from modeling_deit_distill.conversion.checkpoint import load_checkpoint
from modeling_deit_distill.conversion.saving import save_checkpoint, save_native, save_timm
from modeling_deit_distill.conversion.weight_names import ours_to_public
from modeling_deit_distill.data.evaluation import evaluation_processor


def test_a_configuration_that_does_not_fit_is_refused(tiny_config, tmp_path):
    save_native(student(tiny_config), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    write(tmp_path, config={**config, "image_size": 64})
    assert "position_embeddings is (1, 18, 32), not (1, 66, 32)" in refused(tmp_path)
    write(tmp_path, config={**config, "id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}})
    assert "names 2 classes, its head has 5" in refused(tmp_path)
    write(tmp_path, config={**config, "hidden_size": "wide"})
    assert "cannot be used" in refused(tmp_path)


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
