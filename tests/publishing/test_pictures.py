"""The card's pictures: they are drawn, always the same, and leave model and process as they were."""

import sys
import warnings
from collections import Counter

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DeiTImageProcessor

from modeling_deit_distill.output_folder import CURVES, PREDICTIONS
from modeling_deit_distill.publishing import pictures as card_pictures
from modeling_deit_distill.publishing.pictures import (
    choose_examples,
    choose_mistakes,
    draw_predictions,
    plot_predictions,
    plot_training_curves,
)

PROCESSOR = DeiTImageProcessor(image_mean=[0.5, 0.25, 0.0], image_std=[0.5, 0.25, 1.0])


def colours(path) -> int:
    with PIL.Image.open(path) as picture:
        assert picture.format == "PNG"
        return len(set(picture.convert("RGB").get_flattened_data()))


# Curves


@pytest.mark.parametrize(
    "log",
    [
        [{"loss": 2.0, "label_loss": 1.0, "teacher_loss": 3.0, "epoch": 1.0}, {"loss": 1.0, "epoch": 2.0}],
        [{"eval_accuracy": 0.5, "epoch": 1.0}],
        [{"loss": 2.0 / step, "teacher_agreement": 0.5, "epoch": step / 50} for step in range(1, 101)],
    ],
    ids=["losses", "accuracy", "many points"],
)
def test_curves_are_a_png(tmp_path, log):
    path = tmp_path / CURVES
    assert plot_training_curves(log, path) == path
    assert colours(path) > 10
    with PIL.Image.open(path) as picture:
        assert picture.width > picture.height
    assert [file.name for file in tmp_path.iterdir()] == [CURVES]


def test_no_curves_without_a_log(tmp_path):
    for log in ([], [{"train_runtime": 3.0, "epoch": 1.0}], [{"loss": 1.0}]):
        assert plot_training_curves(log, tmp_path / CURVES) is None
    assert list(tmp_path.iterdir()) == []


# The choice of examples


def test_wrong_answers_have_about_their_share_among_the_examples():
    labels = np.repeat(np.arange(10), 10)
    decisions = labels.copy()
    decisions[::4] = (decisions[::4] + 1) % 10  # a quarter is wrong
    chosen = choose_examples(labels, decisions)
    assert len(set(chosen)) == 8
    assert np.count_nonzero(labels[chosen] != decisions[chosen]) == 2


def test_a_mistake_is_shown_if_there_is_one():
    labels = np.zeros(100, dtype=int)
    for num_wrong, shown in ((0, 0), (1, 1), (40, 3), (99, 8), (100, 8)):
        decisions = np.where(np.arange(100) < num_wrong, 1, 0)
        chosen = choose_examples(labels, decisions)
        assert len(chosen) == 8 and np.count_nonzero(decisions[chosen]) == shown


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=40))
def test_examples_are_different_images_ordered_by_class_with_a_mistake_if_there_is_one(images):
    labels, decisions = [label for label, _ in images], [decided for _, decided in images]
    chosen = choose_examples(labels, decisions)
    assert len(chosen) == len(set(chosen)) == min(len(images), 8)
    assert [labels[index] for index in chosen] == sorted(labels[index] for index in chosen)
    assert any(labels[index] != decisions[index] for index in chosen) == (labels != decisions)


def test_examples_come_from_as_many_classes_as_possible():
    labels = np.tile(np.arange(5), 20)
    decisions = labels.copy()
    decisions[3] = 0
    chosen = choose_examples(labels, decisions)
    assert sorted(Counter(labels[chosen]).values()) == [1, 1, 2, 2, 2]
    assert 3 in chosen


def test_of_a_thousand_classes_evenly_spaced_ones_are_shown():
    labels = np.arange(1000)
    assert choose_examples(labels, labels) == [0, 125, 250, 375, 500, 625, 750, 875]


def test_the_choice_is_always_the_same_and_ordered_by_class():
    labels = np.random.default_rng(0).integers(0, 10, 300)
    decisions = np.where(np.arange(300) % 7, labels, 0)
    chosen = choose_examples(labels.tolist(), decisions.tolist())
    assert chosen == choose_examples(labels, decisions)
    assert labels[chosen].tolist() == sorted(labels[chosen])


def test_few_images_are_all_shown():
    assert choose_examples([1, 0, 2], [1, 1, 2]) == [1, 0, 2]
    assert choose_examples([], []) == []


def test_the_surest_mistakes_come_first_and_right_answers_never():
    labels, decisions = [0, 1, 2, 0, 1], [0, 0, 1, 1, 1]
    assert choose_mistakes(labels, decisions, [0.9, 0.5, 0.8, 0.5, 1.0]) == [2, 1, 3]  # alike: as they lie
    assert choose_mistakes(labels, labels, [0.9] * 5) == []
    assert len(choose_mistakes([0] * 20, [1] * 20, np.linspace(0, 1, 20))) == 8


# Predictions


@pytest.mark.parametrize(("two_heads", "count"), [(True, 3), (False, 1), (False, 10)])
@pytest.mark.slow
def test_predictions_are_a_png(tmp_path, tiny_model, two_heads, count):
    model = tiny_model(use_distillation_token=two_heads)
    labels = [index % 5 for index in range(count)]
    path = draw_predictions(model, torch.randn(count, 3, 32, 32), labels, labels, PROCESSOR, tmp_path / PREDICTIONS)
    assert path == tmp_path / PREDICTIONS and colours(path) > 100
    assert [file.name for file in tmp_path.iterdir()] == [PREDICTIONS]


def test_predictions_are_drawn_alike_each_time_and_change_with_the_model(tmp_path, tiny_model):
    pixel_values = torch.randn(2, 3, 32, 32)
    paths = [tmp_path / name for name in ("one.png", "two.png", "other.png")]
    for path in paths[:2]:
        draw_predictions(tiny_model(), pixel_values, [0, 1], None, PROCESSOR, path)
    draw_predictions(tiny_model(fusion="cls", num_labels=7), pixel_values, [0, 1], None, PROCESSOR, paths[2])
    one, two, other = (path.read_bytes() for path in paths)
    assert one == two != other


def test_the_model_is_left_as_it_was(tmp_path, tiny_model):
    model = tiny_model(drop_path_rate=0.5)
    model.train()
    model.deit.embeddings.eval()  # frozen by somebody
    before = {name: module.training for name, module in model.named_modules()}
    pixel_values = torch.randn(2, 3, 32, 32)
    attention, random_state = model.config._attn_implementation, torch.get_rng_state()
    draw_predictions(model, pixel_values, [0, 1], None, PROCESSOR, tmp_path / PREDICTIONS)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.config._attn_implementation == attention and not model.config.output_attentions
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(random_state, torch.get_rng_state())


@pytest.fixture
def drawn(monkeypatch):
    """What `draw_predictions` hands over to be drawn."""
    names, calls = ("images", "maps", "truths", "answers", "teacher_answers", "path"), {}

    def record(*values):
        calls.update(zip(names, values, strict=True))

    monkeypatch.setattr(card_pictures, "plot_predictions", record)
    return calls


def test_what_is_drawn_is_what_the_model_says(tiny_model, drawn):
    names = {index: f"class {index}" for index in range(5)}
    model = tiny_model(id2label=names, fusion="softmax_mean")
    pixel_values = torch.randn(10, 3, 32, 32)
    labels = list(range(5)) * 2
    draw_predictions(model, pixel_values, labels, labels[::-1], PROCESSOR, "x.png")
    output = model(pixel_values[:8])
    mean = (output.cls_logits.softmax(-1) + output.distillation_logits.softmax(-1)) / 2
    assert [answer for answer, _ in drawn["answers"]] == [names[index] for index in mean.argmax(-1).tolist()]
    assert [share for _, share in drawn["answers"]] == pytest.approx(mean.max(-1).values.tolist(), abs=1e-6)
    assert drawn["truths"] == [names[label] for label in labels[:8]]
    assert drawn["teacher_answers"] == [names[label] for label in labels[::-1][:8]]
    assert drawn["maps"].shape == (8, 2, 4, 4)


def test_two_classes_of_one_name_are_distinguished(tiny_model, drawn):
    names = ["crane", "hen", "crane", "ox", "pig"]
    model = tiny_model(id2label=dict(enumerate(names)))
    pixel_values = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        for head in (model.cls_classifier, model.distillation_classifier):
            head.bias[2] += 1000
    draw_predictions(model, pixel_values, [0], [1], PROCESSOR, "x.png")
    assert (drawn["truths"], drawn["teacher_answers"]) == (["crane (0)"], ["hen"])
    assert drawn["answers"] == [("crane (2)", 1.0)]  # and so not the same as the truth


def test_images_are_drawn_with_the_processors_mean_and_deviation_undone(tiny_model, drawn):
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (PROCESSOR.image_mean, PROCESSOR.image_std))
    draw_predictions(tiny_model(), (pixels / 255 - mean) / std, [0, 1], None, PROCESSOR, "x.png")
    assert np.array_equal(drawn["images"], pixels.permute(0, 2, 3, 1).numpy())
    assert drawn["teacher_answers"] is None


def test_images_that_are_not_square_keep_their_shape(tmp_path, tiny_model, drawn):
    model = tiny_model(image_size=(16, 32))
    draw_predictions(model, torch.randn(2, 3, 16, 32), [0, 1], None, PROCESSOR, tmp_path / PREDICTIONS)
    assert drawn["maps"].shape == (2, 2, 2, 4) and drawn["images"].shape == (2, 16, 32, 3)


def test_a_wrong_answer_is_marked_in_words_and_colour(monkeypatch):
    captions = []

    class Part:
        def suptitle(self, text, **style):
            captions.append((text, style["color"]))

    card_pictures._draw_caption(Part(), "cat", "dog", 0.873, "cat")
    card_pictures._draw_caption(Part(), "cat", "cat", 0.5, None)
    (wrong, red), (right, black) = captions
    assert wrong.splitlines() == ["truth: cat", "answer: dog, 87% (WRONG)", "teacher: cat"]
    assert right.splitlines() == ["truth: cat", "answer: cat, 50% (right)"]
    assert red != black


def test_odd_names_are_drawn_without_complaint(tmp_path):
    names = ["$\\frac$", "a_b^c", "猫\nand dog", "x" * 200]
    images, maps = [np.zeros((16, 16, 3), dtype=np.uint8)] * 4, np.full((4, 2, 2, 2), 0.25, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_predictions(images, maps, names, [(name, 0.5) for name in names], names, tmp_path / PREDICTIONS)
    assert colours(tmp_path / PREDICTIONS) > 10


def test_pyplot_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it fails
    image, maps = np.zeros((16, 16, 3), dtype=np.uint8), np.full((1, 1, 2, 2), 0.25, dtype=np.float32)
    assert plot_predictions([image], maps, ["cat"], [("cat", 0.5)], None, tmp_path / PREDICTIONS).exists()
    assert plot_training_curves([{"loss": 1.0, "epoch": 1.0}], tmp_path / CURVES).exists()
