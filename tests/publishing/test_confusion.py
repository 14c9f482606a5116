"""The picture of the confusion matrix: what it shows of few classes and of very many."""

import sys
import warnings

import numpy as np
import PIL.Image
import pytest

from modeling_deit_distill.output_folder import CONFUSION
from modeling_deit_distill.publishing.confusion import confused_classes, confusion_in_words, plot_confusion


@pytest.fixture
def thousand():
    """A thousand classes of five images each, wrong three times on 7 for 900, twice on 3 for 4, and once on some."""
    matrix = np.diag(np.full(1000, 5))
    pairs = [(7, 900, 3), (3, 4, 2), *((100 + 2 * index, 101 + 2 * index, 1) for index in range(20))]
    for label, answer, count in pairs:
        matrix[label, label] -= count
        matrix[label, answer] += count
    return matrix


def test_few_classes_are_all_shown():
    assert confused_classes(np.eye(20, dtype=int)) == list(range(20))
    assert "left out" not in confusion_in_words(np.eye(20, dtype=int))


def test_of_very_many_classes_those_of_the_most_frequent_mistakes_are_shown(thousand):
    chosen = confused_classes(thousand)
    assert chosen == [3, 4, 7, *range(100, 116), 900]
    words = confusion_in_words(thousand)
    assert "Of 1,000 classes the 20 with the most frequent mistakes are shown" in words
    assert "any of the other 980, whose own rows are left out" in words


def drawn(monkeypatch, matrix, names, path):
    """The axes of the picture."""
    from modeling_deit_distill.publishing import confusion

    figures = []
    monkeypatch.setattr(confusion, "save_figure", lambda figure, path: figures.append(figure))
    plot_confusion(matrix, names, path)
    return figures[0].axes[0]


def test_the_cells_hold_counts_and_the_last_column_the_other_answers(thousand, monkeypatch, tmp_path):
    thousand[7, 7], thousand[7, 999] = 92, 1  # a rare mistake, and so one of the others
    axes = drawn(monkeypatch, thousand, [f"c{index}" for index in range(1000)], tmp_path)
    rows, columns = (
        [label.get_text() for label in labels] for labels in (axes.get_yticklabels(), axes.get_xticklabels())
    )
    assert (rows[:3], columns[-2:]) == (["c3", "c4", "c7"], ["c900", "980 others"])
    cells = {(rows[y], columns[x]): text.get_text() for text in axes.texts for x, y in [text.get_position()]}
    assert cells["c7", "c900"] == "3" and cells["c7", "980 others"] == "1" and cells["c4", "c4"] == "5"
    assert ("c4", "c3") not in cells  # zeros are not written


def test_the_picture_is_a_png_of_readable_size(thousand, tmp_path):
    names = ["$\\frac$", "a_b", "猫", "x" * 200, *(f"c{index}" for index in range(996))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plot_confusion(thousand, names, tmp_path / CONFUSION) == tmp_path / CONFUSION
    with PIL.Image.open(tmp_path / CONFUSION) as picture:
        assert max(picture.size) < 2500
    one = (tmp_path / CONFUSION).read_bytes()
    plot_confusion(thousand, names, tmp_path / CONFUSION)
    assert (tmp_path / CONFUSION).read_bytes() == one


def test_classes_without_images_and_without_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it fails
    assert plot_confusion(np.array([[2, 1], [0, 0]]), ["a", "b"], tmp_path / CONFUSION).exists()


def test_very_many_classes_without_a_mistake_have_no_picture(tmp_path):
    assert plot_confusion(np.eye(30, dtype=int), [str(index) for index in range(30)], tmp_path / CONFUSION) is None
    assert not (tmp_path / CONFUSION).exists()
