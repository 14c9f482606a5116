"""Attention maps and distances, token cosines, disagreement, confusions and intervals: hand-worked values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from modeling_deit_distill import analysis
from modeling_deit_distill.analysis import (
    ClassFigures,
    Confusion,
    attention_maps,
    class_means,
    confusion_matrix,
    describe_tokens,
    disagreement,
    mean_attention_distance,
    measure_decisions,
    paired_difference,
    token_cosine,
    wilson_interval,
    worst_classes,
    worst_confusions,
)

# truth and answers of three classes: 0 is right twice of three times, 1 once of four times, 2 always
LABELS = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])
ANSWERS = np.array([0, 0, 2, 1, 2, 2, 0, 2, 2])


# Attention maps


def test_a_map_is_the_mean_over_heads_from_the_prefix_to_the_patches_of_the_last_block():
    first = torch.full((1, 2, 4, 4), 0.25)
    last = torch.zeros(1, 2, 4, 4)
    last[0, 0] = torch.tensor([[0.2, 0.2, 0.6, 0.0], [0.5, 0.3, 0.1, 0.1], [9.0] * 4, [9.0] * 4])
    last[0, 1] = torch.tensor([[0.2, 0.2, 0.2, 0.4], [0.5, 0.3, 0.0, 0.2], [9.0] * 4, [9.0] * 4])
    maps = attention_maps((first, last), grid=(1, 2), num_prefix_tokens=2)
    # class token: mean 0.4 and 0.2 of 0.6; distillation token: mean 0.05 and 0.15 of 0.2
    torch.testing.assert_close(maps, torch.tensor([[[[2 / 3, 1 / 3]], [[0.25, 0.75]]]]))


def test_patches_lie_in_rows_as_in_the_image():
    weights = torch.zeros(1, 1, 7, 7)
    weights[0, 0, 0] = torch.tensor([0.0, 1, 2, 3, 4, 5, 6])
    (token_maps,) = attention_maps((weights,), grid=(2, 3), num_prefix_tokens=1)
    torch.testing.assert_close(token_maps, torch.tensor([[[1.0, 2, 3], [4, 5, 6]]]) / 21)


def test_maps_of_a_model_sum_to_one(tiny_model):
    model = tiny_model()
    output = model(torch.randn(3, 3, 32, 32), output_attentions=True)
    maps = attention_maps(output.attentions, grid=(4, 4), num_prefix_tokens=2)
    assert maps.shape == (3, 2, 4, 4) and maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum(dim=(-2, -1)), torch.ones(3, 2))


def test_all_attention_on_the_prefix_gives_zeros_not_nan():
    weights = torch.zeros(1, 1, 3, 3, dtype=torch.bfloat16)
    weights[..., 0] = 1
    assert attention_maps((weights,), (1, 2), 1).tolist() == [[[[0.0, 0.0]]]]


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="7 tokens, but 2 and a grid of"):
        attention_maps((torch.zeros(1, 1, 7, 7),), (2, 3), 2)


# Cosine of the tokens


def test_the_cosine_is_that_of_the_first_two_tokens_averaged_over_images():
    tokens = torch.tensor([[[3.0, 0], [5, 0], [0, 9]], [[1, 0], [0, 2], [1, 0]], [[2, 0], [1, -1], [0, 0]]])
    assert token_cosine(tokens) == pytest.approx((1 + 0 + 0.5**0.5) / 3)
    assert token_cosine(tokens[:1, [0, 2]] * -1) == 0
    assert token_cosine(torch.tensor([[[1.0, 2], [-2, -4]]]).bfloat16()) == pytest.approx(-1)


def test_a_cosine_needs_two_tokens_and_an_image():
    for shape in ((3, 1, 4), (0, 2, 4), (2, 4)):
        with pytest.raises(ValueError, match="at least 2"):
            token_cosine(torch.zeros(shape))


# Attention distance


def test_the_distance_is_weighted_by_attention_among_patches_alone():
    # Three patches of 10 pixels in a row, one prefix token, one head. The first looks at the last, the second at its
    # neighbours alike, the third half at itself and half at the second; what goes to the prefix does not count.
    weights = torch.tensor([[9.0, 9, 9, 9], [0.5, 0, 0, 0.5], [0, 0.5, 0, 0.5], [0.2, 0, 0.4, 0.4]])
    distance = mean_attention_distance((weights[None, None],), (1, 3), 1, patch_size=(10, 10))
    torch.testing.assert_close(distance, torch.tensor([[(20 + 10 + 5) / 3]]))


def test_distances_are_euclidean_by_block_and_head():
    everywhere, itself = torch.full((2, 4, 4), 0.25), torch.eye(4).expand(2, 4, 4)
    attentions = (torch.stack([everywhere, itself], dim=1), torch.stack([itself, itself], dim=1))
    distance = mean_attention_distance(attentions, (2, 2), 0, patch_size=(4, 4))
    torch.testing.assert_close(distance, torch.tensor([[(4 + 4 + 32**0.5) / 4, 0], [0, 0]]))


def test_a_rectangular_patch_is_as_high_and_as_wide_as_it_is():
    # Two rows, three columns of patches 6 high and 4 wide; all look at the last: 10, 7.21, 6 above it, 8, 4, 0 beside.
    weights = torch.zeros(1, 1, 6, 6)
    weights[..., 5] = 1
    distance = mean_attention_distance((weights,), (2, 3), 0, patch_size=(6, 4))
    torch.testing.assert_close(distance, torch.tensor([[(10 + 52**0.5 + 6 + 8 + 4 + 0) / 6]]))


def test_no_attention_among_patches_is_no_distance():
    weights = torch.zeros(1, 1, 3, 3)
    weights[..., 0] = 1
    assert mean_attention_distance((weights,), (1, 2), 1, (4, 4)).tolist() == [[0.0]]
    with pytest.raises(ValueError, match="3 tokens, but 1 and a grid of"):
        mean_attention_distance((weights,), (2, 2), 1, (4, 4))


# What a model's tokens do


def test_the_tokens_of_a_model_are_described(tiny_model):
    model = tiny_model()
    embeddings = model.deit.embeddings
    with torch.no_grad():
        embeddings.cls_token.fill_(1.0)
        embeddings.distillation_token.fill_(2.0)
    described = describe_tokens(model, torch.randn(3, 3, 32, 32))
    assert described["images"] == 3 and described["cosine_learned"] == pytest.approx(1.0)
    assert len(described["cosine_by_block"]) == 2 and all(-1 <= cosine < 1 for cosine in described["cosine_by_block"])
    distances = torch.tensor(described["attention_distance"])
    assert distances.shape == (2, 4) and (distances > 0).all() and (distances < 32 * 2**0.5).all()


def test_images_are_looked_at_a_few_at_a_time_and_the_figures_stay(tiny_model, monkeypatch):
    for has_two in (True, False):
        model, images = tiny_model(use_distillation_token=has_two), torch.randn(7, 3, 32, 32)
        monkeypatch.setattr(analysis, "IMAGES_AT_ONCE", 7)
        at_once, sizes = describe_tokens(model, images), []
        model.register_forward_pre_hook(lambda _, inputs, sizes=sizes: sizes.append(len(inputs[0])))
        monkeypatch.setattr(analysis, "IMAGES_AT_ONCE", 3)
        parts = describe_tokens(model, images)
        assert sizes == [3, 3, 1] and parts.keys() == at_once.keys()
        for name, figures in at_once.items():
            torch.testing.assert_close(torch.tensor(parts[name]), torch.tensor(figures))


def test_a_model_with_one_token_has_no_cosine(tiny_model):
    described = describe_tokens(tiny_model(use_distillation_token=False), torch.randn(2, 3, 32, 32))
    assert described.keys() == {"images", "attention_distance"}


# Disagreement


def test_disagreement_is_the_share_of_images_with_different_answers():
    table = disagreement({"truth": [0, 1, 2, 3], "teacher": [0, 1, 2, 0], "student": [0, 0, 2, 0]})
    assert table == {
        "truth": {"truth": 0.0, "teacher": 0.25, "student": 0.5},
        "teacher": {"truth": 0.25, "teacher": 0.0, "student": 0.25},
        "student": {"truth": 0.5, "teacher": 0.25, "student": 0.0},
    }


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12))
def test_disagreement_is_a_distance(images):
    table = disagreement(dict(enumerate(zip(*images, strict=True))))
    for one in range(3):
        assert table[one][one] == 0
        for other in range(3):
            assert table[one][other] == table[other][one]
    assert table[0][2] <= table[0][1] + table[1][2] + 1e-12


def test_disagreement_needs_as_many_answers_in_each_set():
    for truth, answers in (([0, 1, 2], [0, 1]), ([], [])):
        with pytest.raises(ValueError, match="as many decisions"):
            disagreement({"truth": truth, "student": answers})


# Confusions


def test_the_confusion_matrix_counts_truth_by_row_and_answer_by_column():
    matrix = confusion_matrix(LABELS, ANSWERS, 3)
    assert matrix.tolist() == [[2, 0, 1], [1, 1, 2], [0, 0, 2]]
    assert matrix.dtype.kind == "i"


def test_a_class_without_images_has_its_row():
    assert confusion_matrix([0, 2], [2, 2], 4).tolist() == [[0, 0, 1, 0], [0] * 4, [0, 0, 1, 0], [0] * 4]


def test_indices_that_are_no_classes_are_refused():
    for labels, decisions in (([0, 3], [0, 0]), ([0, 1], [0, -1]), ([0, 1], [0]), ([], [])):
        with pytest.raises(ValueError, match="classes|as many decisions"):
            confusion_matrix(labels, decisions, 3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_the_matrix_accounts_for_every_image(images):
    labels, decisions = np.array(images).T
    matrix = confusion_matrix(labels, decisions, 4)
    assert matrix.sum(axis=1).tolist() == np.bincount(labels, minlength=4).tolist()
    assert matrix.sum(axis=0).tolist() == np.bincount(decisions, minlength=4).tolist()
    assert np.trace(matrix) == np.count_nonzero(labels == decisions)
    # Whatever is not on the diagonal is a confusion.
    assert sum(pair.count for pair in worst_confusions(matrix, count=12)) == np.count_nonzero(labels != decisions)


def test_the_worst_classes_are_those_with_the_lowest_f1():
    classes = measure_decisions(LABELS, ANSWERS, 4).classes
    assert [each.label for each in worst_classes(classes)] == [1, 2, 0]  # F1 0.4, 4 / 7 and 2 / 3; 3 has no image
    assert worst_classes(classes, count=1) == [classes[1]]


def test_of_two_classes_alike_the_one_with_more_images_comes_first():
    classes = [ClassFigures(label, 0.5, 0.5, 0.5, number, 1) for label, number in enumerate((2, 4, 2))]
    assert [each.label for each in worst_classes(classes)] == [1, 0, 2]


def test_the_worst_confusions_are_the_pairs_with_the_most_images():
    pairs = worst_confusions(confusion_matrix(LABELS, ANSWERS, 3))
    assert pairs == [Confusion(1, 2, 2, 0.5), Confusion(0, 2, 1, 1 / 3), Confusion(1, 0, 1, 0.25)]
    assert worst_confusions(confusion_matrix(LABELS, ANSWERS, 3), count=2) == pairs[:2]
    assert worst_confusions(confusion_matrix(LABELS, LABELS, 3)) == []


# Classes


def test_the_figures_of_each_class_by_hand():
    measured = measure_decisions(LABELS, ANSWERS, 4)
    # answered: 0 three times, twice rightly; 1 once, rightly; 2 five times, twice rightly; 3 never, and it has no image
    assert [each.precision for each in measured.classes] == [2 / 3, 1.0, 0.4, None]
    assert [each.recall for each in measured.classes] == [2 / 3, 0.25, 1.0, None]
    assert [each.f1 for each in measured.classes] == pytest.approx([2 / 3, 0.4, 4 / 7, None])
    assert [(each.num_images, each.num_answers) for each in measured.classes] == [(3, 3), (4, 1), (2, 5), (0, 0)]
    assert measured.accuracy == 5 / 9
    assert measured.balanced_accuracy == pytest.approx((2 / 3 + 0.25 + 1) / 3)  # of the classes with images
    assert measured.macro_f1 == pytest.approx((2 / 3 + 0.4 + 4 / 7) / 3)
    assert measured.confusion.tolist() == confusion_matrix(LABELS, ANSWERS, 4).tolist()


def test_always_one_class_is_balanced_to_its_share_of_the_classes():
    labels = np.repeat([0, 1, 2, 3], [7, 1, 1, 1])
    measured = measure_decisions(labels, np.zeros(10, dtype=int), 4)
    assert (measured.accuracy, measured.balanced_accuracy) == (0.7, 0.25)
    assert measured.macro_f1 == pytest.approx(2 * 0.7 / 1.7 / 4)
    assert [(each.precision, each.recall, each.f1) for each in measured.classes[1:]] == [(None, 0.0, 0.0)] * 3


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
def test_the_means_are_scikit_learns(images):
    labels, decisions = np.array(images).T
    measured = measure_decisions(labels, decisions, 6)
    assert measured.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, decisions))
    assert measured.macro_f1 == pytest.approx(metrics.f1_score(labels, decisions, average="macro", zero_division=0.0))
    assert class_means(labels, decisions) == (measured.balanced_accuracy, measured.macro_f1)


# Two sets of decisions


def test_a_difference_is_judged_by_the_images_that_only_one_answers_rightly():
    labels = np.zeros(20, dtype=int)
    first, second = labels.copy(), labels.copy()
    first[:1], second[5:11], first[15:], second[15:] = 1, 1, 1, 1  # 5 both are wrong on
    # Of seven such images six for the first: a coin falls so, or further from even, in 2 · (1 + 7) of 128 times.
    assert paired_difference(labels, first, second) == (6, 1, pytest.approx(16 / 128))
    assert paired_difference(labels, second, first) == (1, 6, pytest.approx(16 / 128))
    assert paired_difference(labels, first, first) == (0, 0, 1.0)


def test_a_difference_needs_as_many_decisions_in_each_set():
    for second in ([0], []):
        with pytest.raises(ValueError, match="as many decisions"):
            paired_difference([0, 1], [0, 1], second)


# Intervals


def test_the_interval_has_wilsons_textbook_values():
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)
    # all right: 1 / (1 + z² / n), with z² = 3.8415
    assert wilson_interval(100, 100) == pytest.approx((100 / 103.8415, 1.0), abs=1e-6)
    assert wilson_interval(0, 100) == pytest.approx((0.0, 3.8415 / 103.8415), abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_interval_holds_the_share_and_its_mirror_image(num_right, num_wrong):
    num_images = max(num_right + num_wrong, 1)
    share = num_right / num_images
    low, high = wilson_interval(num_right, num_images)
    assert 0.0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1.0  # but for rounding at the ends
    assert wilson_interval(num_images - num_right, num_images) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    closer_low, closer_high = wilson_interval(4 * num_right, 4 * num_images)
    assert closer_high - closer_low < high - low  # more images tell more
