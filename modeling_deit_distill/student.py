"""The student: new, or from a checkpoint, at the run's image size and with the data's classes."""

import torch

from .arguments import DistillationTrainingArguments, ModelArguments
from .conversion.checkpoint import PretrainedStudent, build_model, load_checkpoint
from .conversion.weight_names import why_not_native
from .data.evaluation import DEFAULT_CROP_PCT, evaluation_processor
from .errors import InputError, one_line
from .modeling_deit_distill import DeiTDistillConfig, DeiTDistillForImageClassification
from .teachers.classes import match_classes

# What may differ from the checkpoint a student starts from.
FREE_FIELDS = ("image_size", "drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob", "fusion")
HEADS = ("cls_classifier", "distillation_classifier")


def load_start(model_args: ModelArguments) -> PretrainedStudent | None:
    """The checkpoint that the student starts from, of whatever kind; None for a new student.

    Raises:
        InputError: no checkpoint of a DeiT, one that cannot be read, or one whose weights are not finite.
    """
    if model_args.model_name_or_path is None:
        return None
    return load_checkpoint(model_args.model_name_or_path)


def student_config(
    model_args: ModelArguments,
    args: DistillationTrainingArguments,
    class_names: list[str],
    start: PretrainedStudent | None = None,
) -> DeiTDistillConfig:
    """The student's configuration: a named size or a checkpoint's own, the arguments over it, the data's classes.

    Raises:
        InputError: arguments that contradict each other, or that the checkpoint's weights would not fit.
    """
    fields = DeiTDistillConfig.__annotations__
    overrides = {name: getattr(model_args, name) for name in fields if getattr(model_args, name, None) is not None}
    classes = {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: index for index, name in enumerate(class_names)},
    }
    try:
        if start is not None:
            _check_fits(start.config, overrides)
            config = DeiTDistillConfig.from_dict({**start.config.to_dict(), **overrides, **classes})
        else:
            overrides.setdefault("use_distillation_token", args.distillation_type != "none")
            config = DeiTDistillConfig.from_size(model_args.model_size or "tiny", **overrides, **classes)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"student: {one_line(error)}") from error
    if args.do_train:
        _check_trains(config, args)
    return config


def build_student(
    config: DeiTDistillConfig, start: PretrainedStudent | None = None, attn_implementation: str | None = None
) -> DeiTDistillForImageClassification:
    """A new student, or the checkpoint's weights fitted to `config`: positions resized, heads matched by class name.

    What is not in the checkpoint is drawn, so the seed decides it.

    Raises:
        InputError: an attention kernel that is not there.
    """
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        student = DeiTDistillForImageClassification._from_config(config, dtype=torch.float32, **attention)
    except (ImportError, ValueError) as error:
        raise InputError(f"student: {one_line(error)}") from error
    if start is not None:
        carry_over(start, student)
    return student


@torch.no_grad()
def carry_over(start: PretrainedStudent, student: DeiTDistillForImageClassification):
    """Copy a checkpoint's weights into a student that may differ in image size and classes (paper, section 5.1)."""
    source = build_model(start).float()  # before the resizing, which half precision would round
    source.resize_position_embeddings(student.config.image_size)
    student.deit.load_state_dict(source.deit.state_dict())
    rows = head_rows(start.config, student.config)
    if rows is None:
        return
    for name in HEADS:
        head = getattr(student, name)
        if head is not None:
            head.weight.copy_(getattr(source, name).weight[rows])
            head.bias.copy_(getattr(source, name).bias[rows])


def head_rows(own: DeiTDistillConfig, wanted: DeiTDistillConfig) -> list[int] | None:
    """For each class wanted its row in a checkpoint's heads; None where they do not know every class, by name."""
    own_names, names = (list(config.id2label.values()) for config in (own, wanted))
    try:
        return match_classes(own_names, names)
    except InputError:
        return None


def what_is_kept(start: PretrainedStudent, config: DeiTDistillConfig) -> str:
    """What a student takes over from a checkpoint and what is new, in words, for the log and the card."""
    own, count = start.config, len(start.config.id2label)
    rows = head_rows(own, config)
    words = [f"kept: patches, tokens and {own.num_hidden_layers} blocks"]
    if own.image_size == config.image_size:
        words[0] += ", position embeddings"
    else:
        words.append(f"resized bicubically: position embeddings, from {own.image_size} to {config.image_size} pixels")
    heads = "both heads" if config.use_distillation_token else "the head"
    if rows is None:
        words.append(f"new: {heads}, for {len(config.id2label)} classes, since those of the checkpoint are others")
    elif rows == list(range(count)):
        words[0] += f", {heads}"
    else:
        words[0] += f", of {heads} the rows of {len(rows)} of {count} classes"
    return "; ".join(words)


def student_processor(config: DeiTDistillConfig, crop_pct: float | None, start: PretrainedStudent | None = None):
    """The evaluation transform: normalised as the checkpoint's, cropped as it unless `crop_pct` is given."""
    if start is None:
        return evaluation_processor(config.image_size, crop_pct or DEFAULT_CROP_PCT)
    own = start.processor
    shorter_side, crop = own.size["shortest_edge"], min(own.crop_size["height"], own.crop_size["width"])
    if crop_pct is None and config.image_size == start.config.image_size:
        return own
    crop_pct = crop_pct or min(crop / shorter_side, 1.0)
    return evaluation_processor(config.image_size, crop_pct, own.image_mean, own.image_std)


def _check_fits(own: DeiTDistillConfig, overrides: dict):
    for name, value in overrides.items():
        if name not in FREE_FIELDS and value != getattr(own, name):
            raise InputError(f"{name} is {value}, but the checkpoint has {getattr(own, name)}; leave {name} out")


def _check_trains(config: DeiTDistillConfig, args: DistillationTrainingArguments):
    if config.num_channels != 3:
        raise InputError(f"num_channels is {config.num_channels}; images are decoded as RGB, so it must be 3")
    if not isinstance(config.image_size, int) or not isinstance(config.patch_size, int):
        raise InputError(
            f"image_size is {config.image_size} and patch_size {config.patch_size}; views are square: give --image_size"
        )
    if args.push_native and (reason := why_not_native(config)):
        raise InputError(f"push_native: {reason}")
    if args.distillation_type == "none" and config.use_distillation_token:
        raise InputError(
            "use_distillation_token is true but distillation_type is none: nothing would train the distillation head, "
            "and it would still enter the mean; choose soft or hard, or a student without the token "
            "(--use_distillation_token false, or a checkpoint that has none)"
        )
