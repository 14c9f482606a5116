"""A batch on the training device, and the terms of the objective on it (paper, section 4)."""

import torch
from accelerate.utils import send_to_device
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..augmentation.augment import as_one_hot, augment, mix_labels
from ..data.bad_images import BadImages
from ..data.class_weights import class_weights
from ..data.datasets import StreamingViewDataset, ViewDataset
from ..errors import InputError
from ..losses import hard_distillation_loss, label_loss, soft_distillation_loss

SEEN = "seen"  # in a batch: what `Views` made of it before
NEEDS_TEACHER = (
    "images without labels teach by a teacher's answers alone, and distillation_type is 'none'; choose hard or soft "
    "with a teacher, or leave them out"
)


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
        has_unlabelled: whether there are images without labels.

    Raises:
        InputError: images without labels, and no teacher to learn from.
    """

    def __init__(self, args, dataset, processor, config):
        self.mean = getattr(processor, "image_mean", IMAGENET_DEFAULT_MEAN)
        self.std = getattr(processor, "image_std", IMAGENET_DEFAULT_STD)
        self.num_classes, self.args = config.num_labels, args
        weights = weights_of_classes(args, dataset, config)
        self.class_weights = None if weights is None else torch.tensor(weights, device=args.device)
        self.has_unlabelled = isinstance(dataset, ViewDataset) and dataset.num_unlabelled > 0
        if self.has_unlabelled and args.distillation_type == "none":
            raise InputError(f"{dataset.num_unlabelled:,} training images have no label: {NEEDS_TEACHER}")
        self.bad_images: BadImages | None = None
        if isinstance(dataset, (ViewDataset, StreamingViewDataset)):
            rows = getattr(dataset, "rows", None)
            self.bad_images = BadImages(rows, args.on_bad_image, args.max_bad_image_fraction, args.world_size)
        self._pixels: dict[int, torch.Tensor] = {}  # written to again and again: fresh memory costs more

    def __call__(self, inputs: dict, place: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What the model and the teacher see: (batch, 3, height, width) float, and labels, mixed if views are.

        Of a training set with images without labels the third is the labelled share of each view, (batch,) from 0 to 1;
        the labels are then (batch, classes) and sum to it. Pixels stay until the next batch is seen in their `place`.

        Raises:
            InputError: a batch without labels.
        """
        if SEEN in inputs:
            return inputs[SEEN]
        if "labels" not in inputs:
            raise InputError(
                "the training set's samples have no labels, which the loss of a student needs; give each `labels`"
            )
        if "draws" not in inputs:
            return inputs["pixel_values"], inputs["labels"], None
        self.bad_images.note(inputs["bad_images"], len(inputs["labels"]) / self.args.repeated_augmentation)
        pixel_values, draws = inputs["pixel_values"], inputs["draws"]
        if place not in self._pixels or self._pixels[place].shape != pixel_values.shape:
            self._pixels[place] = torch.empty_like(pixel_values, dtype=torch.float32)
        pixel_values = augment(pixel_values, draws, self.mean, self.std, out=self._pixels[place])
        labels = mix_labels(inputs["labels"], draws.mix_ratio, self.num_classes, self.has_unlabelled)
        if not self.has_unlabelled:
            return pixel_values, labels, None
        labels = as_one_hot(labels, self.num_classes) if draws.mix_ratio is None else labels
        return pixel_values, labels, labels.sum(dim=-1)


def weights_of_classes(args, dataset, config) -> list[float] | None:
    """The weight of each class in the label's term, in the student's order; None for ones. See `data.class_weights`."""
    class_names = [config.id2label[index] for index in range(config.num_labels)]
    rows = getattr(dataset, "rows", None) if isinstance(dataset, ViewDataset) else None
    return class_weights(args.class_weights, class_names, rows)


def objective_terms(
    outputs,
    labels: torch.Tensor,
    answers: torch.Tensor | None,
    args,
    class_weights: torch.Tensor | None = None,
    labelled: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """The losses that the objective is made of.

    Where the share s of a view has labels, the label's term is s times its own; the teacher's term is whole.

    Args:
        outputs: the student's. The label's term reads the class head, the teacher's term the distillation head; a
            student with one head has both read from it.
        labels: (batch,) class indices, or (batch, classes) probabilities.
        answers: the teacher's: class indices (batch,) for hard distillation, logits (batch, classes) for soft.
        args: the [`DistillationTrainingArguments`].
        class_weights: (classes,), of the label's term alone; None for ones.
        labelled: (batch,), s, to which the labels (batch, classes) sum; None where all is labelled.

    Returns:
        Scalars `label_loss` and, with a teacher, `teacher_loss`.
    """
    smoothing = args.label_smoothing_factor
    terms = {"label_loss": label_loss(outputs.cls_logits, labels, smoothing, class_weights, labelled)}
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


def total_loss(terms: dict[str, torch.Tensor], alpha: float) -> torch.Tensor:
    """(1 - α)·label + α·teacher of the [`objective_terms`]; of those without a teacher the label's term alone."""
    if "teacher_loss" not in terms:
        return terms["label_loss"]
    return (1 - alpha) * terms["label_loss"] + alpha * terms["teacher_loss"]


def answered_ahead(batches: list[dict], views: Views, answers) -> list[dict]:
    """The batches of an optimiser step, seen and with the teacher's answers, where it is asked about several at once.

    Others come back as they are.

    Args:
        batches: as the loader makes them; a stream's are not on the device yet.
        views: what the model sees of them.
        answers: the [`Answers`].
    """
    if not answers.asks_ahead(len(batches)):
        return batches
    batches = send_to_device(batches, answers.args.device)
    seen = [views(batch, place) for place, batch in enumerate(batches)]
    answered = answers.about(batches, [pixel_values for pixel_values, *_ in seen])
    return [{**batch, SEEN: each} for batch, each in zip(answered, seen, strict=True)]


def logged_shares(
    logits: torch.Tensor, answers: torch.Tensor | None, labelled: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """What a log has beside the losses: where there is a teacher `teacher_agreement`, and the mean `labelled_share`.

    Logits are (batch, classes), answers as in [`agreement_with_teacher`], the labelled share of each view (batch,).
    """
    shares = {} if answers is None else {"teacher_agreement": agreement_with_teacher(logits, answers)}
    return shares if labelled is None else {**shares, "labelled_share": labelled.mean()}


def agreement_with_teacher(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Share of a batch on which student and teacher decide alike, from 0 to 1, as a scalar on the device.

    Logits are (batch, classes); answers are decisions (batch,) or logits (batch, classes).
    """
    decided = answers if answers.dim() == 1 else answers.argmax(dim=-1)
    return (logits.argmax(dim=-1) == decided).float().mean()
