"""Teachers are described before they are loaded: by a folder, a model type, overrides."""

import pytest
import torch
from helpers.teachers import SMALL, describe, describe_new
from transformers import AutoModelForImageClassification, ResNetConfig

from modeling_deit_distill import InputError


def test_describe_takes_a_bare_model_type_with_overrides():
    config = describe_new(["cat", "dog"], teacher_config_name="resnet", teacher_config_overrides=SMALL)
    assert config.model_type == "resnet"
    assert config.hidden_sizes == [8, 16]
    assert config.id2label == {0: "cat", 1: "dog"}
    assert config.out_features == ["stage2"]  # derived from depths


def test_describe_takes_a_folder_or_a_json_file(tmp_path):
    ResNetConfig(**SMALL).save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "config.json"):
        overrides = {"depths": [1, 2]}
        config = describe_new(["cat", "dog"], teacher_config_name=str(path), teacher_config_overrides=overrides)
        assert (config.hidden_sizes, config.depths, config.num_labels) == ([8, 16], [1, 2], 2)


def test_describe_takes_timms_models_through_the_wrapper():
    overrides = {"architecture": "resnet10t"}
    config = describe_new(["cat", "dog"], teacher_config_name="timm_wrapper", teacher_config_overrides=overrides)
    model = AutoModelForImageClassification.from_config(config).eval()
    assert model(pixel_values=torch.zeros(1, 3, 32, 32)).logits.shape == (1, 2)


def test_an_unknown_override_names_the_near_field():
    with pytest.raises(InputError, match="resnet has no field 'depth'; did you mean 'depths'"):
        describe_new(teacher_config_name="resnet", teacher_config_overrides={"depth": [1]})


def test_no_teacher_at_all_says_what_to_give():
    with pytest.raises(InputError, match="--teacher_name_or_path.*--distillation_type none"):
        describe()


def test_an_unreadable_teacher_is_named(tmp_path):
    with pytest.raises(InputError, match="teacher_name_or_path 'here/nowhere' is no folder here and .* check the path"):
        describe(teacher_name_or_path="here/nowhere")
    with pytest.raises(InputError, match="teacher_name_or_path '.*' holds no model .*; give the output folder"):
        describe(teacher_name_or_path=str(tmp_path))
    with pytest.raises(InputError, match="teacher_name_or_path.*nowhere.*no such file or folder"):
        describe(teacher_name_or_path=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("overrides", [{"depths": [10**9]}, {"depths": [600, 600]}])
def test_overrides_of_a_billion_layers_are_refused_before_they_are_built(overrides):
    given = {"teacher_config_name": "resnet", "teacher_config_overrides": {**SMALL, **overrides}}
    with pytest.raises(InputError, match="teacher_config_overrides has depths .*; models of more than 1,000 layers"):
        describe_new(["cat", "dog"], **given)
