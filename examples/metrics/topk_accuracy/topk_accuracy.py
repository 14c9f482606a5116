"""Top-k accuracy from scores: `evaluate.load("examples/metrics/topk_accuracy")`."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Top-k accuracy: the share of images whose true class is among the k classes with the highest scores. A tie goes to the
class of the lower index, as in an argmax, so that top-1 is exactly the share of right decisions and no result depends
on the order of the images.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: scores, (images, classes), float; logits or probabilities, since only their order matters. Kept as
        float32.
    references: true classes, (images,), int, from 0 to classes - 1.
    k: how many of the highest scores count, or a list of such numbers. Default: 1.

Returns:
    top<k>_accuracy: for each k, from 0 to 1, e.g. `top1_accuracy`, `top5_accuracy`.

Raises:
    ValueError: a k below 1 or above the number of classes, shapes that do not fit, classes that do not exist, scores
        that are NaN.

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("examples/metrics/topk_accuracy")
    >>> scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2]]
    >>> metric.compute(predictions=scores, references=[1, 1, 0, 0])
    {'top1_accuracy': 0.5}
    >>> metric.compute(predictions=scores, references=[1, 1, 0, 0], k=[1, 2, 3])
    {'top1_accuracy': 0.5, 'top2_accuracy': 1.0, 'top3_accuracy': 1.0}

    Batch by batch, on any number of processes (see examples/metrics/README.md):
    >>> metric.add_batch(predictions=scores[:3], references=[1, 1, 0])
    >>> metric.add_batch(predictions=scores[3:], references=[1])
    >>> metric.compute(k=2)
    {'top2_accuracy': 1.0}
"""

_CITATION = """
@article{russakovsky2015imagenet,
  title={{ImageNet} Large Scale Visual Recognition Challenge},
  author={Russakovsky, Olga and Deng, Jia and Su, Hao and Krause, Jonathan and Satheesh, Sanjeev and Ma, Sean and
    Huang, Zhiheng and Karpathy, Andrej and Khosla, Aditya and Bernstein, Michael and Berg, Alexander C. and
    Fei-Fei, Li},
  journal={International Journal of Computer Vision},
  volume={115},
  pages={211--252},
  year={2015}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class TopkAccuracy(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
        info = evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(features),
            reference_urls=["https://arxiv.org/abs/1409.0575"],
        )
        # Set here because the constructor refuses a format for rows; Python lists take eight times the memory.
        info.format = "numpy"
        return info

    def _compute(self, predictions: np.ndarray, references: np.ndarray, k: int | list[int] = 1) -> dict[str, float]:
        scores = _checked_scores(predictions, references)
        wanted, num_classes = [k] if np.ndim(k) == 0 else list(k), scores.shape[1]
        for number in wanted:
            if not isinstance(number, (int, np.integer)) or not 1 <= number <= num_classes:
                raise ValueError(
                    f"k is {number!r}, but there are {scores.shape[1]} classes; give 1 to {scores.shape[1]}"
                )
        ranks = _ranks(scores, references)
        return {f"top{number}_accuracy": float(np.mean(ranks < number)) for number in wanted}


def _ranks(scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(images,) How many classes come before the given one: with a higher score, or an equal one and a lower index."""
    own = np.take_along_axis(scores, classes[:, None], axis=1)
    is_lower_index = np.arange(scores.shape[1]) < classes[:, None]
    return np.sum((scores > own) | ((scores == own) & is_lower_index), axis=1)


def _checked_scores(scores: np.ndarray, references: np.ndarray) -> np.ndarray:
    """`scores` if they are (images, classes) and the references are among the classes."""
    if len(scores) == 0:
        raise ValueError("there are no images; give at least one prediction and its reference")
    if scores.ndim != 2 or scores.shape[1] == 0:
        lengths = sorted({np.size(row) for row in scores})
        raise ValueError(f"predictions must be scores (images, classes); here their rows have the lengths {lengths}")
    if np.isnan(scores).any():
        number = int(np.isnan(scores).any(axis=1).sum())
        raise ValueError(f"{number} of {len(scores)} predictions hold NaN; correct them")
    outside = references[(references < 0) | (references >= scores.shape[1])]
    if len(outside):
        raise ValueError(f"references hold class {outside[0]}, but predictions have {scores.shape[1]} classes")
    return scores
