"""The student: new, or fitted to the run from a checkpoint, and what is said of it."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification, InputError
from modeling_deit_distill.conversion.checkpoint import PretrainedStudent, load_checkpoint
from modeling_deit_distill.data.evaluation import evaluation_processor
from modeling_deit_distill.recipes import parse_arguments
from modeling_deit_distill.student import (
    HEADS,
    build_student,
    head_rows,
    load_start,
    student_config,
    student_processor,
    what_is_kept,
)

CLASSES = ["ant", "bee", "cat", "dog", "eel"]


def names(classes):
    return {"id2label": dict(enumerate(classes)), "label2id": {name: index for index, name in enumerate(classes)}}


def parsed(*words):
    model_args, _, args = parse_arguments(["--dataset_name", "digits", "--use_cpu", "true", *words])
    return model_args, args


def configured(start, classes, *words):
    return student_config(*parsed(*words), classes, start)


@pytest.fixture
def start(tiny_model):
    """A checkpoint of five animals at 32 pixels."""
    model = tiny_model(**names(CLASSES))
    return PretrainedStudent(model.config, model.state_dict(), evaluation_processor(32), "deit_distill")


# --- the configuration ------------------------------------------------------------------------------------------------


def test_a_new_student_has_the_named_size_the_arguments_and_the_datas_classes():
    config = configured(None, CLASSES, "--model_size", "small", "--drop_path_rate", "0.2")
    assert (config.hidden_size, config.drop_path_rate, list(config.id2label.values())) == (384, 0.2, CLASSES)
    assert config.use_distillation_token
    assert not configured(None, CLASSES, "--distillation_type", "none").use_distillation_token


def test_a_checkpoints_configuration_is_kept_but_for_what_is_free(start):
    config = configured(start, ["x", "y"], "--image_size", "64", "--drop_path_rate", "0.3", "--fusion", "cls")
    assert (config.image_size, config.drop_path_rate, config.fusion) == (64, 0.3, "cls")
    assert (config.hidden_size, config.patch_size, config.num_labels) == (32, 8, 2)
    assert (start.config.image_size, start.config.num_labels) == (32, 5)


def test_what_does_not_fit_is_refused(start):
    for words, message in (
        (("--hidden_size", "64"), "hidden_size is 64, but the checkpoint has 32; leave hidden_size out"),
        (("--image_size", "30"), "not divisible by patch_size 8"),
        (("--distillation_type", "none"), "nothing would train the distillation head"),
        (("--push_to_hub", "true", "--push_native", "true", "--fusion", "softmax_mean"), "push_native"),
    ):
        with pytest.raises(InputError, match=message):
            configured(start, CLASSES, *words)


def test_views_are_square(start):
    config = DeiTDistillConfig.from_dict({**start.config.to_dict(), "image_size": [32, 64]})
    oblong = dataclasses.replace(start, config=config)
    with pytest.raises(InputError, match=r"image_size is \[32, 64\].*views are square"):
        configured(oblong, CLASSES)
    assert configured(oblong, CLASSES, "--image_size", "32").image_size == 32


# --- the weights ------------------------------------------------------------------------------------------------------


def test_the_same_classes_at_the_same_size_keep_every_bit(start):
    student = build_student(configured(start, CLASSES), start)
    assert all(torch.equal(value, start.state_dict[name]) for name, value in student.state_dict().items())


def test_another_size_resizes_the_patches_positions_by_the_public_procedure(start):
    student = build_student(configured(start, CLASSES, "--image_size", "48"), start)
    own = start.state_dict["deit.embeddings.position_embeddings"]
    # as the public code fine-tunes: a square grid of patches, bicubic, no aligned corners; the prefix as it is
    patches = own[:, 2:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(6, 6), mode="bicubic", align_corners=False)
    expected = torch.cat([own[:, :2], patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    torch.testing.assert_close(student.get_position_embeddings().detach(), expected)
    others = (name for name in start.state_dict if "position" not in name)
    assert all(torch.equal(student.state_dict()[name], start.state_dict[name]) for name in others)


def test_other_classes_get_new_heads_that_the_seed_decides_and_keep_the_rest(start):
    for size in ("32", "48"):
        config = configured(start, ["x", "y", "z"], "--image_size", size)
        torch.manual_seed(1)
        student = build_student(config, start)
        torch.manual_seed(1)
        again = build_student(config, start)
        for name in HEADS:
            head = getattr(student, name)
            assert head.weight.shape == (3, 32) and head.weight.std() > 0.1
            assert torch.equal(head.weight, getattr(again, name).weight)
        kept = {name: value for name, value in student.state_dict().items() if "classifier" not in name}
        assert all(torch.equal(value, start.state_dict[name]) for name, value in kept.items() if "position" not in name)


def test_as_many_other_classes_are_no_reason_to_keep_the_heads(start):
    student = build_student(configured(start, ["v", "w", "x", "y", "z"]), start)
    assert not torch.equal(student.cls_classifier.weight, start.state_dict["cls_classifier.weight"])


def test_known_classes_take_their_rows_along_whatever_the_order(start):
    student = build_student(configured(start, ["Eel", "ant"]), start)
    for name in HEADS:
        assert torch.equal(getattr(student, name).weight, start.state_dict[f"{name}.weight"][[4, 0]])
        assert torch.equal(getattr(student, name).bias, start.state_dict[f"{name}.bias"][[4, 0]])


def test_a_checkpoint_in_half_precision_is_trained_in_full(start):
    halves = {name: value.bfloat16() for name, value in start.state_dict.items()}
    student = build_student(configured(start, CLASSES), dataclasses.replace(start, state_dict=halves))
    assert {value.dtype for value in student.state_dict().values()} == {torch.float32}
    assert torch.equal(student.cls_classifier.weight, halves["cls_classifier.weight"].float())


def test_a_checkpoint_without_the_token_has_one_head(tiny_model):
    model = tiny_model(use_distillation_token=False, **names(CLASSES))
    start = PretrainedStudent(model.config, model.state_dict(), evaluation_processor(32), "deit_distill")
    student = build_student(configured(start, ["bee"], "--image_size", "64"), start)
    assert student.distillation_classifier is None
    assert torch.equal(student.cls_classifier.weight, start.state_dict["cls_classifier.weight"][[1]])


def test_an_unknown_kernel_is_refused(start):
    with pytest.raises(InputError, match="student: "):
        build_student(configured(start, CLASSES), start, "flash_of_lightning")


def test_a_new_student_is_drawn_by_the_seed():
    config = DeiTDistillConfig.from_size("tiny", num_hidden_layers=1, num_labels=2)
    torch.manual_seed(3)
    student = build_student(config)
    torch.manual_seed(3)
    expected = DeiTDistillForImageClassification(config)
    assert all(map(torch.equal, student.state_dict().values(), expected.state_dict().values()))


# --- what is said -----------------------------------------------------------------------------------------------------


WHAT_IS_SAID = [
    (CLASSES, (), "kept: patches, tokens and 2 blocks, position embeddings, both heads"),
    (
        CLASSES,
        ("--image_size", "64"),
        "kept: patches, tokens and 2 blocks, both heads; "
        "resized bicubically: position embeddings, from 32 to 64 pixels",
    ),
    (
        ["x", "y"],
        (),
        "kept: patches, tokens and 2 blocks, position embeddings; "
        "new: both heads, for 2 classes, since those of the checkpoint are others",
    ),
    (
        ["cat", "ant"],
        (),
        "kept: patches, tokens and 2 blocks, position embeddings, of both heads the rows of 2 of 5 classes",
    ),
]


def test_what_was_kept_and_what_is_new(start):
    for classes, words, said in WHAT_IS_SAID:
        assert what_is_kept(start, configured(start, classes, *words)) == said


def test_rows_of_the_heads():
    for own, wanted, rows in (
        (["a", "b"], ["b", "a"], [1, 0]),
        (["LABEL_0", "LABEL_1"], ["LABEL_0", "LABEL_1"], [0, 1]),
        (["LABEL_0", "LABEL_1"], ["a", "b"], None),
        (["tench, Tinca tinca", "goldfish"], ["goldfish", "tench"], [1, 0]),
        (["a", "b"], ["a", "c"], None),
    ):
        assert head_rows(DeiTDistillConfig(**names(own)), DeiTDistillConfig(**names(wanted))) == rows


@settings(max_examples=50, deadline=None)
@given(st.permutations(CLASSES), st.integers(1, len(CLASSES)))
def test_rows_of_the_heads_follow_any_choice_and_order_of_known_classes(order, count):
    wanted = order[:count]
    rows = head_rows(DeiTDistillConfig(**names(CLASSES)), DeiTDistillConfig(**names(wanted)))
    assert [CLASSES[row] for row in rows] == wanted


# --- the processor ----------------------------------------------------------------------------------------------------


def test_a_checkpoints_crop_and_statistics_are_kept(start):
    own = evaluation_processor(32, 0.8, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    start = dataclasses.replace(start, processor=own)
    for words, crop_pct, shorter, crop in (
        ((), None, 40, 32),  # the checkpoint's own
        ((), 1.0, 32, 32),
        (("--image_size", "64"), None, 80, 64),  # in its proportion
        (("--image_size", "64"), 0.5, 128, 64),
    ):
        processor = student_processor(configured(start, CLASSES, *words), crop_pct, start)
        assert processor.size["shortest_edge"] == shorter
        assert dict(processor.crop_size) == {"height": crop, "width": crop}
        assert (tuple(processor.image_mean), tuple(processor.image_std)) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))


def test_a_new_student_is_shown_images_as_in_the_paper():
    config = DeiTDistillConfig.from_size("tiny")
    assert student_processor(config, None).size["shortest_edge"] == 256
    assert student_processor(config, 1.0).size["shortest_edge"] == 224


def test_a_start_is_loaded_from_whatever_holds_a_deit(start, tiny_model, tmp_path):
    tiny_model(**names(CLASSES)).save_pretrained(tmp_path)
    assert load_start(parsed()[0]) is None
    loaded = load_start(parsed("--model_name_or_path", str(tmp_path))[0])
    assert loaded.state_dict.keys() == load_checkpoint(str(tmp_path)).state_dict.keys() == start.state_dict.keys()
