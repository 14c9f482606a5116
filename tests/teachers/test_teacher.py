"""Teachers: found, frozen, shown the student's pixels in their own view."""

import json

import pytest
import timm
import torch
from helpers.teachers import DIGITS, SMALL, describe, save_resnet, teacher_in
from safetensors.torch import load_file, save_file
from transformers import (
    BitImageProcessor,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification, InputError
from modeling_deit_distill.teachers.teacher import (
    InputView,
    Teacher,
    load_classifier,
    weights_checksum,
)


def test_classes_that_the_teacher_lacks_are_listed(tmp_path):
    save_resnet(tmp_path, ["cat", "0", "1"])
    with pytest.raises(InputError, match="2.*3.*4.*--teacher_label_map"):
        describe(teacher_name_or_path=str(tmp_path))


def save_timms(folder, **model_args):
    model = timm.create_model("test_resnet", num_classes=10).eval()
    names = {"label_names": DIGITS}
    timm.models.save_for_hf(model, folder, model_config=names, model_args={"num_classes": 10, **model_args})
    return model


def test_a_folder_that_timm_wrote_is_a_teacher(tmp_path):
    model, pixel_values = save_timms(tmp_path), torch.randn(2, 3, 32, 32)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["model_args"]["num_classes"] == 10
    fields["pretrained_cfg"] |= {"input_size": [3, 32, 32], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    teacher = teacher_in(tmp_path, DIGITS[::-1])
    assert teacher.view == InputView(32)
    torch.testing.assert_close(teacher(pixel_values), model(pixel_values).flip(1))
    config = describe(teacher_name_or_path=str(tmp_path), train_teacher=True)
    load_classifier(str(tmp_path), config=config, ignore_mismatched_sizes=True)


def test_what_its_library_refuses_to_build_is_one_line(tmp_path):
    save_timms(tmp_path, nonsense=1)
    with pytest.raises(InputError, match="cannot be loaded .*nonsense"):
        load_classifier(str(tmp_path))


@pytest.mark.parametrize("name", ["teacher.pth", "teacher.pth.tar", "teacher.safetensors"])
def test_a_file_of_weights_is_refused_with_the_remedy(tmp_path, name):
    save_resnet(tmp_path)
    path = (tmp_path / "model.safetensors").rename(tmp_path / name)
    for load in (lambda: describe(teacher_name_or_path=str(path)), lambda: load_classifier(str(path))):
        with pytest.raises(InputError, match="is a file, and a model is a folder .*timm.models.save_for_hf"):
            load()


def test_a_teacher_without_class_names_passes_by_its_count(tmp_path):
    ResNetForImageClassification(ResNetConfig(**SMALL, num_labels=10)).save_pretrained(tmp_path)
    assert describe(teacher_name_or_path=str(tmp_path)).num_labels == 10
    with pytest.raises(InputError, match="LABEL_0"):
        describe(["cat", "dog"], teacher_name_or_path=str(tmp_path))


def test_loading_freezes_and_gives_the_models_logits(tmp_path):
    model = save_resnet(tmp_path)
    teacher = teacher_in(tmp_path)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    pixel_values = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(teacher(pixel_values), model(pixel_values=pixel_values).logits)  # channels last


def rename(folder, change):
    """Give a checkpoint's weights other names; a weight whose name becomes None is left out."""
    weights = {change(name): value for name, value in load_file(folder / "model.safetensors").items()}
    weights.pop(None, None)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


NARROW = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
NARROW |= {"image_size": 8, "patch_size": 4}


def save_deit(folder):
    DeiTDistillForImageClassification(DeiTDistillConfig(**NARROW, num_labels=10)).save_pretrained(folder)


def save_vit(folder):
    config = ViTConfig(**NARROW, num_labels=10)
    ViTForImageClassification(config).save_pretrained(folder)  # by older names than its modules have


WRAPPED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "trained by DDP": lambda name: f"module._orig_mod.{name}",
    "a compiled layer": lambda name: name.replace(".0.", ".0._orig_mod.", 1),
}


@pytest.mark.parametrize("save", [save_resnet, save_vit, save_deit])
@pytest.mark.parametrize("change", WRAPPED.values(), ids=WRAPPED)
def test_a_compiled_teacher_keeps_its_weights(tmp_path, save, change, caplog):
    save(tmp_path)
    expected = load_classifier(str(tmp_path)).state_dict()
    rename(tmp_path, change)
    for more in ({}, {"ignore_mismatched_sizes": True}):  # as it is, and to fine-tune it
        model = load_classifier(str(tmp_path), **more)
        assert model.name_or_path == str(tmp_path)
        found = model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert "without the names of wrappers" in caplog.text


def test_a_teacher_that_would_get_random_weights_is_refused(tmp_path):
    save_resnet(tmp_path)
    rename(tmp_path, lambda name: None if name == "classifier.1.weight" else name)
    with pytest.raises(InputError, match=r"lacks 1 of its weights \(classifier.1.weight, ...\), which would be random"):
        load_classifier(str(tmp_path))
    load_classifier(str(tmp_path), ignore_mismatched_sizes=True)  # a new head is what fine-tuning begins with
    rename(tmp_path, lambda name: f"encoder.{name}")
    with pytest.raises(InputError, match="lacks 32 of its weights .* 37 that the model does not know"):
        load_classifier(str(tmp_path), ignore_mismatched_sizes=True)


def test_answers_come_in_the_datasets_classes(tmp_path):
    shuffled = ["7", "9", "cat", "0", "5", "3", "1", "dog", "8", "2", "6", "4"]
    model = save_resnet(tmp_path, shuffled)
    teacher = teacher_in(tmp_path)
    pixel_values = torch.randn(4, 3, 32, 32)
    logits = model(pixel_values=pixel_values).logits
    torch.testing.assert_close(teacher(pixel_values), logits[:, [shuffled.index(name) for name in DIGITS]])


def test_a_label_map_settles_what_names_do_not(tmp_path):
    model = save_resnet(tmp_path, ["zero", "one", "two"])
    with pytest.raises(InputError, match="--teacher_label_map"):
        teacher_in(tmp_path, ["0", "1"])
    (tmp_path / "map.json").write_text('{"0": "two", "1": 0}')
    teacher = teacher_in(tmp_path, ["0", "1"], teacher_label_map=str(tmp_path / "map.json"))
    pixel_values = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(teacher(pixel_values), model(pixel_values=pixel_values).logits[:, [2, 0]])


def test_an_image_size_can_be_chosen(tmp_path):
    statistics = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    model = save_resnet(tmp_path, processor=ConvNextImageProcessor(size={"shortest_edge": 44}, **statistics))
    teacher = teacher_in(tmp_path, teacher_image_size=32)
    assert teacher.view.image_size == 32
    pixel_values = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(teacher(pixel_values), model(pixel_values=pixel_values).logits)


def test_low_precision_agrees_with_fp32(tmp_path):
    save_resnet(tmp_path)
    pixel_values = 2 * torch.randn(256, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = teacher_in(tmp_path, teacher_precision="fp32")(pixel_values)
    for precision in ("bf16", "fp16"):
        found = teacher_in(tmp_path, teacher_precision=precision)(pixel_values)
        assert found.dtype == torch.float32
        assert not torch.equal(found, expected)
        assert (found - expected).abs().max() < 0.1 * expected.std()
        assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.95


def test_the_teachers_precision_is_its_own(tmp_path):
    save_resnet(tmp_path)
    teacher = teacher_in(tmp_path)
    pixel_values = torch.randn(2, 3, 32, 32)
    expected = teacher(pixel_values)
    with torch.autocast("cpu", torch.bfloat16):  # the student's
        assert torch.equal(teacher(pixel_values), expected)


def test_a_compiled_teacher_answers_the_same(tmp_path, monkeypatch):
    save_resnet(tmp_path)
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    teacher_in(tmp_path, teacher_compile=True)
    assert compiled == ["ResNetForImageClassification"]


def test_convnets_run_channels_last_and_transformers_do_not(tmp_path):
    convnet = teacher_in(save_resnet(tmp_path) and tmp_path)
    assert convnet.memory_format == torch.channels_last
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    transformer = Teacher(ViTForImageClassification(config), InputView(32), InputView(32))
    assert transformer.memory_format == torch.contiguous_format


def test_a_checksum_follows_the_weights(tmp_path):
    save_resnet(tmp_path / "a"), save_resnet(tmp_path / "b")
    changed = save_resnet(tmp_path / "c")
    changed.classifier[1].bias.data[0] += 1
    changed.save_pretrained(tmp_path / "c")
    a, b, c = (weights_checksum(str(tmp_path / name)) for name in "abc")
    assert a == b != c and len(a) == 64
    changed.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    before = weights_checksum(str(tmp_path / "shards"))
    last = sorted((tmp_path / "shards").glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-1] + b"!")
    assert weights_checksum(str(tmp_path / "shards")) != before
    with pytest.raises(InputError, match="has no weights"):
        weights_checksum(str(tmp_path))


def test_a_teacher_with_weights_that_are_not_finite_is_refused(tmp_path):
    model = save_resnet(tmp_path)
    model.classifier[1].bias.data[1] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="weights that are not finite, first classifier.1.bias, .*another checkpoint"):
        teacher_in(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"depths": [1, 10**9]},
        {"model_type": "dinov2", "num_hidden_layers": 10**9},
        {"model_type": "imagegpt", "n_layer": 10**9},
    ],
)
def test_a_configuration_of_a_billion_layers_is_refused_before_it_is_built(tmp_path, fields):
    save_resnet(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    for load in (lambda: teacher_in(tmp_path), lambda: load_classifier(str(tmp_path))):
        with pytest.raises(InputError, match="1000000000.*; models of more than 1,000 layers are not built$"):
            load()


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"image_std": [0.5, 0.0, 0.5]}, r"image_std \[0.5, 0.0, 0.5\]; it must be numbers above 0"),
        ({"image_std": [0.5, float("nan"), 0.5]}, "image_std"),
        ({"image_mean": [0.5, float("inf"), 0.5]}, "image_mean .* finite numbers"),
    ],
)
def test_a_teacher_s_statistics_must_be_numbers(tmp_path, statistics, message):
    settings = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **statistics}
    save_resnet(tmp_path, processor=ViTImageProcessor(size={"height": 48, "width": 48}, **settings))
    with pytest.raises(InputError, match=f"the teacher's image processor has {message}"):
        teacher_in(tmp_path)


def test_the_teacher_sees_its_own_normalisation_and_size(tmp_path):
    processor = ViTImageProcessor(size={"height": 48, "width": 48}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    model = save_resnet(tmp_path, processor=processor)
    teacher = teacher_in(tmp_path)
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen = torch.nn.functional.interpolate((pixels - 0.5) / 0.5, (48, 48), mode="bicubic", antialias=True)
    torch.testing.assert_close(teacher((pixels - mean) / std), model(pixel_values=seen).logits, rtol=1e-4, atol=1e-5)


def test_the_input_size_is_read_from_any_processor(tmp_path):
    for processor, side in (
        (BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 36, "width": 36}), 36),
        (ConvNextImageProcessor(size={"shortest_edge": 44}), 44),
        (ViTImageProcessor(size={"height": 52, "width": 52}), 52),
    ):
        save_resnet(tmp_path, processor=processor)
        assert teacher_in(tmp_path).view.image_size == side


def test_equal_views_leave_the_pixels_as_they_are():
    seen = {}
    model = torch.nn.Module()
    output = type("Output", (), {"logits": torch.zeros(1, 2)})
    model.forward = lambda pixel_values: seen.update(pixels=pixel_values) or output
    pixel_values = torch.randn(1, 3, 32, 32)
    Teacher(model, InputView(32), InputView(32))(pixel_values)
    assert seen["pixels"] is pixel_values
