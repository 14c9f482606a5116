"""How far a classifier's confidence is from its accuracy.

Loaded by `evaluate.load("examples/metrics/expected_calibration_error")`.
"""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Expected calibration error (Guo et al. 2017, equation 3): images are sorted by confidence, the highest probability,
into M bins of equal width, ((m - 1) / M, m / M]; the error is the mean over all images of the distance between
accuracy and mean confidence of their bin, sum over m of |B_m| / n * |acc(B_m) - conf(B_m)|. 0 is a classifier that is
right in 80 % of the cases in which it says 80 %. A tie between classes goes to the lower index, as in an argmax.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: probabilities, (images, classes), float, each row from 0 to 1 with the sum 1. Kept as float32.
    references: true classes, (images,), int, from 0 to classes - 1.
    num_bins: number of bins M. Default: 15, as in the paper.

Returns:
    expected_calibration_error: from 0 to 1.
    bin_confidence: mean confidence of each bin's images, None for a bin without any; what a reliability diagram shows.
    bin_accuracy: share of right decisions in each bin, None for a bin without images.
    bin_count: number of images of each bin.

Raises:
    ValueError: rows that are no probabilities (logits, say), shapes that do not fit, classes that do not exist, fewer
        than one bin.

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("examples/metrics/expected_calibration_error")
    >>> probabilities = [[0.75, 0.25], [0.75, 0.25], [0.0, 1.0], [0.625, 0.375]]
    >>> result = metric.compute(predictions=probabilities, references=[0, 1, 1, 0], num_bins=4)
    >>> result["expected_calibration_error"]  # (3 * |2/3 - 17/24| + 1 * |1 - 1|) / 4
    0.03125
    >>> result["bin_count"]
    [0, 0, 3, 1]
    >>> result["bin_confidence"][3], result["bin_accuracy"][3], result["bin_accuracy"][0]
    (1.0, 1.0, None)

    Batch by batch, on any number of processes (see examples/metrics/README.md):
    >>> metric.add_batch(predictions=probabilities[:3], references=[0, 1, 1])
    >>> metric.add_batch(predictions=probabilities[3:], references=[0])
    >>> metric.compute(num_bins=4)["expected_calibration_error"]
    0.03125
"""

_CITATION = """
@inproceedings{guo2017calibration,
  title={On Calibration of Modern Neural Networks},
  author={Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle={International Conference on Machine Learning},
  pages={1321--1330},
  year={2017}
}
"""

# What rounding to bfloat16 may do to a sum; logits miss it by far.
SUM_TOLERANCE = 0.01


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ExpectedCalibrationError(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
        info = evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(features),
            reference_urls=["https://arxiv.org/abs/1706.04599"],
        )
        # Set here because the constructor refuses a format for rows; Python lists take eight times the memory.
        info.format = "numpy"
        return info

    def _compute(self, predictions: np.ndarray, references: np.ndarray, num_bins: int = 15) -> dict[str, float | list]:
        _check_probabilities(predictions, references)
        if not isinstance(num_bins, (int, np.integer)) or num_bins < 1:
            raise ValueError(f"num_bins is {num_bins!r}; give a whole number of at least 1")
        confidence, right = predictions.max(axis=1), predictions.argmax(axis=1) == references
        bins = _bins(confidence, num_bins)
        count = np.bincount(bins, minlength=num_bins)
        # Sums in float64, where those of a million float32 values hardly round: the order of images does not matter.
        total_confidence = np.bincount(bins, weights=confidence, minlength=num_bins)
        total_right = np.bincount(bins, weights=right, minlength=num_bins)
        return {
            "expected_calibration_error": float(np.abs(total_right - total_confidence).sum() / len(predictions)),
            "bin_confidence": _means(total_confidence, count),
            "bin_accuracy": _means(total_right, count),
            "bin_count": count.tolist(),
        }


def _bins(confidence: np.ndarray, num_bins: int) -> np.ndarray:
    """(images,) The bin of each confidence; one that lies on an edge belongs to the bin below."""
    # Edges are rounded as confidences are: 0.2 is on the edge 3 / 15 though float32's 0.2 is above float64's.
    edges = (np.arange(1, num_bins + 1) / num_bins).astype(np.float32)
    return np.searchsorted(edges[:-1], confidence, side="left")


def _means(totals: np.ndarray, count: np.ndarray) -> list[float | None]:
    return [float(total / number) if number else None for total, number in zip(totals, count, strict=True)]


def _check_probabilities(probabilities: np.ndarray, references: np.ndarray):
    if len(probabilities) == 0:
        raise ValueError("there are no images; give at least one prediction and its reference")
    if probabilities.ndim != 2 or probabilities.shape[1] == 0:
        lengths = sorted({np.size(row) for row in probabilities})
        raise ValueError(f"predictions must be probabilities (images, classes); here rows have the lengths {lengths}")
    sums = probabilities.sum(axis=1, dtype=np.float64)
    # Written so that NaN, which is neither near nor far, fails too.
    wrong = ~((np.abs(sums - 1) <= SUM_TOLERANCE) & (probabilities >= 0).all(axis=1))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"predictions must be probabilities, but row {row} has the sum {sums[row]:.4g} and the lowest value "
            f"{probabilities[row].min():.4g}; if they are logits, apply a softmax first"
        )
    outside = references[(references < 0) | (references >= probabilities.shape[1])]
    if len(outside):
        raise ValueError(f"references hold class {outside[0]}, but predictions have {probabilities.shape[1]} classes")
