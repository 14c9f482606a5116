"""The student's configuration: named sizes, refusals, saving and the Auto classes."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from modeling_deit_distill import DeiTDistillConfig


def test_defaults_are_deit_base_with_the_distillation_token():
    defaults = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.1,
        "image_size": 224,
        "patch_size": 16,
        "num_channels": 3,
        "qkv_bias": True,
        "layer_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "use_distillation_token": True,
        "fusion": "logit_mean",
    }
    config = DeiTDistillConfig().to_dict()
    assert {name: config[name] for name in defaults} == defaults
    assert config["model_type"] == "deit_distill"
    assert DeiTDistillConfig.from_size("base").to_dict() == config


def test_named_sizes():
    for size, hidden, heads in (("tiny", 192, 3), ("small", 384, 6), ("base", 768, 12)):
        config = DeiTDistillConfig.from_size(size)
        assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (hidden, heads, 12)
        assert config.intermediate_size == 4 * hidden
        assert config.hidden_size // config.num_attention_heads == 64


def test_overrides_take_precedence_over_the_named_size():
    config = DeiTDistillConfig.from_size("tiny", hidden_size=96, num_labels=10, image_size=32, patch_size=4)
    assert (config.hidden_size, config.num_attention_heads) == (96, 3)
    assert (config.num_labels, config.image_size, config.patch_size) == (10, 32, 4)


def test_an_override_does_not_leak_into_the_next_config():
    DeiTDistillConfig.from_size("tiny", hidden_size=96)
    assert DeiTDistillConfig.from_size("tiny").hidden_size == 192


def test_an_unknown_size_is_refused_with_the_names_to_choose_from():
    with pytest.raises(ValueError, match="huge.*tiny, small, base"):
        DeiTDistillConfig.from_size("huge")


REFUSED = [
    ({"image_size": 100}, "image_size 100 .* patch_size 16.* 96 or 112$"),
    ({"image_size": (224, 100)}, r"image_size \(224, 100\) .* patch_size 16"),
    ({"patch_size": 0}, "patch_size 0"),
    ({"image_size": 0}, "image_size 0"),
    ({"num_attention_heads": 7}, "hidden_size 768 .* num_attention_heads 7; choose 1, 2, 3, 4, 6, .* 24, 32 heads"),
    ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
    ({"drop_path_rate": -0.1}, "drop_path_rate is -0.1"),
    ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5"),
    ({"attention_probs_dropout_prob": -1}, "attention_probs_dropout_prob is -1"),
    ({"fusion": "mean"}, "'mean'.*logit_mean, softmax_mean, cls, distillation"),
    ({"fusion": "distillation", "use_distillation_token": False}, "use_distillation_token"),
]


def test_a_model_that_cannot_be_built_is_refused():
    for fields, message in REFUSED:
        with pytest.raises(ValueError, match=message):
            DeiTDistillConfig(**fields)


ACCEPTED = [
    {"image_size": (32, 48), "patch_size": (8, 16)},
    {"image_size": 36, "patch_size": 12},
    {"drop_path_rate": 0, "hidden_dropout_prob": 0},
    {"use_distillation_token": False, "fusion": "softmax_mean"},
    {"use_distillation_token": False, "fusion": "cls"},
]


def test_what_can_be_built_is_accepted():
    for fields in ACCEPTED:
        config = DeiTDistillConfig(**fields)
        assert {name: getattr(config, name) for name in fields} == fields


@settings(max_examples=50, deadline=None)
@given(hidden_size=st.integers(1, 64), num_attention_heads=st.integers(1, 16))
def test_heads_that_do_not_divide_the_width_are_refused_with_those_that_do(hidden_size, num_attention_heads):
    fields = {"hidden_size": hidden_size, "num_attention_heads": num_attention_heads}
    if hidden_size % num_attention_heads == 0:
        assert DeiTDistillConfig(**fields).num_attention_heads == num_attention_heads
        return
    with pytest.raises(ValueError) as refused:
        DeiTDistillConfig(**fields)
    choices = re.search(r"choose ([\d, ]+) heads", str(refused.value))[1]
    assert all(hidden_size % int(choice) == 0 for choice in choices.split(", "))


@settings(max_examples=50, deadline=None)
@given(image_size=st.integers(1, 300), patch_size=st.integers(1, 40))
def test_an_image_is_accepted_where_patches_fill_it(image_size, patch_size):
    if image_size % patch_size == 0:
        assert DeiTDistillConfig(image_size=image_size, patch_size=patch_size).image_size == image_size
        return
    with pytest.raises(ValueError, match=f"image_size {image_size} .* patch_size {patch_size}"):
        DeiTDistillConfig(image_size=image_size, patch_size=patch_size)


def test_save_load_round_trip(tiny_config, tmp_path):
    config = tiny_config(
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
        num_labels=2,
        fusion="softmax_mean",
        use_distillation_token=True,
        drop_path_rate=0.25,
        qkv_bias=False,
    )
    config.save_pretrained(tmp_path)
    loaded = DeiTDistillConfig.from_pretrained(tmp_path)
    assert {**loaded.to_dict(), "auto_map": None} == {**config.to_dict(), "auto_map": None}
    assert loaded.id2label == {0: "cat", 1: "dog"}


def test_a_pair_of_sizes_survives_saving(tiny_config, tmp_path):
    tiny_config(image_size=(32, 48), patch_size=(8, 16)).save_pretrained(tmp_path)
    loaded = DeiTDistillConfig.from_pretrained(tmp_path)
    assert (tuple(loaded.image_size), tuple(loaded.patch_size)) == ((32, 48), (8, 16))


def test_a_broken_config_file_is_refused(tiny_config, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_size": 33}))
    with pytest.raises(ValueError, match="image_size 33"):
        DeiTDistillConfig.from_pretrained(tmp_path)


def test_auto_config_knows_the_model_type(tiny_config, tmp_path):
    tiny_config(drop_path_rate=0.3).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)
    assert type(loaded) is DeiTDistillConfig and loaded.drop_path_rate == 0.3
    assert type(AutoConfig.for_model("deit_distill")) is DeiTDistillConfig
