"""What evaluation reports: top-1 of each fusion and head, top-5, means over the classes, agreement with the teacher."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from transformers.trainer_utils import PredictionOutput

from ..analysis import class_means
from ..errors import InputError
from ..modeling_deit_distill import fuse_logits

TOP_K = 5
LOSS_BY_IMAGE, LOGITS = "loss", "logits"  # beside decisions
CONFIDENCE = "confidence"
KEPT = ("labels", "fused", "cls", "distillation", "teacher", CONFIDENCE)  # of the decisions, in a run's folder


class Prediction(PredictionOutput):
    """As in Trainer: `predictions`, here the logits (images, classes) of the configured fusion, `label_ids`, `metrics`.

    Attributes:
        decisions: by name (images,) class indices, those of each head and fusion (see [`predicted_labels`]).
    """

    decisions: dict[str, np.ndarray]


class HeldOutMetrics:
    """A trainer's `compute_metrics`: accuracies and loss from decisions, which it keeps.

    Attributes:
        dataset: the set that is evaluated next.
        decisions: of the last evaluation, by name (images,) class indices: the `labels`, those of each head and
            fusion (see [`predicted_labels`]), and the `teacher`'s if known; besides `confidence`, the probability of
            the answer `fused`, from 0 to 1.
    """

    def __init__(self):
        self.dataset = None
        self.decisions: dict[str, np.ndarray] = {}
        self._about_teacher: list[tuple[object, dict]] = []  # of each set that the teacher was asked about
        self.start()

    def start(self, is_evaluation: bool = True):
        """Forget the batches of an evaluation that did not end; what comes is one, or else a prediction."""
        self._batches: list[tuple[dict, np.ndarray]] = []
        self._is_evaluation = is_evaluation

    def ask_teacher(self, sets, ask: Callable[[str | None, object, bool], dict | None]) -> dict[str, float]:
        """`teacher_accuracy`, `teacher_balanced_accuracy` and `teacher_macro_f1`; empty where nothing is known.

        Of several sets each has its own, as `teacher_<set>_accuracy`. Of several teachers these are of their mean
        probability, and `teacher_1_accuracy`, `teacher_2_accuracy`, ... of each.

        Args:
            sets: Trainer's `eval_dataset`.
            ask: from a set's name, None for the only one, the set, and whether it is the only one, to what
                `Answers.about_held_out` returns.
        """
        named = sets if isinstance(sets, dict) else {None: sets}
        found = {name: ask(name, dataset, sets is dataset) for name, dataset in named.items()}
        known = {name: about for name, about in found.items() if about is not None}
        self._about_teacher = [(named[name], about) for name, about in known.items()]
        results = {}
        for name, about in known.items():
            prefix = "teacher" if name is None else f"teacher_{name}"
            balanced, macro_f1 = class_means(about["labels"], about["answers"])
            figures = {"accuracy": about["accuracy"], "balanced_accuracy": balanced, "macro_f1": macro_f1}
            results |= {f"{prefix}_{figure}": value for figure, value in figures.items()}
            members = enumerate(about.get("members", ()), start=1)
            results |= {f"{prefix}_{number}_accuracy": share for number, share in members}
        return results

    def decide(self, logits: tuple[torch.Tensor, ...], labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """A trainer's `preprocess_logits_for_metrics`: as [`decide`]; a prediction keeps the fused logits too."""
        return {**decide(logits, labels), **({} if self._is_evaluation else {LOGITS: logits[0]})}

    def as_prediction(self, output: PredictionOutput) -> PredictionOutput:
        """What `predict` returns: logits and decisions apart. A user's own predictions stay as they are."""
        are_lists = isinstance(output.predictions, list)
        batches = output.predictions if are_lists else [output.predictions]
        if not batches or not all(isinstance(batch, dict) and LOGITS in batch for batch in batches):
            return output
        logits = [batch[LOGITS] for batch in batches]
        prediction = Prediction(logits if are_lists else logits[0], *output[1:])
        names = batches[0].keys() - {LOGITS, LOSS_BY_IMAGE}
        prediction.decisions = {name: _joined([batch[name] for batch in batches]) for name in names}
        return prediction

    def kept_decisions(self) -> dict[str, list]:
        """What a run writes down of the decisions."""
        kept = {name: self.decisions[name].tolist() for name in KEPT if name in self.decisions}
        return {**kept, CONFIDENCE: [round(share, 4) for share in kept[CONFIDENCE]]} if CONFIDENCE in kept else kept

    def __call__(self, evaluated, compute_result: bool = True) -> dict[str, float]:
        """Metrics of whole arrays, of lists of batches (`eval_do_concat_batches` false), or called once a batch.

        Args:
            evaluated: predictions from [`decide`], and labels.
            compute_result: false while batches follow (`batch_eval_metrics`).
        """
        are_lists = isinstance(evaluated.label_ids, list)
        given = (evaluated.predictions, evaluated.label_ids)
        self._batches += zip(*given, strict=True) if are_lists else [given]
        if not compute_result:
            return {}
        names = self._batches[0][0].keys() - {LOGITS}
        predictions = {name: _joined([batch[name] for batch, _ in self._batches]) for name in names}
        labels = _joined([batch for _, batch in self._batches])
        self._batches = []
        loss = float(np.mean(predictions.pop(LOSS_BY_IMAGE), dtype=np.float64))
        decisions, teacher = {"labels": labels, **predictions}, self._teacher_about(labels)
        if teacher is not None:
            decisions["teacher"] = teacher
        if self._is_evaluation:
            self.decisions = decisions
        return {"loss": loss, **accuracies(predictions, labels, teacher)}

    def _teacher_about(self, labels: np.ndarray) -> np.ndarray | None:
        """The teacher's answers about the set that is evaluated; another may have the same labels."""
        known = (about for dataset, about in self._about_teacher if dataset is self.dataset)
        return next((about["answers"] for about in known if np.array_equal(about["labels"], labels)), None)


def decide(logits: tuple[torch.Tensor, ...], labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Decisions, confidence and, of images with labels, the loss of each image, (images,) each.

    Logits are (images, classes) each, in the order of [`predicted_labels`]; labels are (images,).
    Trainer's own loss is one of batches, which several processes fill up with images that were counted already.
    """
    confidence = logits[0].float().softmax(dim=-1).amax(dim=-1)
    decided = {**predicted_labels(*logits), CONFIDENCE: confidence}
    if labels is None:
        return decided
    return {**decided, LOSS_BY_IMAGE: F.cross_entropy(logits[0].float(), labels, reduction="none")}


def predicted_labels(
    logits: torch.Tensor, cls_logits: torch.Tensor, distillation_logits: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """The decisions of every head and fusion for a batch; small, so that evaluation need not keep logits.

    Args:
        logits: (batch, classes), the configured fusion.
        cls_logits, distillation_logits: (batch, classes), the heads; the second is None without the token.

    Returns:
        (batch,) class indices under `fused`, `cls` and, with two heads, `distillation`, `logit_mean` and
        `softmax_mean`; (batch, 5) under `top5` where there are more than five classes.
    """
    answers = {"fused": logits, "cls": cls_logits}
    if distillation_logits is not None:
        answers["distillation"] = distillation_logits
        for fusion in ("logit_mean", "softmax_mean"):
            answers[fusion] = fuse_logits(cls_logits, distillation_logits, fusion)
    decisions = {name: answer.argmax(dim=-1) for name, answer in answers.items()}
    if logits.shape[-1] > TOP_K:
        decisions["top5"] = logits.topk(TOP_K, dim=-1).indices
    return decisions


def accuracies(
    predictions: dict[str, np.ndarray], labels: np.ndarray, teacher_labels: np.ndarray | None = None
) -> dict[str, float]:
    """Shares of right answers and means over the classes, from 0 to 1.

    Args:
        predictions: what [`predicted_labels`] returned, over the whole evaluation set.
        labels: (images,) true classes.
        teacher_labels: (images,) the teacher's decisions on the same images in the same order, if known.

    Returns:
        `accuracy`, `balanced_accuracy` and `macro_f1` (of the configured fusion, see `analysis.class_means`),
        `accuracy_<head or fusion>`, `top5_accuracy`, `teacher_agreement`.
    """
    balanced, macro_f1 = class_means(labels, predictions["fused"])
    results = {"accuracy": _share(predictions["fused"] == labels), "balanced_accuracy": balanced, "macro_f1": macro_f1}
    for name in ("cls", "distillation", "logit_mean", "softmax_mean"):
        if name in predictions:
            results[f"accuracy_{name}"] = _share(predictions[name] == labels)
    if "top5" in predictions:
        results["top5_accuracy"] = _share((predictions["top5"] == labels[:, None]).any(axis=1))
    if teacher_labels is not None:
        results["teacher_agreement"] = _share(predictions["fused"] == teacher_labels)
    return results


def metric_names(config, has_average: bool = False, has_teacher: bool = True) -> list[str]:
    """What an evaluation may report of a student, by the names that `metric_for_best_model` takes.

    Args:
        config: the student's [`DeiTDistillConfig`].
        has_average: whether an average of the weights is evaluated too.
        has_teacher: whether there is a teacher to agree with.
    """
    logits, labels = torch.zeros(1, config.num_labels), np.zeros(1, dtype=int)
    answers = predicted_labels(logits, logits, logits if config.use_distillation_token else None)
    teacher_labels = labels if has_teacher else None
    names = ["loss", *accuracies({name: answer.numpy() for name, answer in answers.items()}, labels, teacher_labels)]
    return [*names, *(f"ema_{name}" for name in names)] if has_average else names


def check_metric(args, config):
    """Refuse a `metric_for_best_model` that no evaluation of such a student yields, before anything is trained.

    Args:
        args: the [`DistillationTrainingArguments`].
        config: the student's [`DeiTDistillConfig`].

    Raises:
        InputError: with the names to choose from.
    """
    metric = (args.metric_for_best_model or "loss").removeprefix("eval_")
    known = metric_names(config, args.weight_average_decay is not None, args.distillation_type != "none")
    if metric not in known:
        raise InputError(f"metric_for_best_model is {metric!r}; choose from: {', '.join(known)}")


def _joined(batches: list[np.ndarray | torch.Tensor]) -> np.ndarray:
    return np.concatenate([batch.cpu().numpy() if isinstance(batch, torch.Tensor) else batch for batch in batches])


def _share(hits: np.ndarray) -> float:
    return float(np.mean(hits))
