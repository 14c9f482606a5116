"""What a model's answers and attention say about it: pure functions on arrays and tensors.

Disagreement is the paper's Table 4 (Touvron et al. 2020, arXiv 2012.12877); the rest is what a model card needs.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

Z_95 = 1.959963984540054  # two-sided 95 % point of the normal distribution


class ClassRecall(NamedTuple):
    """How often one class was recognised."""

    label: int
    num_right: int
    num_images: int

    @property
    def recall(self) -> float:
        """Share of the class's images that were answered with it, from 0 to 1."""
        return self.num_right / self.num_images


class Confusion(NamedTuple):
    """How often one class was taken for another."""

    label: int
    answer: int
    count: int
    share: float  # of the true class's images, from 0 to 1


def attention_maps(attentions: tuple[torch.Tensor, ...], grid: tuple[int, int], num_prefix_tokens: int) -> torch.Tensor:
    """Where the class token, and the distillation token if there is one, look in the last block.

    Args:
        attentions: one (batch, heads, tokens, tokens) for each block: from token (third axis) to token (last axis).
        grid: patches as (height, width).
        num_prefix_tokens: tokens before the patches: 1, or 2 with the distillation token.

    Returns:
        (batch, num_prefix_tokens, height, width), float32: the mean over heads, each map with the sum 1 (what a
        prefix token gives to itself and to the other one is left out).

    Raises:
        ValueError: a number of tokens other than prefix and grid make up.
    """
    last = attentions[-1].float().mean(dim=1)  # (B, N, N)
    num_expected = num_prefix_tokens + grid[0] * grid[1]
    if last.shape[-1] != num_expected:
        raise ValueError(f"{last.shape[-1]} tokens, but {num_prefix_tokens} and a grid of {grid} are {num_expected}")
    to_patches = last[:, :num_prefix_tokens, num_prefix_tokens:]
    # All weight on the prefix leaves zeros here, and no division by zero.
    to_patches = F.normalize(to_patches, p=1, dim=-1, eps=torch.finfo(torch.float32).tiny)
    return to_patches.unflatten(-1, grid)


def disagreement(decisions: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Share of images on which two sets of decisions differ, for each pair (paper, Table 4).

    Args:
        decisions: name to (images,) class indices; the truth may be one of them.

    Returns:
        `result[one][other]`, from 0 to 1; symmetric, 0 on the diagonal.

    Raises:
        ValueError: sets of different length, or no images.
    """
    arrays = {name: np.asarray(decided) for name, decided in decisions.items()}
    _check_lengths(arrays)
    return {
        one: {other: float(np.mean(first != second)) for other, second in arrays.items()}
        for one, first in arrays.items()
    }


def confusion_matrix(labels: np.ndarray, decisions: np.ndarray, num_classes: int) -> np.ndarray:
    """How many images of each class (row) were answered with each class (column): (classes, classes) integers.

    Args:
        labels, decisions: (images,) class indices.

    Raises:
        ValueError: arrays of different length, no images, or a class index outside of `num_classes`.
    """
    labels, decisions = np.asarray(labels), np.asarray(decisions)
    _check_lengths({"labels": labels, "decisions": decisions})
    for name, indices in (("labels", labels), ("decisions", decisions)):
        if indices.min() < 0 or indices.max() >= num_classes:
            raise ValueError(f"{name} go from {indices.min()} to {indices.max()}, but there are {num_classes} classes")
    counts = np.bincount(labels * num_classes + decisions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def worst_classes(confusion: np.ndarray, count: int = 10) -> list[ClassRecall]:
    """The classes recognised least often, the worst first; none that was always recognised or has no image.

    Args:
        confusion: (classes, classes) from [`confusion_matrix`].
        count: how many at most.
    """
    rows = zip(confusion.diagonal().tolist(), confusion.sum(axis=1).tolist(), strict=True)
    recalls = [ClassRecall(label, right, images) for label, (right, images) in enumerate(rows) if right < images]
    # Of two classes with the same recall, that with more images is known better.
    return sorted(recalls, key=lambda each: (each.recall, -each.num_images, each.label))[:count]


def worst_confusions(confusion: np.ndarray, count: int = 10) -> list[Confusion]:
    """The pairs of true class and wrong answer with the most images, the most first.

    Args:
        confusion: (classes, classes) from [`confusion_matrix`].
        count: how many at most.
    """
    num_images = confusion.sum(axis=1)
    labels, answers = np.nonzero(confusion)
    pairs = [
        Confusion(label, answer, int(confusion[label, answer]), float(confusion[label, answer] / num_images[label]))
        for label, answer in zip(labels.tolist(), answers.tolist(), strict=True)
        if label != answer
    ]
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.share, pair.label, pair.answer))[:count]


def wilson_interval(share: float, num_images: int) -> tuple[float, float]:
    """95 % interval of a share that was measured on so many images (Wilson 1927, the score interval).

    Unlike share ± 1.96 standard errors it keeps within 0 and 1, and is not empty where all answers are right.

    Args:
        share: hits / images, from 0 to 1.
        num_images: at least 1.

    Returns:
        (low, high), from 0 to 1.
    """
    spread = Z_95**2 / num_images
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _check_lengths(arrays: Mapping[str, np.ndarray]):
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f"as many decisions are needed in each set, at least one: {lengths}")
