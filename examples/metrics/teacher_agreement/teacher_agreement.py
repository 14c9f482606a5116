"""How often a student decides as its teacher does: `evaluate.load("examples/metrics/teacher_agreement")`."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Teacher agreement: the share of images on which two classifiers, a student and its teacher say, decide for the same
class, and its complement, the disagreement of the DeiT paper's Table 4. The true labels do not enter. The measure is
symmetric. Where scores are given the decision is their argmax; a tie goes to the class of the lower index.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: the student's decisions, (images,) int, or its scores, (images, classes) float, logits or
        probabilities.
    references: the teacher's, in either form, on the same images in the same order and over the same classes.

Returns:
    teacher_agreement: share of equal decisions, from 0 to 1.
    disagreement: share of different ones.

Raises:
    ValueError: shapes that do not fit, scores that are NaN, scores over different numbers of classes.

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("examples/metrics/teacher_agreement")
    >>> metric.compute(predictions=[0, 2, 1, 1], references=[0, 2, 2, 1])
    {'teacher_agreement': 0.75, 'disagreement': 0.25}

    Scores in place of decisions, on either side or on both:
    >>> student = [[0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3], [0.0, 0.9, 0.1]]
    >>> metric.compute(predictions=student, references=[0, 2, 2, 1])
    {'teacher_agreement': 0.75, 'disagreement': 0.25}

    Batch by batch, on any number of processes (see examples/metrics/README.md):
    >>> metric.add_batch(predictions=[0, 2, 1], references=[0, 2, 2])
    >>> metric.add_batch(predictions=[1], references=[0])
    >>> metric.compute()
    {'teacher_agreement': 0.5, 'disagreement': 0.5}
"""

_CITATION = """
@article{touvron2020training,
  title={Training data-efficient image transformers \\& distillation through attention},
  author={Touvron, Hugo and Cord, Matthieu and Douze, Matthijs and Massa, Francisco and Sablayrolles, Alexandre and
    J{\\'e}gou, Herv{\\'e}},
  journal={arXiv preprint arXiv:2012.12877},
  year={2020}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class TeacherAgreement(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        decisions, scores = datasets.Value("int64"), datasets.List(datasets.Value("float32"))
        info = evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[
                datasets.Features({"predictions": student, "references": teacher})
                for student in (decisions, scores)
                for teacher in (decisions, scores)
            ],
            reference_urls=["https://arxiv.org/abs/2012.12877"],
        )
        # Set here because the constructor refuses a format for rows; Python lists take eight times the memory.
        info.format = "numpy"
        return info

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        if len(predictions) == 0:
            raise ValueError("there are no images; give at least one prediction and its reference")
        student, teacher = _decisions("predictions", predictions), _decisions("references", references)
        if predictions.ndim == references.ndim == 2 and predictions.shape[1] != references.shape[1]:
            raise ValueError(
                f"predictions have {predictions.shape[1]} classes, references {references.shape[1]}; give both over "
                "the same classes in the same order"
            )
        return {
            "teacher_agreement": float(np.mean(student == teacher)),
            "disagreement": float(np.mean(student != teacher)),
        }


def _decisions(name: str, answers: np.ndarray) -> np.ndarray:
    """(images,) class indices: `answers` themselves, or the classes of the highest scores."""
    if answers.dtype == object or 0 in answers.shape:
        lengths = sorted({np.size(row) for row in answers})
        raise ValueError(f"{name} must be classes or scores (images, classes); here rows have the lengths {lengths}")
    if answers.ndim == 1:
        return answers
    if np.isnan(answers).any():
        raise ValueError(f"{int(np.isnan(answers).any(axis=1).sum())} of {len(answers)} {name} hold NaN; correct them")
    return answers.argmax(axis=1)
