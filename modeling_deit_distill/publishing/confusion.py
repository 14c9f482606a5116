"""The card's picture of the confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..analysis import worst_confusions
from .pictures import save_figure, short_name

MAX_CONFUSED = 20  # classes that a matrix shows; of more, those of the most frequent mistakes
CLASS_SIDE, MARGIN = 0.42, 2.4  # inches of a class, and of names and titles


def confused_classes(confusion: np.ndarray) -> list[int]:
    """Which classes the picture shows: all, or of very many those of the most frequent mistakes, by their indices.

    Args:
        confusion: (classes, classes) from `analysis.confusion_matrix`.
    """
    if len(confusion) <= MAX_CONFUSED:
        return list(range(len(confusion)))
    chosen: dict[int, None] = {}
    for pair in worst_confusions(confusion, MAX_CONFUSED**2):  # more pairs than that many classes have
        chosen |= dict.fromkeys((pair.label, pair.answer))
    return sorted(list(chosen)[:MAX_CONFUSED])


def confusion_in_words(confusion: np.ndarray) -> str:
    """What the picture shows and what it leaves out, for its reader."""
    number, num_classes = len(confused_classes(confusion)), len(confusion)
    words = "The true class by row, the answer by column, with numbers of images; the darker, the more of the row."
    if number < num_classes:
        words += (
            f" Of {num_classes:,} classes the {number} with the most frequent mistakes are shown. The last column "
            f"counts answers with any of the other {num_classes - number:,}, whose own rows are left out."
        )
    return words


def plot_confusion(confusion: np.ndarray, names: Sequence[str], path: str | Path) -> Path | None:
    """The confusion matrix as a PNG; None where very many classes were all recognised, so that there is none to show.

    Args:
        confusion: (classes, classes) from `analysis.confusion_matrix`.
        names: of the classes, in the order of their indices.
    """
    from matplotlib.figure import Figure

    rows = confused_classes(confusion)
    if not rows:
        return None
    counts, columns = confusion[np.ix_(rows, rows)], [short_name(names[row]) for row in rows]
    if len(rows) < len(confusion):
        others = confusion[rows].sum(axis=1) - counts.sum(axis=1)
        counts = np.column_stack([counts, others])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    height, width = counts.shape
    figure = Figure(figsize=(MARGIN + CLASS_SIDE * width, MARGIN + CLASS_SIDE * height), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=7, color=colour)
    text = {"fontsize": 8, "parse_math": False}  # a dollar in a class's name is no formula
    others = [f"{len(confusion) - len(rows):,} others"] if width > height else []
    axes.set_xticks(range(width), [*columns, *others], rotation=60, ha="right", rotation_mode="anchor", **text)
    axes.set_yticks(range(height), columns, **text)
    axes.set(xlabel="answer", ylabel="truth")
    return save_figure(figure, path)
