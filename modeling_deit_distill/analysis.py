"""What a model's answers, tokens and attention say about it: pure functions on arrays and tensors.

Disagreement is the paper's Table 4 and the tokens' cosine its section 4 (Touvron et al. 2020, arXiv 2012.12877), the
attention distance that of Dosovitskiy et al. 2020 (arXiv 2010.11929, figure 7); the rest is what a model card needs.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

# Images of one forward with all attentions, which are large: 24 blocks of 12 heads and 578² pairs are 190 MB an image.
IMAGES_AT_ONCE = 8
FEW_IN_ALL = 50  # with fewer held-out images little can be said of a model


class ClassFigures(NamedTuple):
    """How well one class is distinguished from the others: shares from 0 to 1, None without images."""

    label: int
    precision: float | None  # of the images that were answered with it
    recall: float | None  # of its own images
    f1: float | None  # harmonic mean of both; 0 for a class with images that was never answered
    num_images: int
    num_answers: int


class Confusion(NamedTuple):
    """How often one class was taken for another."""

    label: int
    answer: int
    count: int
    share: float  # of the true class's images, from 0 to 1


class Measured(NamedTuple):
    """What a set of decisions is worth: shares from 0 to 1, see [`measure_decisions`]."""

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    classes: list[ClassFigures]  # in the order of their indices
    confusion: np.ndarray  # (classes, classes), see [`confusion_matrix`]


class Paired(NamedTuple):
    """Two sets of decisions on the same images, see [`paired_difference`]."""

    num_first: int  # images on which only the first is right
    num_second: int
    p_value: float


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
    _check_tokens(attentions[-1], grid, num_prefix_tokens)
    last = attentions[-1].float().mean(dim=1)  # (B, N, N)
    to_patches = last[:, :num_prefix_tokens, num_prefix_tokens:]
    # All weight on the prefix leaves zeros here, and no division by zero.
    to_patches = F.normalize(to_patches, p=1, dim=-1, eps=torch.finfo(torch.float32).tiny)
    return to_patches.unflatten(-1, grid)


def token_cosine(tokens: torch.Tensor) -> float:
    """Cosine of class and distillation token, from -1 to 1, as the mean over images (paper, section 4).

    Args:
        tokens: (images, 2 or more, hidden), those two first: the learned tokens themselves with one for the number of
            images, or what comes out of a block.

    Raises:
        ValueError: fewer than two tokens, or no images.
    """
    if tokens.dim() != 3 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise ValueError(f"tokens must be (images, at least 2, hidden), at least one image; not {tuple(tokens.shape)}")
    return F.cosine_similarity(tokens[:, 0].float(), tokens[:, 1].float(), dim=-1).mean().item()


@torch.no_grad()
def describe_tokens(model: torch.nn.Module, pixel_values: torch.Tensor) -> dict[str, object]:
    """What the tokens of a model do on some images, as figures for a file.

    Args:
        model: a [`DeiTDistillForImageClassification`] in evaluation mode.
        pixel_values: (images, 3, height, width), normalised.

    Returns:
        `images`, how many; `attention_distance`, pixels by block and head (see [`mean_attention_distance`]); and of a
        model with two tokens `cosine_learned`, of the tokens as they were learned, and `cosine_by_block`, of what
        comes out of each block (see [`token_cosine`]).
    """
    embeddings = model.base_model.embeddings
    parts = pixel_values.split(IMAGES_AT_ONCE)
    looks = [_look(model, part) for part in parts]
    weights = torch.tensor([len(part) / len(pixel_values) for part in parts], dtype=torch.float64)
    distances, cosines = (torch.tensordot(weights, torch.stack(each).double(), 1) for each in zip(*looks, strict=True))
    described = {"images": len(pixel_values), "attention_distance": distances.tolist()}
    if model.config.use_distillation_token:
        learned = torch.cat([embeddings.cls_token, embeddings.distillation_token], dim=1)
        described["cosine_learned"] = token_cosine(learned)
        described["cosine_by_block"] = cosines.tolist()
    return described


def _look(model: torch.nn.Module, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention distances (blocks, heads) and the tokens' cosines (blocks,; none with one token) of a few images."""
    embeddings, has_two = model.base_model.embeddings, model.config.use_distillation_token
    output = model(pixel_values.to(model.device, model.dtype), output_attentions=True, output_hidden_states=True)
    grid = embeddings.grid(tuple(pixel_values.shape[-2:]))
    distances = mean_attention_distance(output.attentions, grid, 2 if has_two else 1, embeddings.patch_size)
    cosines = [token_cosine(tokens) for tokens in output.hidden_states[1:]] if has_two else []
    return distances.cpu(), torch.tensor(cosines)


def mean_attention_distance(
    attentions: tuple[torch.Tensor, ...], grid: tuple[int, int], num_prefix_tokens: int, patch_size: tuple[int, int]
) -> torch.Tensor:
    """How far from itself a patch looks, on average, in each head of each block (Dosovitskiy et al. 2020, figure 7).

    Args:
        attentions, grid, num_prefix_tokens: as for [`attention_maps`].
        patch_size: of a patch in pixels, (height, width).

    Returns:
        (blocks, heads), float32, in pixels of the image: the distance between the centres of the looking patch and of
        that looked at, weighted by attention (what goes to the prefix tokens is left out), mean over patches and
        images.

    Raises:
        ValueError: a number of tokens other than prefix and grid make up.
    """
    _check_tokens(attentions[-1], grid, num_prefix_tokens)
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    centres = torch.stack([rows, columns], dim=-1).view(-1, 2) * torch.tensor(patch_size)  # (P, 2)
    distances = torch.cdist(centres.float(), centres.float()).to(attentions[-1].device)  # (P, P)
    means = []
    for weights in attentions:
        between = weights[..., num_prefix_tokens:, num_prefix_tokens:].float()  # (B, H, P, P)
        between = F.normalize(between, p=1, dim=-1, eps=torch.finfo(torch.float32).tiny)
        means.append((between * distances).sum(dim=-1).mean(dim=(0, 2)))
    return torch.stack(means)


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


def measure_decisions(labels: np.ndarray, decisions: np.ndarray, num_classes: int) -> Measured:
    """Accuracy, balanced accuracy, macro-F1, the figures of each class and the confusion matrix.

    Args:
        labels, decisions: (images,) class indices, true and answered.
        num_classes: of the model; classes without images are in the table too.

    Raises:
        ValueError: as [`confusion_matrix`].
    """
    from sklearn import metrics

    confusion = confusion_matrix(labels, decisions, num_classes)
    figures = metrics.precision_recall_fscore_support(labels, decisions, labels=range(num_classes), zero_division=0.0)
    num_images, num_answers = confusion.sum(axis=1).tolist(), confusion.sum(axis=0).tolist()
    classes = [
        ClassFigures(
            label,
            precision if num_answers[label] else None,
            recall if num_images[label] else None,
            f1 if num_images[label] or num_answers[label] else None,
            num_images[label],
            num_answers[label],
        )
        for label, (precision, recall, f1) in enumerate(zip(*(each.tolist() for each in figures[:3]), strict=True))
    ]
    return Measured(
        float(np.mean(np.asarray(labels) == decisions)), *class_means(labels, decisions), classes, confusion
    )


def class_means(labels: np.ndarray, decisions: np.ndarray) -> tuple[float, float]:
    """Balanced accuracy (mean recall of the classes with images) and macro-F1 (mean of those with images or answers).

    As scikit-learn's `balanced_accuracy_score` and `f1_score(average="macro")`, in one pass and without warnings.

    Args:
        labels, decisions: (images,) class indices, true and answered; at least one image.
    """
    from sklearn import metrics

    _, recall, f1, num_images = metrics.precision_recall_fscore_support(labels, decisions, zero_division=0.0)
    return float(np.mean(recall[num_images > 0])), float(np.mean(f1))


def paired_difference(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> Paired:
    """Whether one of two sets of decisions is right more often, by McNemar's exact test (McNemar 1947).

    Only the images on which one of them is right say anything. The p value is two-sided: how often a coin, thrown for
    each of these images, would differ as much or more; 1 where there is no such image.

    Args:
        labels, first, second: (images,) class indices.

    Raises:
        ValueError: arrays of different length, or no images.
    """
    from scipy.stats import binomtest

    arrays = {name: np.asarray(each) for name, each in (("labels", labels), ("first", first), ("second", second))}
    _check_lengths(arrays)
    first_right, second_right = arrays["first"] == arrays["labels"], arrays["second"] == arrays["labels"]
    num_first, num_second = (
        int(np.count_nonzero(only)) for only in (first_right > second_right, second_right > first_right)
    )
    decided = num_first + num_second
    return Paired(num_first, num_second, float(binomtest(num_first, decided).pvalue) if decided else 1.0)


def confusion_matrix(labels: np.ndarray, decisions: np.ndarray, num_classes: int) -> np.ndarray:
    """How many images of each class (row) were answered with each class (column): (classes, classes) integers.

    Args:
        labels, decisions: (images,) class indices.

    Raises:
        ValueError: arrays of different length, no images, or a class index outside of `num_classes`.
    """
    from sklearn import metrics

    labels, decisions = np.asarray(labels), np.asarray(decisions)
    _check_lengths({"labels": labels, "decisions": decisions})
    # scikit-learn would leave out images of other classes, and say nothing.
    for name, indices in (("labels", labels), ("decisions", decisions)):
        if indices.min() < 0 or indices.max() >= num_classes:
            raise ValueError(f"{name} go from {indices.min()} to {indices.max()}, but there are {num_classes} classes")
    return metrics.confusion_matrix(labels, decisions, labels=range(num_classes))


def worst_classes(classes: list[ClassFigures], count: int = 10) -> list[ClassFigures]:
    """The classes with the lowest F1, the worst first, of those with images.

    Args:
        classes: of [`Measured`].
        count: how many at most.
    """
    known = [each for each in classes if each.num_images]
    # Of two classes alike, that with more images is known better.
    return sorted(known, key=lambda each: (each.f1, -each.num_images, each.label))[:count]


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


def wilson_interval(num_right: int, num_images: int) -> tuple[float, float]:
    """95 % interval of the share of right answers (Wilson 1927, the score interval): (low, high), from 0 to 1.

    Unlike share ± 1.96 standard errors it keeps within 0 and 1, and is not empty where all answers are right.
    """
    from scipy.stats import binomtest  # here: who only trains or loads a model need not wait for it

    low, high = binomtest(num_right, num_images).proportion_ci(confidence_level=0.95, method="wilson")
    return float(low), float(high)


def _check_tokens(weights: torch.Tensor, grid: tuple[int, int], num_prefix_tokens: int):
    found, expected = weights.shape[-1], num_prefix_tokens + grid[0] * grid[1]
    if found != expected:
        raise ValueError(f"{found} tokens, but {num_prefix_tokens} and a grid of {grid} are {expected}")


def _check_lengths(arrays: Mapping[str, np.ndarray]):
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(f"as many decisions are needed in each set, at least one: {lengths}")
