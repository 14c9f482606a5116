"""Weights of the classes: scikit-learn's balanced ones, and those of a file, or a line that says what is wrong."""

import numpy as np
import pytest
from helpers.images import rows
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from modeling_deit_distill import InputError
from modeling_deit_distill.data.class_weights import balanced_weights, class_weights

NAMES = ["hat", "dress", "t-shirt"]


def test_balanced_weights_by_hand():
    # 12 images of 3 classes: 12 / (3 · 1), 12 / (3 · 3), 12 / (3 · 8).
    assert balanced_weights(np.array([1, 3, 8])) == [4.0, 12 / 9, 0.5]


@settings(deadline=None)
@given(st.lists(st.integers(1, 500), min_size=2, max_size=20))
def test_balanced_weights_are_scikit_learns_and_one_on_average(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    weights = balanced_weights(np.array(counts))
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.unique(labels), y=labels))
    assert np.mean(np.array(weights)[labels]) == pytest.approx(1)


def test_a_class_without_images_changes_no_other_weight():
    assert balanced_weights(np.array([4, 0, 1])) == [5 / 8, 1.0, 5 / 2]


def test_the_labels_are_counted():
    assert class_weights("balanced", NAMES, rows([2, 0, 0, 0, 1, 1], NAMES)) == [6 / 9, 1.0, 2.0]
    assert class_weights(None, NAMES, None) is None


@pytest.fixture
def weights_in(tmp_path):
    def read(text: str, name="weights.json", class_names=NAMES):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return class_weights(str(tmp_path / name), class_names, None)

    return read


def test_a_file_gives_weights_in_the_order_of_the_classes(weights_in):
    assert weights_in('{"t-shirt": 0.5, "hat": 2, "dress": 1e1}') == [2.0, 10.0, 0.5]
    for text in (
        "class,weight\nt-shirt,0.5\nhat,2\ndress,10\n",
        "hat;2\ndress;1e1\n\nt-shirt;.5",
        "\ufeffhat\t2\ndress\t10\nt-shirt\t0.5",
    ):
        assert weights_in(text, "weights.csv") == [2.0, 10.0, 0.5]
    # Names are text, and one class whatever their Unicode form.
    assert weights_in("1,2\nHu\u0308te,3", "weights.csv", ["1", "H\u00fcte"]) == [2.0, 3.0]


REFUSED = [
    ('{"hat": 1}', r"must name each class once; missing: dress, t-shirt; unknown: none"),
    ('{"hat": 1, "dress": 1, "tshirt": 1}', r"missing: t-shirt; unknown: tshirt"),
    ('{"hat": 1, "dress": 1, "t-shirt": 1, "hat": 2}', r"names the class 'hat' twice; keep one"),
    ('{"hat": 0, "dress": 1, "t-shirt": 1}', r"'hat' the weight 0; give a positive finite number"),
    ('{"hat": 1, "dress": -1.5, "t-shirt": 1}', r"'dress' the weight -1.5; give"),
    ('{"hat": 1, "dress": 1, "t-shirt": NaN}', r"'t-shirt' the weight nan; give"),
    ('{"hat": 1, "dress": 1, "t-shirt": 1e999}', r"'t-shirt' the weight inf; give"),
    ('{"hat": true, "dress": 1, "t-shirt": 1}', r"'hat' the weight True; give"),
    ('{"hat": "1", "dress": 1, "t-shirt": 1}', r"'hat' the weight '1'; give"),
    ('{"hat": 1, ', r"is not valid JSON \(.*\); give a JSON object"),
    ("[1, 1, 1]", r"is no JSON object; give"),
    ("hat,1\ndress,much\nt-shirt,1", r"'dress' the weight 'much'; give"),
    ("class,weight,note\nhat,1,x\n", r"has 3 columns; give"),
    ("hat,1\ndress\n", r"line 2: it has 1 field, the header has 2; give every row"),
    ("", r"missing: hat, dress, t-shirt; unknown: none"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_a_file_of_no_weights_for_these_classes_is_refused_in_one_line(weights_in, text, words):
    with pytest.raises(InputError, match=words) as caught:
        weights_in(text, "weights.json" if text.startswith(("{", "[")) else "weights.csv")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_or_counted_is_refused(tmp_path):
    with pytest.raises(InputError, match="class_weights 'balance' is no file; give 'balanced', or a JSON object"):
        class_weights("balance", NAMES, None)
    with pytest.raises(InputError, match="counts the training images of each class, which a stream .* give a file"):
        class_weights("balanced", NAMES, None)
    (tmp_path / "weights.csv").write_bytes("Hüte,1".encode("latin-1"))
    with pytest.raises(InputError, match="save it as 'CSV UTF-8'"):
        class_weights(str(tmp_path / "weights.csv"), NAMES, None)
