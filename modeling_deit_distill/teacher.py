"""The teacher: find its architecture, train it first where the user has none, load it frozen in its own input view."""

import dataclasses
import difflib
import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from .augmentation import augment
from .data import BadImages, ImageData, ViewDataset, collate, evaluation_processor
from .errors import InputError
from .views import AugmentationSettings, ViewSampler

logger = logging.get_logger(__name__)

TRAINING_RECORD = "teacher_training.json"
# The teacher's training shares the machine with the student's, not its schedule.
SHARED_ARGUMENTS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "bf16",
    "fp16",
    "tf32",
    "use_cpu",
    "seed",
    "full_determinism",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_pin_memory",
    "disable_tqdm",
    "ddp_backend",
    "ddp_timeout",
)


@dataclass(frozen=True)
class InputView:
    """What a model expects of its pixels: side in pixels, mean and deviation of each channel."""

    image_size: int
    mean: tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN)
    std: tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD)


class Teacher(nn.Module):
    """A frozen classifier that looks at the student's pixels in its own view.

    Args:
        model: an image classifier whose classes are the dataset's, in their order.
        view: what the classifier expects.
        student_view: how `pixel_values` come.
    """

    def __init__(self, model: PreTrainedModel, view: InputView, student_view: InputView):
        super().__init__()
        self.model = model
        self.view = view
        self.student_view = student_view
        own_std, std = torch.tensor(view.std), torch.tensor(student_view.std)
        own_mean, mean = torch.tensor(view.mean), torch.tensor(student_view.mean)
        self.register_buffer("scale", (std / own_std).view(-1, 1, 1))
        self.register_buffer("shift", ((mean - own_mean) / own_std).view(-1, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) for `pixel_values` (batch, 3, height, width) normalised for the student."""
        if (self.view.mean, self.view.std) != (self.student_view.mean, self.student_view.std):
            pixel_values = pixel_values * self.scale + self.shift
        size = (self.view.image_size, self.view.image_size)
        if tuple(pixel_values.shape[-2:]) != size:
            pixel_values = F.interpolate(pixel_values, size, mode="bicubic", align_corners=False, antialias=True)
        return self.model(pixel_values=pixel_values).logits


def describe_teacher(
    class_names: list[str],
    name_or_path: str | None = None,
    config_name: str | None = None,
    config_overrides: dict | None = None,
    train: bool = False,
    trust_remote_code: bool = False,
) -> PreTrainedConfig:
    """The teacher's configuration with the dataset's classes, before any weights are read.

    Args:
        class_names: the dataset's classes, in order.
        name_or_path: a trained teacher. With `train` it gets a new head, otherwise its classes must be these.
        config_name: the architecture of a new teacher: a folder, a JSON file, a Hub name or a bare `model_type`.
        config_overrides: fields that replace those of the configuration.

    Raises:
        InputError: a teacher that cannot be found, an override it does not know, or other classes than the dataset's.
    """
    if name_or_path is None and config_name is None:
        raise InputError(
            "there is no teacher; give --teacher_name_or_path, or --train_teacher true with --teacher_config_name "
            "(e.g. resnet), or --distillation_type none"
        )
    config = _find_config(name_or_path, config_name, trust_remote_code)
    if not train:
        _check_class_names(config, class_names, name_or_path)
    if config_overrides:
        config = _override(config, config_overrides)
    if train:
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: index for index, name in enumerate(class_names)}
    return config


def load_teacher(
    name_or_path: str, class_names: list[str], student_image_size: int, trust_remote_code=False
) -> Teacher:
    """A trained teacher, frozen, in its own view (its image processor's size and normalisation).

    Raises:
        InputError: a teacher that cannot be read, or whose classes are not `class_names` in their order.
    """
    config = _find_config(name_or_path, None, trust_remote_code)
    _check_class_names(config, class_names, name_or_path)
    model = _from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    student_view = InputView(student_image_size)
    return Teacher(model, _own_view(name_or_path, student_view, trust_remote_code), student_view)


def find_or_train_teacher(
    config: PreTrainedConfig,
    data: ImageData,
    directory: str | os.PathLike,
    args: TrainingArguments,
    *,
    image_size: int,
    crop_pct: float,
    num_train_epochs: float,
    learning_rate: float,
    name_or_path: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Train the teacher on the same data unless `directory` holds it already; return that folder.

    Args:
        config: from [`describe_teacher`] with `train=True`.
        data: the data of the run.
        directory: where the teacher is kept, complete or not at all.
        args: the run's arguments: machine, batch and augmentation are shared, the schedule is the teacher's own.
        image_size, crop_pct: the student's; a new teacher is trained at that size, a pretrained one at its own.
        num_train_epochs, learning_rate: the teacher's own.
        name_or_path: fine-tune this checkpoint instead of starting from scratch.

    Raises:
        InputError: `directory` holds a teacher of other data or another configuration.
    """
    directory = Path(directory)
    record = {
        "dataset": data.fingerprint(),
        "teacher": name_or_path or config.model_type,
        "config": _architecture(config),
        "image_size": image_size,
        "num_train_epochs": num_train_epochs,
        "learning_rate": learning_rate,
    }
    if (directory / TRAINING_RECORD).exists():
        _check_record(directory, json.loads((directory / TRAINING_RECORD).read_text()), record)
        return directory
    if directory.exists():
        raise InputError(
            f"{directory} exists but holds no teacher of ours; move it away or choose another --output_dir"
        )
    set_seed(args.seed)
    model, view = _untrained(config, image_size, name_or_path, trust_remote_code)
    with args.main_process_first(desc="clearing an incomplete teacher"):
        partial = directory.with_name(directory.name + ".partial")
        if args.process_index == 0:
            shutil.rmtree(partial, ignore_errors=True)
    processor = evaluation_processor(view.image_size, crop_pct, view.mean, view.std)
    trainer = _teacher_trainer(model, processor, data, partial, args, num_train_epochs, learning_rate)
    trainer.train()
    trainer.save_model(str(partial))
    trainer.accelerator.wait_for_everyone()
    if args.process_index == 0:
        (partial / TRAINING_RECORD).write_text(json.dumps(record, indent=2))
        partial.rename(directory)  # complete or not there at all
    trainer.accelerator.wait_for_everyone()
    return directory


def _untrained(config: PreTrainedConfig, image_size: int, name_or_path: str | None, trust_remote_code: bool):
    """A new classifier, or a checkpoint's with a new head, and the view it is trained in."""
    view = InputView(getattr(config, "image_size", None) or image_size)
    if name_or_path is None:
        try:
            return AutoModelForImageClassification.from_config(config, trust_remote_code=trust_remote_code), view
        except ValueError as error:
            raise InputError(f"teacher_config_name: {config.model_type!r} is no image classifier") from error
    view = _own_view(name_or_path, view, trust_remote_code)
    settings = {"config": config, "ignore_mismatched_sizes": True, "trust_remote_code": trust_remote_code}
    return _from_pretrained(name_or_path, **settings), view


def _teacher_trainer(model, processor, data: ImageData, output_dir, args, num_train_epochs, learning_rate) -> Trainer:
    teacher_args = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=num_train_epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,  # a share of all steps
        weight_decay=0.05,
        label_smoothing_factor=0.1,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="epoch",
        report_to="none",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        **{name: getattr(args, name) for name in SHARED_ARGUMENTS},
    )
    # The teacher learns from labels as they are: nothing erased, nothing mixed.
    settings = dataclasses.replace(
        AugmentationSettings.from_arguments(args, processor.crop_size["height"]),
        erasing_prob=0.0,
        mixup_alpha=0.0,
        cutmix_alpha=0.0,
    )
    return _TeacherTrainer(
        model=model,
        args=teacher_args,
        data_collator=collate,
        train_dataset=ViewDataset(data.train, settings, args.seed),
        processing_class=processor,
        bad_images=BadImages(data.train, args.on_bad_image, args.max_bad_image_fraction, args.world_size),
    )


class _TeacherTrainer(Trainer):
    """Trains a classifier on labels, on views augmented on the device as the student's are."""

    def __init__(self, *args, bad_images: BadImages, **kwargs):
        super().__init__(*args, **kwargs)
        self.bad_images = bad_images

    def _get_train_sampler(self, train_dataset=None) -> ViewSampler:
        args = self.args
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return ViewSampler(len(self.train_dataset), step, repeats=1, seed=args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross-entropy with smoothed labels on augmented views."""
        self.bad_images.note(inputs["bad_images"])
        processor = self.processing_class
        pixel_values = augment(inputs["pixel_values"], inputs["draws"], processor.image_mean, processor.image_std)
        logits = model(pixel_values=pixel_values).logits
        return F.cross_entropy(logits, inputs["labels"], label_smoothing=self.args.label_smoothing_factor)


def _find_config(name_or_path: str | None, config_name: str | None, trust_remote_code: bool) -> PreTrainedConfig:
    # AutoConfig.from_pretrained("resnet") would ask the Hub for a model of that name.
    if config_name in CONFIG_MAPPING and not Path(config_name).exists():
        return AutoConfig.for_model(config_name)
    argument = "teacher_name_or_path" if name_or_path else "teacher_config_name"
    name = name_or_path or config_name
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(f"{argument} {name!r} cannot be read ({_one_line(error)})") from error


def _override(config: PreTrainedConfig, overrides: dict) -> PreTrainedConfig:
    for key in overrides:
        if not hasattr(config, key):
            near = difflib.get_close_matches(key, config.to_dict(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"teacher_config_overrides: {config.model_type} has no field {key!r}{hint}")
    # Built anew rather than changed in place, so that what the configuration derives from its fields follows them.
    derived = ("stage_names", "out_features", "out_indices", "_out_features", "_out_indices")
    fields = {key: value for key, value in config.to_diff_dict().items() if key not in derived}
    try:
        return type(config)(**{**fields, **overrides})
    except Exception as error:  # transformers' own checks of fields have several kinds
        raise InputError(f"teacher_config_overrides: {_one_line(error)}") from error


def _from_pretrained(name_or_path: str, **kwargs) -> PreTrainedModel:
    try:
        return AutoModelForImageClassification.from_pretrained(name_or_path, dtype=torch.float32, **kwargs)
    except (OSError, ValueError) as error:
        raise InputError(f"teacher_name_or_path {name_or_path!r} cannot be loaded ({_one_line(error)})") from error


def _own_view(name_or_path: str, default: InputView, trust_remote_code: bool) -> InputView:
    """Size and normalisation of the checkpoint's image processor; `default` where it has none."""
    try:
        processor = AutoImageProcessor.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        logger.warning(f"{name_or_path} has no image processor; the teacher is shown the student's pixels as they are")
        return default
    if hasattr(processor, "data_config"):  # timm's models
        settings = processor.data_config
        return InputView(settings["input_size"][-1], tuple(settings["mean"]), tuple(settings["std"]))
    for unsupported in ("do_flip_channel_order", "include_top", "rescale_offset"):
        if getattr(processor, unsupported, False):
            raise InputError(
                f"the teacher {name_or_path} prepares its pixels with {unsupported}, which is not supported"
            )
    cropped = getattr(processor, "do_center_crop", False) and getattr(processor, "crop_size", None)
    size = (processor.crop_size if cropped else processor.size) or {"height": default.image_size}
    side = size["height"] if size.get("height") else size["shortest_edge"]
    if not getattr(processor, "do_normalize", True):
        return InputView(side, (0.0,) * 3, (1.0,) * 3)
    return InputView(side, tuple(processor.image_mean), tuple(processor.image_std))


def _check_class_names(config: PreTrainedConfig, class_names: list[str], name_or_path: str):
    theirs = [config.id2label[index] for index in range(config.num_labels)]
    if _numbered(theirs) == _numbered(class_names):
        return
    if len(theirs) == len(class_names) and all(name == f"LABEL_{index}" for index, name in enumerate(theirs)):
        logger.warning(f"the teacher {name_or_path} names no classes; they are taken to be in the dataset's order")
        return
    raise InputError(
        f"the teacher {name_or_path} has {len(theirs)} classes ({_some(theirs)}), the dataset has {len(class_names)} "
        f"({_some(class_names)}){_first_difference(theirs, class_names)}; they must be the same in the same order: "
        "choose a teacher of these classes, or add --train_teacher true to fine-tune this one"
    )


def _numbered(names: list[str]) -> list[str]:
    """Names made unique: ImageNet has two classes "crane", and a dataset must call the second "crane2"."""
    seen = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}{seen[name]}")
    return unique


def _first_difference(theirs: list[str], ours: list[str]) -> str:
    if len(theirs) != len(ours):
        return ""
    index = next(index for index, names in enumerate(zip(theirs, ours, strict=True)) if names[0] != names[1])
    return f", where class {index} is {theirs[index]!r} there and {ours[index]!r} here"


def _check_record(directory: Path, found: dict, wanted: dict):
    for key, value in wanted.items():
        before = found.get(key)
        if before == value:
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            fields = [field for field in value if before.get(field) != value[field]]
            before = {field: before.get(field) for field in fields}
            value = {field: value[field] for field in fields}
        raise InputError(
            f"{directory} holds a teacher trained with another {key} ({before}, now {value}); choose another "
            "--output_dir, or pass that folder as --teacher_name_or_path without --train_teacher"
        )


def _architecture(config: PreTrainedConfig) -> dict:
    """The configuration without what changes with the library's version or with saving."""
    passing = {"transformers_version", "architectures", "dtype", "_name_or_path", "label2id", "torch_dtype"}
    fields = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in sorted(fields.items()) if key not in passing}


def _some(names: list[str]) -> str:
    return ", ".join(str(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
