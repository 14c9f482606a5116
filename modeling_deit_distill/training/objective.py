"""A batch on the training device, and the terms of the objective on it (paper, section 4)."""

import torch
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..augmentation.augment import augment, mix_labels
from ..data.bad_images import BadImages
from ..data.class_weights import class_weights
from ..data.datasets import StreamingViewDataset, ViewDataset
from ..errors import InputError
from ..losses import hard_distillation_loss, label_loss, soft_distillation_loss


class Views:
    """Augments batches of views; batches of any other training set pass as they are.

    Args:
        args: the [`DistillationTrainingArguments`].
        dataset: the training set.
        processor: the image processor, which normalises.
        config: of the student.

    Attributes:
        class_weights: (classes,) weights of the label's term, on the device; None for ones.
        bad_images: a [`BadImages`]; None for a training set that is not of views.
    """

    def __init__(self, args, dataset, processor, config):
        self.mean = getattr(processor, "image_mean", IMAGENET_DEFAULT_MEAN)
        self.std = getattr(processor, "image_std", IMAGENET_DEFAULT_STD)
        self.num_classes, self.args = config.num_labels, args
        weights = weights_of_classes(args, dataset, config)
        self.class_weights = None if weights is None else torch.tensor(weights, device=args.device)
        self.bad_images: BadImages | None = None
        if isinstance(dataset, (ViewDataset, StreamingViewDataset)):
            rows = getattr(dataset, "rows", None)
            self.bad_images = BadImages(rows, args.on_bad_image, args.max_bad_image_fraction, args.world_size)
        self._pixels: torch.Tensor | None = None  # written to again and again: fresh memory costs more

    def __call__(self, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model and the teacher see: (batch, 3, height, width) float, and labels, mixed if views are.

        Raises:
            InputError: a batch without labels.
        """
        if "labels" not in inputs:
            raise InputError(
                "the training set's samples have no labels, which the loss of a student needs; give each `labels`"
            )
        if "draws" not in inputs:
            return inputs["pixel_values"], inputs["labels"]
        self.bad_images.note(inputs["bad_images"], len(inputs["labels"]) / self.args.repeated_augmentation)
        pixel_values, draws = inputs["pixel_values"], inputs["draws"]
        if self._pixels is None or self._pixels.shape != pixel_values.shape:
            self._pixels = torch.empty_like(pixel_values, dtype=torch.float32)
        pixel_values = augment(pixel_values, draws, self.mean, self.std, out=self._pixels)
        return pixel_values, mix_labels(inputs["labels"], draws.mix_ratio, self.num_classes)


def weights_of_classes(args, dataset, config) -> list[float] | None:
    """The weight of each class in the label's term, in the student's order; None for ones. See `data.class_weights`."""
    class_names = [config.id2label[index] for index in range(config.num_labels)]
    rows = getattr(dataset, "rows", None) if isinstance(dataset, ViewDataset) else None
    return class_weights(args.class_weights, class_names, rows)


def objective_terms(
    outputs, labels: torch.Tensor, answers: torch.Tensor | None, args, class_weights: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """The losses that the objective is made of.

    Args:
        outputs: the student's. The label's term reads the class head, the teacher's term the distillation head; a
            student with one head has both read from it.
        labels: (batch,) class indices, or (batch, classes) probabilities.
        answers: the teacher's: class indices (batch,) for hard distillation, logits (batch, classes) for soft.
        args: the [`DistillationTrainingArguments`].
        class_weights: (classes,), of the label's term alone; None for ones.

    Returns:
        Scalars `label_loss` and, with a teacher, `teacher_loss`.
    """
    terms = {"label_loss": label_loss(outputs.cls_logits, labels, args.label_smoothing_factor, class_weights)}
    if answers is None:
        return terms
    student_logits = outputs.cls_logits if outputs.distillation_logits is None else outputs.distillation_logits
    if args.distillation_type == "hard":
        return {**terms, "teacher_loss": hard_distillation_loss(student_logits, answers)}
    temperature, code_compatible = args.distillation_temperature, args.code_compatible
    return {
        **terms,
        "teacher_loss": soft_distillation_loss(student_logits, answers, temperature, code_compatible),
    }


def agreement_with_teacher(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Share of a batch on which student and teacher decide alike, from 0 to 1, as a scalar on the device."""
    decided = answers if answers.dim() == 1 else answers.argmax(dim=-1)
    return (logits.argmax(dim=-1) == decided).float().mean()
